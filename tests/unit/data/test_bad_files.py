"""Every documented data error, by its file in sample_data/bad/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llmft_cli import config
from llmft_cli.data.prepare import Intake, check_intake, take_in
from llmft_cli.data.readers import find_sources
from llmft_cli.data.rendering import ConversationEncoder
from llmft_cli.errors import DataError
from llmft_cli.progress import Silent

BAD = Path(__file__).parents[3] / "sample_data" / "bad"

# The bad row's line and reason; the two good rows beside it are kept.
BAD_ROWS = {
    "empty-answer.jsonl": (2, "message 2 (assistant) is empty"),
    "half-character.jsonl": (2, "messages[1].content has half a character (\\ud83d without its other half)"),
    "image-part.jsonl": (2, "messages[1].content[1] is of the type 'image_url', and only 'text' can be used"),
    "late-system-message.jsonl": (2, "message 3 is from system where user should speak"),
    "malformed-json.jsonl": (2, "malformed JSON: it ends too early"),
    "messages-not-a-list.jsonl": (2, "messages must be a list with messages, not text"),
    "missing-field.jsonl": (2, "output is null, not text"),
    "no-assistant-turn.jsonl": (2, "there is no assistant turn to learn from"),
    "not-an-object.jsonl": (2, "a row must be an object, not text"),
    "not-utf8.jsonl": (2, "not UTF-8 (byte 0xdf in column 33)"),
    "null-content.jsonl": (2, "messages[2].content is null, not text"),
    "ragged.csv": (4, "has 3 columns, the header has 2"),
    "stray-quote.csv": (2, "malformed CSV: ',' expected after '\"'"),
    "two-users-in-a-row.jsonl": (2, "message 2 is from user where assistant should speak"),
    "unanswered.jsonl": (2, "the last message is from user, with no answer to learn from"),
    "unknown-form.jsonl": (2, "no known form has the keys 'question', 'answer'"),
    "unknown-role.jsonl": (2, "messages[1] has the unknown role 'tool'"),
    "unknown-speaker.jsonl": (2, "conversations[1] is from the unknown speaker 'observation'"),
    "wrong-types.jsonl": (2, "messages[1].content is a number, not text"),
}

# What is said of a file that is refused as a whole; {file} is its path.
BAD_FILES = {
    "binary.jsonl": "{file} is a binary file, not text (byte 0 at offset 8)",
    "blank-text.txt": "no row is left (1 read, 1 rejected, 0 too long); the first: {file} line 1: text is empty",
    "broken-object.json": "{file} line 3: malformed JSON: Expecting ',' delimiter in column 21",
    "empty.json": "{file} is empty",
    "missing-comma.json": "{file} line 3: malformed JSON: Expecting ',' delimiter in column 1",
    "no-rows.json": "no row is left (0 read, 0 rejected, 0 too long)",
    "not-parquet.parquet": "{file} is not a readable Parquet file: Parquet magic bytes not found in footer. "
    "Either the file is corrupted or this is not a parquet file.",
    "not-utf8.txt": "{file} line 2 is not UTF-8 (byte 0xdf)",
    "only-a-bom.json": "{file} is empty",
    "text-after-array.json": "{file} line 2: malformed JSON: Extra data in column 1",
    "trailing-comma.json": "{file} line 3: malformed JSON: Illegal trailing comma before end of array in column 133",
    "truncated-array.json": "{file} line 3: malformed JSON: it ends too early",
    "two-commas.json": "{file} line 2: malformed JSON: Expecting value in column 140",
    "unclosed-quote.csv": "{file} line 3: a quote is opened and never closed",
    "unknown-type.xyz": "{file} has no type known here",
    "utf16.jsonl": "{file} is UTF-16, not UTF-8",
}


def intake_of(name: str, tokenizer: Any) -> Intake:
    return take_in(find_sources([str(BAD / name)]), ConversationEncoder(tokenizer), config.resolve({}), Silent())


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_set_aside_and_the_good_ones_are_kept(name: str, tiny_tokenizer: Any) -> None:
    intake = intake_of(name, tiny_tokenizer)
    assert [(row.source, row.line, row.reason) for row in intake.rejected] == [(str(BAD / name), *BAD_ROWS[name])]
    assert (intake.read, len(intake.rows)) == (3, 2)


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused(name: str, tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError) as caught:
        check_intake(intake_of(name, tiny_tokenizer), config.resolve({}))
    assert caught.value.message == BAD_FILES[name].format(file=BAD / name)


def test_every_bad_file_is_tested_and_documented() -> None:
    expected = {**BAD_ROWS, **BAD_FILES}
    assert {file.name for file in BAD.iterdir()} == set(expected)
    readme = (BAD.parent / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `bad/([^`]+)` \|[^|]+\| `(.+)` \|$", readme, re.MULTILINE))
    said = {name: f"line {text[0]}: {text[1]}" if isinstance(text, tuple) else text for name, text in expected.items()}
    assert rows == {name: text.replace("{file}", "FILE") for name, text in said.items()}
