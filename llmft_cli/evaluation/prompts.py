"""Prompts to evaluate on: from a file, or the run's held-out rows. All are checked before a model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmft_cli.base.errors import DataError
from llmft_cli.base.reporter import Reporter
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.examples import Message, RowError
from llmft_cli.data.forms.fields import shown_keys
from llmft_cli.data.forms.prompt_rows import EXPECTED, PromptRow, parse_prompt
from llmft_cli.data.reading.compression import UTF_8_BOM, lines_with_ends
from llmft_cli.data.reading.json_rows import read_json, read_jsonl
from llmft_cli.data.reading.json_text import utf_8_error_text
from llmft_cli.data.reading.rows import UTF_8, BadRow, Row, Source
from llmft_cli.data.reading.sources import file_source, suffix_and_compression
from llmft_cli.data.store import HELD_OUT_FILE
from llmft_cli.run_dir.artifacts import reading
from llmft_cli.run_dir.run import RunDir

READERS = {".jsonl": read_jsonl, ".json": read_json}
FORMS = "give a .txt with one prompt per line, or a .jsonl with `prompt` and `expected`"


@dataclass(frozen=True)
class Prompt:
    """Messages for the assistant to answer, every right answer if any is expected, and the row's file and line."""

    messages: list[Message]
    expected: list[str] | None
    where: str


def held_out_prompts(run: RunDir, reporter: Reporter) -> list[Prompt]:
    """The prompts of the run's held-out rows; none if nothing was held out.

    Raises:
        StageError: their file is missing or damaged.
    """
    file = run.data / HELD_OUT_FILE
    with reading(run, file):
        if file.is_file() and not file.stat().st_size:
            return []
        return read_prompts(file, reporter)


def read_prompts(path: Path, reporter: Reporter, merge_turns: bool = False) -> list[Prompt]:
    """The prompts in a file: one per line in `.txt`; in `.jsonl` objects as `parse_prompt` reads them.

    Args:
        merge_turns: whether to join neighbouring messages of the same role.

    Raises:
        DataError: the file is missing, empty or of another type, or some rows are not prompts.
    """
    if suffix_and_compression(path)[0] not in (".txt", *READERS):
        raise DataError(f"{path} is not a prompt file", FORMS)
    source = file_source(str(path), path, UTF_8)
    if source.suffix not in READERS:
        return list(prompts_in_text(source))
    prompts, choices, problems, unread = [], Counter[str](), [], []
    for row in READERS[source.suffix](source):
        where = f"{row.source} line {row.line}"
        try:
            found = parsed(row, merge_turns)
        except RowError as error:
            problems.append(f"{where}: {error}")
            continue
        prompts.append(Prompt(found.messages, found.expected, where))
        choices.update(found.choices)
        if found.expected is None and isinstance(row, Row):
            is_list = isinstance(row.value, list)
            unread.append(f"{where} {'is a list' if is_list else f'has the keys {shown_keys(row.value)}'}")
    refuse(problems)
    for choice, count in choices.items():
        reporter.note(f"{source.name}: {choice} (rows: {count:,})")
    if unread:
        answer = f"name the right answer `{EXPECTED}` to score it: {unread[0]}"
        reporter.note(f"{len(unread):,} of {len(prompts):,} prompts have no expected answer; {answer}")
    return prompts


def parsed(row: Row | BadRow, merge_turns: bool) -> PromptRow:
    if isinstance(row, BadRow):
        raise RowError(row.reason)
    return parse_prompt(row.value, merge_turns)


def prompts_in_text(source: Source) -> Iterator[Prompt]:
    """A prompt for each line that is not blank; only line feeds and carriage returns end a line."""
    for number, line in enumerate(lines_with_ends(source), 1):
        where = f"{source.name} line {number}"
        try:
            text = line.removeprefix(UTF_8_BOM).decode().strip()
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: {utf_8_error_text(error)}", "save it as UTF-8") from error
        if text:
            yield Prompt([{"role": "user", "content": text}], None, where)


def encode_prompts(encoder: ConversationEncoder, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The token ids of each prompt.

    Raises:
        DataError: the chat template rejects some of them.
    """
    ids, problems = [], []
    for prompt in prompts:
        try:
            ids.append(encoder.prompt(prompt.messages))
        except RowError as error:
            problems.append(f"{prompt.where} cannot be rendered: {error}")
    refuse(problems)
    return ids


def refuse(problems: Sequence[str]) -> None:
    """Raise the one error for all rows that cannot be prompts: the first, and how many there are."""
    if problems:
        others = f" (and {len(problems) - 1:,} more)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{others}", "correct or remove them, or give other prompts: llmft eval --prompts FILE")
