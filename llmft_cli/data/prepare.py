"""prepare: from sources to the run's data; on an error nothing is left behind."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import DataError, StageError
from llmft_cli.base.files import hash_file
from llmft_cli.base.libraries import versions
from llmft_cli.base.reporter import Reporter
from llmft_cli.data.checks import Checks, byte_token_ids
from llmft_cli.data.cures.hints import hint_for_refused
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.encoding.template_files import read_template
from llmft_cli.data.ingested import IngestedRows, Rejections
from llmft_cli.data.ingestion import ingest_rows
from llmft_cli.data.inputs import Input, find_inputs
from llmft_cli.data.near_duplicates import NearDuplicates
from llmft_cli.data.output import write_data
from llmft_cli.data.reading.json_in_text import with_json_suffix
from llmft_cli.data.reading.rows import Source
from llmft_cli.data.reading.sources import STDIN_NAME
from llmft_cli.data.report.summary import PrepareResult, read_result
from llmft_cli.data.store import REPORT_FILE, RowSpool
from llmft_cli.models import loading, model_source
from llmft_cli.models.fingerprint import description
from llmft_cli.models.limits import Limits, limits_of_base, note_reduction, within_positions
from llmft_cli.models.model_source import ModelSource
from llmft_cli.run_dir.artifacts import refuse_foreign
from llmft_cli.run_dir.run import RunDir
from llmft_cli.run_dir.stages import stage
from llmft_cli.settings import config as settings
from llmft_cli.settings.config import Config
from llmft_cli.settings.quantities import format_count

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Incremented whenever the same rows would be prepared differently, so that older data is not reused.
DATA_VERSION = 5


def prepare(
    run: RunDir,
    names: Sequence[str],
    config: Config,
    reporter: Reporter,
    overwrite: bool = False,
    length_given: bool = False,
) -> PrepareResult:
    """Read, check, render, tokenise, mask and split rows into `run.data`.

    Data already prepared from the same sources, tokenizer and settings is reused.

    Args:
        names: files, directories and Hub dataset ids; `-` is standard input.
        length_given: as of `limits.within_positions`.

    Raises:
        DataError: a source cannot be read, no row is usable, too many rows are bad, or a check warns and
            `strict` is set.
        ModelError: the model cannot be trained, its tokenizer cannot be loaded, or it lacks a chat template.
        ConfigError: rows may be longer than the model can process.
        StageError: the run is already prepared from something else, or another tool's directory is in its place.
    """
    refuse_foreign(run)
    inputs = inputs_by_content(names, config, reporter)
    source = model_source.resolve(
        config.model, reporter, weights=False, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    model_limits, asked = limits_of_base(config, source), config
    config = within_positions(asked, model_limits, reporter, length_given)
    tokenizer = tokenizer_of(source, config)
    hashes = hashes_of(inputs)
    key = key_of(inputs, hashes, tokenizer, config)
    if not overwrite and (recorded := recorded_result(run, key, reporter)):
        return recorded
    with stage(run, "prepare", settings.of_command(config, "prepare"), hashes, overwrite) as record:
        # Both are complete before either replaces the old one.
        with record.replacing("data") as data, record.replacing("tokenizer") as frozen:
            encoder = encoder_of(tokenizer, model_limits, config)
            result = fill(data, inputs, encoder, config, model_limits.positions, reporter)
            tokenizer.save_pretrained(frozen)
        record.facts |= {"key": key, "sources": list(names), **facts_of(source, result, config)}
    note_reduction(asked, config, model_limits, reporter)
    return result


def inputs_by_content(names: Sequence[str], config: Config, reporter: Reporter) -> list[Input]:
    """The named inputs; a text file of JSON rows is read as such, unless the user says that it is a document."""
    inputs = find_inputs(names, config)
    if config.format != "text":
        for item in inputs:
            item.sources = [with_json_suffix(source, reporter) for source in item.sources]
    return inputs


def facts_of(source: ModelSource, result: PrepareResult, config: Config) -> dict[str, Any]:
    """What the ledger records of the prepared data."""
    return {
        "model": {"name": source.name, "revision": source.revision},
        "model_files": description(source.path),
        "template": result.template,
        "seed": config.seed,
        "versions": versions(),
        "rows": result.rows,
        "tokens": result.tokens,
        "splits": result.splits,
    }


def tokenizer_of(source: ModelSource, config: Config) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with the chat template of the settings if they have one."""
    tokenizer = loading.load_tokenizer(source.path, config.trust_remote_code)
    if config.chat_template:
        tokenizer.chat_template = read_template(config.chat_template)
    return tokenizer


