"""prepare: from sources to the run's data, or a clear no before anything is written."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llmft_cli import config as settings
from llmft_cli import models
from llmft_cli.config import Config
from llmft_cli.data import store
from llmft_cli.data.formats import Conversation, Document, RowError, parse
from llmft_cli.data.packing import pack
from llmft_cli.data.readers import find_sources, read
from llmft_cli.data.rendering import IGNORED, ConversationEncoder, Encoded
from llmft_cli.data.report import PrepareResult, length_figures, packing_figures, reasons, token_figures
from llmft_cli.data.rows import BadRow, Row, Source
from llmft_cli.data.store import PreparedRow
from llmft_cli.errors import ConfigError, DataError, StageError
from llmft_cli.libraries import versions
from llmft_cli.progress import Reporter
from llmft_cli.run_dir import RunDir, hash_file, replacing_directory


@dataclass
class Intake:
    """Rows taken in so far, and what became of the others."""

    rows: list[PreparedRow] = field(default_factory=list)
    rejected: list[BadRow] = field(default_factory=list)
    overlength: list[BadRow] = field(default_factory=list)
    forms: Counter[str] = field(default_factory=Counter)
    read: int = 0
    duplicates: int = 0
    split_documents: int = 0


def prepare(run: RunDir, names: Sequence[str], config: Config, reporter: Reporter, overwrite: bool = False) -> PrepareResult:
    """Read, check, render, mask, tokenise, split and pack rows into `run.data`.

    Args:
        names: files, directories and Hub dataset ids.

    Raises:
        DataError: a source cannot be read, no row is left, or too many rows are bad.
        ModelError: the tokenizer cannot be had or has no chat template where one is needed.
        StageError: the run is prepared already.
    """
    if run.is_done("prepare") and not overwrite:
        raise StageError(f"{run.path}: prepare is done already", "to do it again, add --overwrite")
    sources = find_sources(names)
    template = read_template(config.chat_template)
    source = models.resolve(
        config.model, reporter, weights=False, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    tokenizer = models.load_tokenizer(source.path, config.trust_remote_code)
    tokenizer.chat_template = template or tokenizer.chat_template
    intake = take_in(sources, ConversationEncoder(tokenizer), config, reporter)
    check_intake(intake, config)
    train, validation = split_rows(intake.rows, config)
    sequences = sequences_of(train, config)
    result = summarise(intake, train, validation, sequences, config)
    inputs = {str(item.path.resolve()): hash_file(item.path) for item in sources if item.path is not None}
    with run.stage("prepare", settings.of_command(config, "prepare"), inputs, overwrite) as record:
        # Both are complete before either takes the place of what was there.
        with replacing_directory(run.data) as data, replacing_directory(run.tokenizer) as frozen:
            write_data(data, intake, train, validation, sequences, result)
            tokenizer.save_pretrained(frozen)
        record.outputs += ["data", "tokenizer"]
        record.facts |= {
            "model": {"name": source.name, "revision": source.revision},
            "seed": config.seed,
            "versions": versions(),
        }
        record.facts |= {"sources": list(names), "rows": result.rows, "tokens": result.tokens, "splits": result.splits}
    return result


def read_template(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the chat template {file} cannot be read: {error}") from error


def take_in(sources: Sequence[Source], encoder: ConversationEncoder, config: Config, reporter: Reporter) -> Intake:
    """Read and encode every row; the bad, over-long and repeated ones are set aside and counted."""
    intake = Intake()
    seen: set[tuple[int, ...]] = set()
    with reporter.track("reading", total=len(sources)) as advance:
        for source in sources:
            for row in read(source, config.dataset_split):
                intake.read += 1
                try:
                    prepared = prepare_row(row, encoder, config, intake)
                except RowError as error:
                    intake.rejected.append(BadRow(row.source, row.line, str(error)))
                    continue
                for item in prepared:
                    key = tuple(item.encoded.input_ids)
                    if key in seen:
                        intake.duplicates += 1
                    elif item.length > config.max_seq_length:
                        reason = f"{item.length} tokens, more than --max-seq-length {config.max_seq_length}"
                        intake.overlength.append(BadRow(item.source, item.line, reason))
                    else:
                        seen.add(key)
                        intake.rows.append(item)
            advance(1)
    return intake


def prepare_row(row: Row | BadRow, encoder: ConversationEncoder, config: Config, intake: Intake) -> list[PreparedRow]:
    """A row's encodings: one for a conversation, one per `max_seq_length` tokens for a document."""
    if isinstance(row, BadRow):
        raise RowError(row.reason)
    form, example = parse(row.value, config.format)
    if isinstance(example, Conversation):
        prepared = [PreparedRow(row.source, row.line, example, encoder.conversation(example.messages))]
    else:
        assert isinstance(example, Document)
        parts = document_parts(example, encoder, config.max_seq_length)
        if not parts:
            raise RowError("the text is a single token, with nothing to learn")
        intake.split_documents += len(parts) > 1
        prepared = [PreparedRow(row.source, row.line, example, part) for part in parts]
    intake.forms[form] += 1
    return prepared


