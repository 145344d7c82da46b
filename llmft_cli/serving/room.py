"""The room that a prompt leaves for an answer in the positions of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llmft_cli.models.limits import Limits
from llmft_cli.settings.config import Config


class PromptBatch(NamedTuple):
    """Numbers of the prompts that are answered together, and how many tokens an answer may have."""

    prompts: list[int]
    new_tokens: int


def longest_conversation(limits: Limits, config: Config) -> int | None:
    """Tokens of the longest conversation, answers included; None without a limit.

    A model that computes its positions may have been trained on longer rows than it was made for.
    """
    if limits.positions is None or limits.fails_beyond:
        return limits.positions
    return max(limits.positions, config.max_seq_length)


def new_tokens_for(prompt_tokens: int, longest: int | None, max_new_tokens: int) -> int:
    """How many tokens the answer to a prompt may have; 0 if there is no room for one.

    Args:
        longest: as `longest_conversation`.
    """
    return max_new_tokens if longest is None else max(0, min(max_new_tokens, longest - prompt_tokens))


def prompt_batches(lengths: Sequence[int], batch_size: int, longest: int | None, max_new_tokens: int) -> Iterator[PromptBatch]:
    """All prompts, those of similar length together; one with less room is alone, so that no answer depends on the batch.

    Args:
        lengths: tokens of each prompt.
        longest: as `longest_conversation`.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    rooms = [new_tokens_for(length, longest, max_new_tokens) for length in lengths]
    ample = [index for index in order if rooms[index] == max_new_tokens]
    for start in range(0, len(ample), batch_size):
        yield PromptBatch(ample[start : start + batch_size], max_new_tokens)
    for index in order[len(ample) :]:
        yield PromptBatch([index], rooms[index])
