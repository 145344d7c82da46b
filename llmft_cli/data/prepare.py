"""prepare: from sources to the run's data, or a clear no that leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmft_cli.base.errors import DataError, StageError
from llmft_cli.base.files import hash_file, replacing_directory
from llmft_cli.base.libraries import versions
from llmft_cli.base.reporter import Reporter
from llmft_cli.data.checks import Checks, byte_token_ids
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.encoding.template_files import read_template
from llmft_cli.data.inputs import Input, find_inputs
from llmft_cli.data.intake import Intake, Rejections, take_in
from llmft_cli.data.near_duplicates import NearDuplicates
from llmft_cli.data.output import write_data
from llmft_cli.data.reading.rows import Source
from llmft_cli.data.reading.sources import STDIN_NAME
from llmft_cli.data.report.summary import PrepareResult, read_result
from llmft_cli.data.store import REPORT_FILE, RowSpool
from llmft_cli.models import loading, model_source
from llmft_cli.run_dir import RunDir
from llmft_cli.settings import config as settings
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Changed whenever the same rows would be prepared differently, so that older data is not taken for current.
DATA_VERSION = 2


def prepare(run: RunDir, names: Sequence[str], config: Config, reporter: Reporter, overwrite: bool = False) -> PrepareResult:
    """Read, check, render, mask, tokenise, split and pack rows into `run.data`.

    Data that was prepared from the very same sources, tokenizer and settings is left as it is.

    Args:
        names: files, directories and Hub dataset ids; `-` is the standard input.

    Raises:
        DataError: a source cannot be read, no row is left, too many rows are bad, or a check warns of them and
            the settings are strict.
        ModelError: the tokenizer cannot be had or has no chat template where one is needed.
        StageError: the run is prepared already, from something else.
    """
    inputs = find_inputs(names, config)
    source = model_source.resolve(
        config.model, reporter, weights=False, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    tokenizer = loading.load_tokenizer(source.path, config.trust_remote_code)
    if config.chat_template:
        tokenizer.chat_template = read_template(config.chat_template)
    hashes = hashes_of(inputs)
    key = key_of(inputs, hashes, tokenizer, config)
    if not overwrite and (recorded := recorded_result(run, key, reporter)):
        return recorded
    with run.stage("prepare", settings.of_command(config, "prepare"), hashes, overwrite) as record:
        # Both are complete before either takes the place of what was there.
        with replacing_directory(run.data) as data, replacing_directory(run.tokenizer) as frozen:
            result = fill(data, inputs, tokenizer, config, reporter)
            tokenizer.save_pretrained(frozen)
        record.outputs += ["data", "tokenizer"]
        record.facts |= {
            "key": key,
            "model": {"name": source.name, "revision": source.revision},
            "template": result.template,
            "seed": config.seed,
            "versions": versions(),
            "sources": list(names),
            "rows": result.rows,
            "tokens": result.tokens,
            "splits": result.splits,
        }
    return result


def hashes_of(inputs: Sequence[Input]) -> dict[str, str]:
    """sha256 of every file by its path; the standard input has only a name."""
    return {place_of(source): hash_file(source.path) for item in inputs for source in item.sources if source.path}


def place_of(source: Source) -> str:
    return source.name if source.path is None or source.name == STDIN_NAME else str(source.path.resolve())


def key_of(
    inputs: Sequence[Input], hashes: Mapping[str, str], tokenizer: PreTrainedTokenizerBase, config: Config
) -> str | None:
    """A hash of all that the prepared data depends on, or None where a source may change unseen (on the Hub)."""
    if any(source.path is None for item in inputs for source in item.sources):
        return None
    facts = {
        "version": DATA_VERSION,
        "sources": [[(source.name, hashes[place_of(source)]) for source in item.sources] for item in inputs],
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
        "settings": {name: value for name, value in settings.of_command(config, "prepare").items() if name != "chat_template"},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def recorded_result(run: RunDir, key: str | None, reporter: Reporter) -> PrepareResult | None:
    """What the run was prepared to, where that is what would come out again; None where it is not prepared.

    Raises:
        StageError: it was prepared from something else, or its data has changed since.
    """
    if not run.is_done("prepare"):
        return None
    entry = run.ledger()["stages"]["prepare"]
    if key is None or entry.get("key") != key:
        raise StageError(f"{run.path}: prepare is done already, from other data or settings", "to do it again, add --overwrite")
    run.require("prepare")
    reporter.note(f"{run.path} is prepared from the same data and settings already: nothing to do")
    return read_result(run.data / REPORT_FILE)


def fill(
    data: Path, inputs: list[Input], tokenizer: PreTrainedTokenizerBase, config: Config, reporter: Reporter
) -> PrepareResult:
    """Take the rows in and write the run's data.

    Raises:
        DataError: as `prepare`.
    """
    room = data / "room"
    encoder = ConversationEncoder(tokenizer, config.train_on)
    with RowSpool(room) as spool, Rejections(data) as rejections:
        near_duplicates = NearDuplicates(room) if config.near_duplicates else None
        intake = Intake(inputs, spool, rejections, Checks(byte_token_ids(tokenizer)), near_duplicates)
        take_in(intake, encoder, config, reporter)
        check_intake(intake, config)
        result = write_data(data, intake, encoder, config)
    shutil.rmtree(room)
    return result


def check_intake(intake: Intake, config: Config) -> None:
    """Refuse data of which nothing is left, or too much is bad."""
    bad, share = intake.bad, intake.bad / max(intake.read, 1)
    first = intake.rejections.first
    example = f"; the first: {first.source} line {first.line}: {first.reason}" if first else ""
    if not len(intake.spool):
        counts = f"{intake.read} read, {bad} rejected, {intake.losses.rows} too long"
        raise DataError(f"no row is left ({counts}){example}", "mend the rows, or say how to read them with --format")
    if share > config.max_rejected:
        raise DataError(
            f"{bad} of {intake.read} rows are bad, more than --max-rejected {config.max_rejected:.3g}{example}",
            "mend the rows, or raise --max-rejected to keep the rest",
        )