def document_parts(document: Document, encoder: ConversationEncoder, capacity: int) -> list[Encoded]:
    """A text as rows of at most `capacity` tokens; every token but a row's first, which nothing predicts, is supervised."""
    ids = encoder.document(document.text)
    parts = [ids[start : start + capacity] for start in range(0, len(ids), capacity)]
    return [Encoded(part, [IGNORED, *part[1:]]) for part in parts if len(part) > 1]


def check_intake(intake: Intake, config: Config) -> None:
    """Refuse data of which nothing is left, or too much is bad."""
    bad, share = len(intake.rejected), len(intake.rejected) / max(intake.read, 1)
    first = next(iter(intake.rejected or intake.overlength), None)
    example = f"; the first: {first.source} line {first.line}: {first.reason}" if first else ""
    if not intake.rows:
        counts = f"{intake.read} read, {bad} rejected, {len(intake.overlength)} too long"
        raise DataError(f"no row is left ({counts}){example}", "mend the rows, or say how to read them with --format")
    if share > config.max_rejected:
        raise DataError(
            f"{bad} of {intake.read} rows are bad, more than --max-rejected {config.max_rejected:.3g}{example}",
            "mend the rows, or raise --max-rejected to keep the rest",
        )


def split_rows(rows: Sequence[PreparedRow], config: Config) -> tuple[list[PreparedRow], list[PreparedRow]]:
    """Training and validation rows by seed; at least one row stays for training, and one is held out if any shall be."""
    wanted = config.val_size if config.val_size >= 1 else config.val_size * len(rows)
    count = min(max(round(wanted), 1 if config.val_size else 0), len(rows) - 1)
    held_out = set(random.Random(config.seed).sample(range(len(rows)), count))
    return (
        [row for index, row in enumerate(rows) if index not in held_out],
        [row for index, row in enumerate(rows) if index in held_out],
    )


def sequences_of(rows: Sequence[PreparedRow], config: Config) -> list[list[int]]:
    if not config.packing:
        return [[index] for index in range(len(rows))]
    return pack([row.length for row in rows], config.max_seq_length)


def summarise(
    intake: Intake,
    train: Sequence[PreparedRow],
    validation: Sequence[PreparedRow],
    sequences: Sequence[Sequence[int]],
    config: Config,
) -> PrepareResult:
    return PrepareResult(
        rows={
            "read": intake.read,
            "kept": len(intake.rows),
            "rejected": len(intake.rejected),
            "duplicates": intake.duplicates,
            "overlength": len(intake.overlength),
        },
        tokens=token_figures(intake.rows),
        splits={"train": len(train), "validation": len(validation)},
        packing=packing_figures([row.length for row in train], sequences, config.max_seq_length),
        lengths=length_figures([row.length for row in intake.rows]),
        forms=dict(intake.forms),
        documents_split=intake.split_documents,
        rejected_reasons=reasons(intake.rejected),
    )


def write_data(
    folder: Path,
    intake: Intake,
    train: Sequence[PreparedRow],
    validation: Sequence[PreparedRow],
    sequences: Sequence[Sequence[int]],
    result: PrepareResult,
) -> None:
    store.write_split(folder / store.TRAIN, train, sequences)
    if validation:
        store.write_split(folder / store.VALIDATION, validation, [[index] for index in range(len(validation))])
    held_out = [row.example.messages for row in validation if isinstance(row.example, Conversation)]
    prompts = [{"messages": messages[:-1], "expected": messages[-1]["content"]} for messages in held_out]
    store.write_json_lines(folder / store.HELD_OUT_FILE, prompts)
    bad = sorted(intake.rejected + intake.overlength, key=lambda row: (row.source, row.line))
    store.write_json_lines(folder / store.REJECTED_FILE, [vars(row) for row in bad])
    (folder / store.REPORT_FILE).write_text(json.dumps(asdict(result), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
