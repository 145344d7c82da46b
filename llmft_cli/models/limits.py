"""What a base model can take, as its config says: positions and token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ConfigError
from llmft_cli.base.reporter import Reporter
from llmft_cli.models import model_source
from llmft_cli.models.config_lookup import check_can_be_tuned, read_shape
from llmft_cli.models.model_source import ModelSource
from llmft_cli.settings.config import FIELDS, Config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Types of models without rotary embeddings that take any position all the same: layers with a state along the sequence,
# relative positions, or sinusoids that are computed on demand.
WITHOUT_POSITION_TABLE = {"cohere_compass_text", "inkling_text", "inkling2_text", "jamba", "kimi_linear", "nemotron_h"}
WITHOUT_POSITION_TABLE |= {"rwkv", "xglm", "xlnet", "zamba"}
# Kinds of rotary scaling whose `max_position_embeddings` is the number before scaling, if no original number is given.
SCALED_FROM_MAXIMUM = ("linear", "dynamic")


@dataclass(frozen=True)
class Limits:
    """What a base model can take.

    Attributes:
        model: its name.
        positions: tokens of the longest row that it was made for; None if its config says nothing.
        fails_beyond: whether a longer row is an error in the model, which looks positions up in a table. Others compute
            them, and only get worse.
        embedding_rows: number of token ids that it has embeddings for; None if its config does not say.
    """

    model: str
    positions: int | None
    fails_beyond: bool
    embedding_rows: int | None


def limits_of_base(config: Config, source: ModelSource) -> Limits:
    """The limits of the base model that the settings name.

    Raises:
        ModelError: its config cannot be read, or QLoRA cannot fine-tune it.
    """
    shape = read_shape(source.name, source.path, trust_remote_code=source.trust_remote_code)
    check_can_be_tuned(config, shape)
    return limits_of(shape, source.name)


def limits_of_recorded(facts: Mapping[str, Any], reporter: Reporter) -> Limits:
    """The limits of the base model that a ledger entry recorded; needs no weights.

    Raises:
        ModelError: as `model_source.resolve`.
    """
    trusted = facts["trust_remote_code"]
    source = model_source.resolve(facts["name"], reporter, weights=False, revision=facts["revision"], trust_remote_code=trusted)
    return limits_of(read_shape(source.name, source.path, trust_remote_code=trusted), source.name)


def limits_of(shape: PreTrainedConfig, name: str) -> Limits:
    """The limits in a model's config.

    Args:
        name: of the model.
    """
    text = shape.get_text_config(decoder=True)
    positions = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)  # MPT's name
    rope = getattr(text, "rope_parameters", None)
    known = type(text).__module__.startswith("transformers.")  # a repository's own code may compute positions in any way
    table = known and not rope and text.model_type not in WITHOUT_POSITION_TABLE
    if not isinstance(positions, int) or positions < 1:
        return Limits(name, None, False, getattr(text, "vocab_size", None))
    return Limits(name, extended(positions, rope or {}), table, getattr(text, "vocab_size", None))


def extended(positions: int, rope: Mapping[str, Any]) -> int:
    """The positions that a model with scaled rotary embeddings was extended to.

    `max_position_embeddings` already is that number for llama3 and longrope, and may be for yarn, where some configs give
    the number before scaling. Scaling by layer type (Gemma 3) is nested in `rope`, and its number is the extended one.
    """
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    if not factor:
        return positions
    if original:
        return max(positions, int(original * factor))
    return int(positions * factor) if rope.get("rope_type") in SCALED_FROM_MAXIMUM else positions


def within_positions(config: Config, limits: Limits, reporter: Reporter, length_given: bool = False) -> Config:
    """The settings with `max_seq_length` reduced to the model's positions if it is the default (see `note_reduction`).

    Args:
        length_given: whether the user asked for this length, even if it is the default.

    Raises:
        ConfigError: the user asked for a length at which the model fails.
    """
    length, positions = config.max_seq_length, limits.positions
    if positions is None or length <= positions:
        return config
    if length == FIELDS["max_seq_length"].default and not length_given:
        return replace(config, max_seq_length=positions)
    excess = f"--max-seq-length {length} is more than the {positions} positions of {limits.model}"
    if limits.fails_beyond:
        raise ConfigError(f"{excess}, which cannot process longer rows", f"use --max-seq-length {positions} or less")
    reporter.warn(f"{excess}: it was not made for longer rows, and its answers get worse there")
    return config


def note_reduction(before: Config, after: Config, limits: Limits, reporter: Reporter) -> None:
    """Tell of a `max_seq_length` that `within_positions` reduced."""
    length = after.max_seq_length
    if length < before.max_seq_length:
        reporter.note(f"rows have up to {length:,} tokens (--max-seq-length), because {limits.model} has no more positions")