def encoder_of(tokenizer: PreTrainedTokenizerBase, limits: Limits, config: Config) -> ConversationEncoder:
    options = {"rows_per_answer": config.rows_per_answer, "on_unrendered": config.on_unrendered}
    return ConversationEncoder(tokenizer, config.train_on, limits, **options)


def hashes_of(inputs: Sequence[Input]) -> dict[str, str]:
    """sha256 of every file by its path; standard input has only a name."""
    return {source_key(source): hash_file(source.path) for item in inputs for source in item.sources if source.path}


def source_key(source: Source) -> str:
    return source.name if source.path is None or source.name == STDIN_NAME else str(source.path.resolve())


def key_of(
    inputs: Sequence[Input], hashes: Mapping[str, str], tokenizer: PreTrainedTokenizerBase, config: Config
) -> str | None:
    """A hash of everything the prepared data depends on; None if a source may change unnoticed (on the Hub)."""
    if any(source.path is None for item in inputs for source in item.sources):
        return None
    facts = {
        "version": DATA_VERSION,
        "sources": [[(source.name, hashes[source_key(source)]) for source in item.sources] for item in inputs],
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
        "settings": {name: value for name, value in settings.of_command(config, "prepare").items() if name != "chat_template"},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def recorded_result(run: RunDir, key: str | None, reporter: Reporter) -> PrepareResult | None:
    """The recorded result if preparing again would give the same; None if the run is not prepared.

    Raises:
        StageError: the run was prepared from something else, or its data has changed since.
    """
    entry = run.entry("prepare")
    if entry is None or entry["status"] != "done":
        return None
    if key is None or entry.get("key") != key:
        raise StageError(f"{run.path} is already prepared from other data or settings", "to redo it, add --overwrite")
    run.require("prepare")
    reporter.note(f"{run.path} is already prepared from the same data and settings: nothing to do")
    return read_result(run.data / REPORT_FILE)


def fill(
    data: Path,
    inputs: list[Input],
    encoder: ConversationEncoder,
    config: Config,
    positions: int | None,
    reporter: Reporter,
) -> PrepareResult:
    """Ingest the rows and write the run's data.

    Args:
        positions: the longest row that the model was made for, if that is known.

    Raises:
        DataError: as `prepare`.
    """
    scratch = data / "scratch"
    with RowSpool(scratch) as spool, Rejections(data) as rejections:
        near_duplicates = NearDuplicates(scratch) if config.near_duplicates else None
        checks = Checks(byte_token_ids(encoder.tokenizer), encoder.tokenizer)
        ingested = IngestedRows(inputs, spool, rejections, checks, near_duplicates)
        ingest_rows(ingested, encoder, config, reporter)
        check_ingested(ingested, encoder, config, positions)
        for style, count in ingested.styles.most_common():
            reporter.note(f"{format_count(count, 'row')} of rendered text ({style}) read as conversations")
        result = write_data(data, ingested, encoder, config)
    shutil.rmtree(scratch)
    return result


def check_ingested(ingested: IngestedRows, encoder: ConversationEncoder, config: Config, positions: int | None) -> None:
    """Reject data with no usable row or too many bad ones.

    Raises:
        DataError: with the options that would make the rows usable, if any were found.
    """
    bad, share = ingested.bad, ingested.bad / max(ingested.read, 1)
    first = ingested.rejections.first
    example = f"; first: {first.source} line {first.line}: {first.reason}" if first else ""
    if not len(ingested.spool):
        message = f"no usable rows ({ingested.read} read, {bad} rejected, {ingested.losses.rows} too long){example}"
    elif share > config.max_rejected:
        message = f"{bad} of {ingested.read} rows are bad, more than --max-rejected {config.max_rejected:.3g}{example}"
    else:
        return
    raise DataError(message, hint_for_refused(ingested, encoder, config, positions))
