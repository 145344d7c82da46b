"""Malformed input: every documented error with its file in sample_data/bad/, and many more."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.base.errors import DataError
from llmft_cli.base.reporter import Silent
from llmft_cli.data.forms.examples import RowError
from llmft_cli.data.forms.formats import parse
from llmft_cli.data.prepare import prepare
from llmft_cli.data.reading.readers import read
from llmft_cli.data.reading.rows import BadRow
from llmft_cli.data.reading.sources import SUPPORTED, find_sources
from llmft_cli.data.store import REJECTED_FILE
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings import config

# What reads a file that has too few such bytes to recognise its encoding.
CURE = "if the file is not UTF-8, name its encoding: --encoding cp1252"
BAD = Path(__file__).parents[3] / "sample_data" / "bad"

# The bad row's line and reason; the two good rows are kept.
BAD_ROWS = {
    "byte-0.jsonl": (2, "NUL byte in column 21"),
    "carriage-return.jsonl": (2, "a carriage return instead of a line feed ends the row before column 48"),
    "empty-answer.jsonl": (2, "message 2 (assistant) is empty"),
    "half-character.jsonl": (2, "messages[1].content has a lone surrogate (\\ud83d)"),
    "header-again.csv": (3, "repeats the header"),
    "image-part.jsonl": (2, "the row has an image, which a text model cannot learn from (messages[1].content[1])"),
    "malformed-json.jsonl": (2, "malformed JSON: unexpected end"),
    "messages-not-a-list.jsonl": (2, "messages must be a list of messages, not text"),
    "missing-field.jsonl": (2, "output is null, not text"),
    "no-assistant-turn.jsonl": (2, "there is no assistant turn to learn from"),
    "not-an-object.jsonl": (2, "a row must be an object, not text"),
    "not-utf8.csv": (3, f"not UTF-8 (byte 0xdf in column 8); {CURE}"),
    "not-utf8.jsonl": (2, f"not UTF-8 (byte 0xdf in column 33); {CURE}"),
    "null-content.jsonl": (2, "messages[2].content is null, not text"),
    "python-literals.jsonl": (
        2,
        "malformed JSON: Expecting property name enclosed in double quotes in column 2",
    ),
    "ragged.csv": (4, "has 3 columns, the header has 2"),
    "repeated-key.jsonl": (2, "duplicate key 'prompt' in an object"),
    "stray-quote.csv": (2, "malformed CSV: ',' expected after '\"'"),
    "unanswered.jsonl": (2, "the last message is from user, with no answer to learn from"),
    "unknown-form.jsonl": (2, "no known format has the keys 'source', 'target'"),
    "unknown-role.jsonl": (2, "messages[1] has the unknown role 'moderator'"),
    "unknown-speaker.jsonl": (2, "conversations[1] is from the unknown speaker 'moderator'"),
    "wrong-types.jsonl": (2, "messages[1].content is a number, not text"),
}

# The error for a file that is rejected as a whole; {file} is its path.
BAD_FILES = {
    "binary.jsonl": "{file} is a binary file, not text (NUL byte at offset 8)",
    "broken-object.json": "{file} line 3: malformed JSON: Expecting ',' delimiter in column 21",
    "column-without-name.csv": "{file} line 1: column 2 of the header has no name",
    "cut-off.jsonl.gz": "{file} line 5: the gzip data ends unexpectedly here",
    "empty.json": "{file} is empty",
    "gzip.jsonl": "{file} is gzip data",
    "missing-comma.json": "{file} line 3: malformed JSON: Expecting ',' delimiter in column 1",
    "no-header.csv": "{file} line 1: the first line looks like a row, not like a header: 'Who wrote Emma?'",
    "not-gzip.jsonl.gz": "{file} is not gzip data, despite its name",
    "not-parquet.parquet": "{file} is not a readable Parquet file: Parquet magic bytes not found in footer. "
    "Either the file is corrupted or this is not a parquet file.",
    "not-utf8.txt": "{file} line 2 is not UTF-8 (byte 0xdf)",
    "only-a-bom.json": "{file} is empty",
    "same-column-twice.csv": "{file} line 1: the column 'prompt' appears more than once",
    "text-after-array.json": "{file} line 2: malformed JSON: Extra data in column 1",
    "trailing-comma.json": "{file} line 3: malformed JSON: Illegal trailing comma before end of array in column 133",
    "truncated-array.json": "{file} line 3: malformed JSON: unexpected end",
    "two-commas.json": "{file} line 2: malformed JSON: Expecting value in column 140",
    "unclosed-quote.csv": "{file} line 3: a quote is never closed",
    "unknown-type.xyz": "{file} has an unknown file type",
}

# Files without a usable row.
NO_ROWS: dict[str, list[tuple[int, str]]] = {
    "blank-text.txt": [(1, "text is empty")],
    "no-rows.json": [],
}


def outcome(path: Path) -> tuple[list[int], list[tuple[int, str]]]:
    """The line numbers of a file's good rows, and of its bad ones with the reasons."""
    kept, rejected = [], []
    (source,) = find_sources([str(path)])
    for row in read(source, "train"):
        assert row.source == str(path)
        if isinstance(row, BadRow):
            rejected.append((row.line, row.reason))
            continue
        try:
            parse(row.value)
            kept.append(row.line)
        except RowError as error:
            rejected.append((row.line, str(error)))
    return kept, rejected


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        outcome(path)
    return caught.value.message


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_set_aside_and_the_good_ones_are_kept(name: str) -> None:
    kept, rejected = outcome(BAD / name)
    assert rejected == [BAD_ROWS[name]]
    assert len(kept) == 2


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused(name: str) -> None:
    assert refusal(BAD / name) == BAD_FILES[name].format(file=BAD / name)


@pytest.mark.parametrize("name", NO_ROWS)
def test_a_file_without_a_good_row(name: str) -> None:
    assert outcome(BAD / name) == ([], NO_ROWS[name])


def test_every_bad_file_is_tested_and_documented() -> None:
    readme = (BAD / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([^`]+)` \|[^|]+\| `(.+)` \|$", readme, re.MULTILINE))
    said = {name: f"line {line}: {reason}" for name, (line, reason) in BAD_ROWS.items()}
    said |= {name: text.replace("{file}", "FILE") for name, text in BAD_FILES.items()}
    assert {name: text for name, text in rows.items() if name not in NO_ROWS} == said
    assert rows.keys() == said.keys() | NO_ROWS.keys()
    assert {file.name for file in BAD.iterdir()} == rows.keys() | {"README.md"}


GOOD = '{"prompt": "a", "completion": "b"}'
TURNS = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'

# One bad line between two good ones, and why it is bad.
BAD_LINES: dict[str, tuple[str | bytes, str]] = {
    "cut in a text": ('{"prompt": "a", "compl', "malformed JSON: Unterminated string starting in column 17"),
    "cut behind a colon": ('{"prompt":', "malformed JSON: unexpected end"),
    "single quotes": ("{'prompt': 'a'}", "malformed JSON: Expecting property name enclosed in double quotes in column 2"),
    "key without quotes": ('{prompt: "a"}', "malformed JSON: Expecting property name enclosed in double quotes in column 2"),
    "typographic quotes": ("{“prompt”: “a”}", "malformed JSON: Expecting property name enclosed in double quotes in column 2"),
    "None of Python": ('{"prompt": None}', "malformed JSON: Expecting value in column 12"),
    "text without quotes": ('{"prompt": hello}', "malformed JSON: Expecting value in column 12"),
    "missing colon": ('{"prompt" "a"}', "malformed JSON: Expecting ':' delimiter in column 11"),
    "missing comma": ('{"prompt": "a" "completion": "b"}', "malformed JSON: Expecting ',' delimiter in column 16"),
    "wrong bracket": ('{"prompt": "a"]}', "malformed JSON: Expecting ',' delimiter in column 15"),
    "comma between rows": (GOOD + ",", "malformed JSON: Extra data in column 35"),
    "two rows on a line": (GOOD + GOOD, "malformed JSON: Extra data in column 35"),
    "carriage return between rows": (
        GOOD + "\r" + GOOD,
        "a carriage return instead of a line feed ends the row before column 36",
    ),
    "end of an array": ("]", "malformed JSON: Expecting value in column 1"),
    "comment": ("// one more", "malformed JSON: Expecting value in column 1"),
    "conflict of a merge": ("<<<<<<< HEAD", "malformed JSON: Expecting value in column 1"),
    "CSV": ("a,b", "malformed JSON: Expecting value in column 1"),
    "byte order mark within": ('{"prompt": \ufeff"a"}', "malformed JSON: Expecting value in column 12"),
    "tab in a text": ('{"prompt": "a\tb"}', "malformed JSON: Invalid control character in column 14"),
    "bell in a text": ('{"prompt": "\a"}', "malformed JSON: Invalid control character in column 13"),
    "unknown escape": ('{"prompt": "\\x41"}', "malformed JSON: Invalid \\escape in column 13"),
    "broken unicode escape": ('{"prompt": "\\u12g4"}', "malformed JSON: Invalid \\uXXXX escape in column 14"),
    "number that starts with 0": ('{"prompt": 01}', "malformed JSON: Expecting ',' delimiter in column 13"),
    "minus without a number": ('{"prompt": -}', "malformed JSON: Expecting value in column 12"),
    "huge number": ('{"prompt": %s}' % ("1" * 5000), "a number with thousands of digits"),
    "nested too deeply": ("[" * 100_000, "malformed JSON: nested too deeply"),
    "key twice": ('{"prompt": "a", "prompt": "c", "completion": "b"}', "duplicate key 'prompt' in an object"),
    "key twice in a message": (
        '{"messages": [{"role": "user", "content": "a", "role": "assistant"}]}',
        "duplicate key 'role' in an object",
    ),
    "bytes 0": (b"\0" * 20, "NUL byte in column 1"),
    "byte 0 in a text": (b'{"prompt": "a\0"}', "NUL byte in column 14"),
    "UTF-16": (GOOD.encode("utf-16-le"), "NUL byte in column 2"),
    "Latin-1": (b'{"prompt": "\xe4"}', f"not UTF-8 (byte 0xe4 in column 13); {CURE}"),
    "cut character": (b'{"prompt": "\xc3"}', f"not UTF-8 (byte 0xc3 in column 13); {CURE}"),
    "encoded surrogate": (b'{"prompt": "\xed\xa0\x80"}', f"not UTF-8 (byte 0xed in column 13); {CURE}"),
    "overlong encoding": (b'{"prompt": "\xc0\xaf"}', f"not UTF-8 (byte 0xc0 in column 13); {CURE}"),
    "half a character": (
        '{"prompt": "\\ud83d", "completion": "b"}',
        "prompt has a lone surrogate (\\ud83d)",
    ),
    "not a number": ('{"prompt": NaN, "completion": "b"}', "prompt is a number, not text"),
    "infinity": ('{"prompt": "a", "completion": -Infinity}', "completion is a number, not text"),
    "null": ("null", "a row must be an object, not null"),
    "number": ("12", "a row must be an object, not a number"),
    "true": ("true", "a row must be an object, not true/false"),
    "list": ("[1, 2]", "a row must be an object, not a list"),
    "text": ('"a"', "a row must be an object, not text"),
    "empty object": ("{}", "the object is empty"),
    "unknown form": ('{"source": "a"}', "no known format has the keys 'source'"),
}


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".jsonl.gz"])
@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_between_good_ones(kind: str, ending: str, tmp_path: Path) -> None:
    line, reason = BAD_LINES[kind]
    content = GOOD.encode() + b"\n" + (line.encode() if isinstance(line, str) else line) + b"\n" + TURNS.encode()
    path = tmp_path / f"rows{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    assert outcome(path) == ([1, 3], [(2, reason)])


def test_there_are_at_least_forty_kinds_of_bad_rows() -> None:
    assert len(BAD_LINES) >= 40


# A whole file, the lines of its good rows, and its bad ones.
MIXED_FILES: dict[str, tuple[str, str | bytes, list[int], list[tuple[int, str]]]] = {
    "line feed in a text": (
        ".jsonl",
        f'{GOOD}\n{{"prompt": "a\nb"}}\n{GOOD}',
        [1, 4],
        [
            (2, "malformed JSON: Unterminated string starting in column 12"),
            (3, "malformed JSON: Expecting value in column 1"),
        ],
    ),
    "object over several lines": (
        ".jsonl",
        f'{GOOD}\n{{\n"prompt": "a"\n}}\n{GOOD}',
        [1, 5],
        [
            (2, "malformed JSON: unexpected end"),
            (3, "malformed JSON: Extra data in column 9"),
            (4, "malformed JSON: Expecting value in column 1"),
        ],
    ),
    "key twice in an array": (
        ".json",
        f'[\n{GOOD},\n{{"prompt": "a", "prompt": "b"}},\n{GOOD}]',
        [2, 4],
        [(3, "duplicate key 'prompt' in an object")],
    ),
    "huge number in an array": (
        ".json",
        f'[\n{GOOD},\n{{"prompt": {"1" * 5000}}},\n{GOOD}]',
        [2, 4],
        [(3, "a number with thousands of digits")],
    ),
    "text in an array": (".json", f'[{GOOD},\n"a",\n{GOOD}]', [1, 3], [(2, "a row must be an object, not text")]),
    "cut line under .json": (
        ".json",
        f'{GOOD}\n{{"prompt": "a"\n{GOOD}',
        [1, 3],
        [(2, "malformed JSON: unexpected end")],
    ),
    "too many cells": (
        ".csv",
        "prompt,completion\na,b\nc,d,e\nf,g\n",
        [2, 4],
        [(3, "has 3 columns, the header has 2")],
    ),
    "too few cells": (".tsv", "prompt\tcompletion\na\tb\nc\nf\tg\n", [2, 4], [(3, "has 1 columns, the header has 2")]),
    "blank cells": (".csv", "prompt,completion\na,b\n,\nf,g\n", [2, 4], [(3, "message 1 (user) is empty")]),
    "quote closed too early": (
        ".csv",
        'prompt,completion\na,b\n"c"d,e\nf,g\n',
        [2, 4],
        [(3, "malformed CSV: ',' expected after '\"'")],
    ),
    "quote that swallows a row": (
        ".csv",
        'prompt,completion\na,b\n"c,d\ne,f\n"g",h\ni,j\n',
        [2, 6],
        [(3, "malformed CSV: ',' expected after '\"' (the row runs to line 5)")],
    ),
    "Latin-1 in a table": (
        ".csv",
        b"prompt,completion\na,b\n\xe4,e\nf,g\n",
        [2, 4],
        [(3, f"not UTF-8 (byte 0xe4 in column 1); {CURE}")],
    ),
    "Latin-1 on a later line of a cell": (
        ".csv",
        b'prompt,completion\na,b\n"x\n\xe4",e\nf,g\n',
        [2, 5],
        [(3, f"not UTF-8 (byte 0xe4 in column 1) on line 4; {CURE}")],
    ),
    "byte 0 in a table": (".csv", b"prompt,completion\na,b\nc\0,e\nf,g\n", [2, 4], [(3, "NUL byte in column 2")]),
    "joined tables": (
        ".csv",
        "prompt,completion\na,b\n\ufeffprompt,completion\nf,g\n",
        [2, 4],
        [(3, "repeats the header")],
    ),
}


@pytest.mark.parametrize("kind", MIXED_FILES)
def test_good_and_bad_rows_of_a_file(kind: str, tmp_path: Path) -> None:
    ending, content, kept, rejected = MIXED_FILES[kind]
    path = tmp_path / f"rows{ending}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert outcome(path) == (kept, rejected)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = "not data: a download may have saved an error or a login page"
PAGE_CURE = "download the file itself; on the Hub, its address has /resolve/ where that of its page has /blob/"
# A file that is rejected as a whole, the error after its path, and the hint.
REFUSED: dict[str, tuple[str, str | bytes, str, str]] = {
    "gzip under another name": (
        "rows.jsonl",
        gzip.compress(GOOD.encode()),
        " is gzip data",
        "rename it to {file}.gz",
    ),
    "Zstandard under another name": ("rows.csv", b"\x28\xb5\x2f\xfd...", " is zstd data", "rename it to {file}.zst"),
    "zip": ("rows.jsonl", b"PK\x03\x04...", " is zip data", "unpack it first"),
    "bzip2": ("rows.jsonl", b"BZh9...", " is bzip2 data", "unpack it first"),
    "xz": ("rows.txt", b"\xfd7zXZ\0...", " is xz data", "unpack it first"),
    "7-Zip": ("rows.txt", b"7z\xbc\xaf\x27\x1c...", " is 7-Zip data", "unpack it first"),
    "archive in an archive": (
        "rows.jsonl.gz",
        gzip.compress(gzip.compress(GOOD.encode())),
        " contains a gzip archive inside the gzip data",
        "unpack it first",
    ),
    "tar": ("rows.tar.gz", gzip.compress(b"..."), " has an unknown file type", "{readable}"),
    "no gzip": ("rows.jsonl.gz", GOOD, " is not gzip data, despite its name", "remove .gz from its name"),
    "no Zstandard": ("rows.csv.zst", "a,b", " is not zstd data, despite its name", "remove .zst from its name"),
    "empty gzip file": ("rows.jsonl.gz", b"", " is empty", ""),
    "gzip of nothing": ("rows.jsonl.gz", gzip.compress(b""), " is empty", ""),
    "gzip of spaces": ("rows.jsonl.gz", gzip.compress(b" \n"), " is empty", ""),
    "gzip cut in its header": (
        "rows.jsonl.gz",
        gzip.compress(GOOD.encode())[:5],
        " line 1: the gzip data ends unexpectedly here",
        "copy or create the file again",
    ),
    "gzip with a wrong checksum": (
        "rows.jsonl.gz",
        gzip.compress(f"{GOOD}\n{GOOD}\n{GOOD}".encode())[:-8] + b"12345678",
        " line 1: the gzip data is damaged here",
        "copy or create the file again",
    ),
    "text behind gzip": (
        "rows.jsonl.gz",
        gzip.compress(f"{GOOD}\n{GOOD}".encode()) + b"text",
        " line 2: the gzip data is damaged here",
        "copy or create the file again",
    ),
    "Parquet under another name": ("rows.jsonl", b"PAR1...", " is Parquet data", "rename it to end in .parquet"),
    "Arrow under another name": ("rows.json", b"ARROW1\0\0", " is Arrow data", "rename it to end in .arrow"),
    "Latin-1 document": ("a.txt", b"a\nb\xe4", " line 2 is not UTF-8 (byte 0xe4)", CURE),
    "byte 0 in a document": ("a.md", b"a\nb\0", " line 2: a NUL byte, so this is not text", ""),
    "Latin-1 in an array": ("a.json", b'[{"a": "b"},\n{"a": "\xe4"}]', " line 2 is not UTF-8 (byte 0xe4)", CURE),
    "array cut in a character": ("a.json", b'[{"a": "b"},\n{"a": "\xc3', " line 2 is not UTF-8 (byte 0xc3)", CURE),
    "HTML": ("a.json", "<html></html>", f" is an HTML page, {PAGE}", PAGE_CURE),
    "HTML with a declaration": ("a.csv", "\ufeff\n<!DOCTYPE html>\n<html>", f" is an HTML page, {PAGE}", PAGE_CURE),
    "HTML under the name of a table": ("a.parquet", "<!doctype HTML><html>", f" is an HTML page, {PAGE}", PAGE_CURE),
    "error of a server": ("a.jsonl", "<?xml version='1.0'?><Error/>", f" is XML, {PAGE}", PAGE_CURE),
    "Git LFS pointer": ("a.jsonl", POINTER, " is a Git LFS pointer, not the data itself", "{pull}"),
    "Git LFS pointer of a table": ("a.parquet", POINTER, " is a Git LFS pointer, not the data itself", "{pull}"),
    "Git LFS pointer of a gzip file": ("a.json.gz", POINTER, " is a Git LFS pointer, not the data itself", "{pull}"),
    "Excel workbook": ("a.csv", b"PK\x03\x04..[Content_Types].xml", " is an Excel workbook", "save its sheet as CSV"),
    "workbook": ("a.xlsx", b"PK\x03\x04..xl/workbook.xml", " is an Excel workbook", "save its sheet as CSV"),
    "archive": ("a.zip", b"PK\x03\x04...", " is zip data", "unpack it first"),
    "Parquet without a type": ("a", b"PAR1...", " is Parquet data", "rename it to end in .parquet"),
    "zip under the name of a table": ("a.parquet", b"PK\x03\x04...", " is zip data", "unpack it first"),
    "Parquet under the name of Arrow": ("a.arrow", b"PAR1...", " is Parquet data", "rename it to end in .parquet"),
    "broken second object": (
        "a.json",
        '{\n"text": "a"\n}\n{\n"text" "b"\n}',
        " line 5: malformed JSON: Expecting ':' delimiter in column 8",
        "",
    ),
    "text behind an object": ("a.json", '{\n"text": "a"\n}\nx', " line 4: malformed JSON: Extra data in column 1", ""),
    "text behind wrapped rows": ("a.json", '{"data": [{}]}x', " line 1: malformed JSON: Extra data in column 15", ""),
    "column twice": ("a.csv", "a,b,a\n1,2,3", " line 1: the column 'a' appears more than once", ""),
    "column without a name": ("a.csv", "a, ,b\n1,2,3", " line 1: column 2 of the header has no name", ""),
    "no header": (
        "a.csv",
        "a" * 300 + ",b\nc,d",
        f" line 1: not a header: column 1 has 300 characters ({'a' * 30!r}...)",
        "the first line of a table names its columns, such as prompt,completion",
    ),
    "sentences as a header": (
        "a.csv",
        "What is it?;A cat.\nWho?;Me.",
        " line 1: the first line looks like a row, not like a header: 'What is it?'",
        "the first line of a table names its columns, such as prompt,completion; "
        "if it does, say which is which: --columns prompt=NAME,completion=NAME",
    ),
    "messages as a header": (
        "a.csv",
        "id,\"[{'role': 'user', 'content': 'q'}]\"\n2,\"[{'role': 'user', 'content': 'q'}]\"",
        " line 1: the first line looks like a row, not like a header: \"[{'role': 'u...ntent': 'q'}]\"",
        "the first line of a table names its columns, such as prompt,completion; "
        "if it does, say which is which: --columns prompt=NAME,completion=NAME",
    ),
    "Latin-1 header": ("a.csv", b"pr\xe4,c\na,b", " line 1: header: not UTF-8 (byte 0xe4 in column 3)", CURE),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_is_refused_as_a_whole(kind: str, tmp_path: Path) -> None:
    name, content, message, hint = REFUSED[kind]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        outcome(path)
    assert caught.value.message == f"{path}{message}"
    assert caught.value.hint == hint.format(
        file=path, readable=SUPPORTED, pull=f"fetch the files that Git LFS keeps: git -C {tmp_path} lfs pull"
    )


def write_parquet(path: Path, columns: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_parquet_rows_that_python_cannot_hold(tmp_path: Path) -> None:
    import pyarrow

    path = tmp_path / "rows.parquet"
    times = pyarrow.array([1, 2**62, 3], pyarrow.timestamp("us"))
    write_parquet(path, {"text": ["a", "b", "c"], "time": times})
    assert outcome(path) == ([1, 3], [(2, "the column 'time': date value out of range")])
    sizes, values = pyarrow.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0])), pyarrow.py_buffer(b"a\xe4")
    write_parquet(path, {"text": pyarrow.StringArray.from_buffers(2, sizes, values)})
    assert outcome(path) == ([1], [(2, "the column 'text' is not UTF-8 (byte 0xe4)")])


def test_parquet_files_that_are_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    write_parquet(path, {"text": []})
    assert outcome(path) == ([], [])
    write_parquet(path, pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["x", "x"]))
    assert refusal(path) == f"{path}: the column 'x' appears more than once"
    write_parquet(path, {"text": [f"row {number}" * 20 for number in range(20_000)]})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    assert re.fullmatch(
        rf"{path} is not a readable Parquet file after row \d+: Corrupt snappy compressed data\.", refusal(path)
    )
    path.write_bytes(content[:4])
    assert refusal(path) == (
        f"{path} is not a readable Parquet file: Parquet file size is 4 bytes, smaller than the minimum file footer (8 bytes)"
    )


def test_arrow_files_that_are_refused(tmp_path: Path) -> None:
    import pyarrow

    table, path = pyarrow.table({"text": ["abc", "def"]}), tmp_path / "rows.arrow"
    with pyarrow.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    whole_file = path.read_bytes()
    with pyarrow.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
        stream.write_table(table)
    whole_stream = path.read_bytes()
    offsets = bytes([0, 0, 0, 0, 3, 0, 0, 0, 6, 0, 0, 0])
    for content, complaint in (
        (whole_file[: len(whole_file) // 2], ": Not an Arrow file"),
        (whole_file[:6], ": File is too small: 6"),
        (whole_stream[:-60], " after row 2: Expected to read 152 metadata bytes, but only read 124"),
        (b"FEA1 is older", ": Expected to read 826361158 metadata bytes, but only read 9"),
        (
            whole_stream.replace(offsets, bytes([0, 0, 0, 0, 99, 0, 0, 0, 6, 0, 0, 0]), 1),
            ": In column 0: Invalid: Offset invariant failure: offset for slot 1 out of bounds: 99 > 6",
        ),
        (whole_stream.replace(b"abc", b"ab\xe4", 1), ": In column 0: Invalid: Invalid UTF8 sequence at string index 0"),
    ):
        path.write_bytes(content)
        assert refusal(path) == f"{path} is not a readable Arrow file{complaint}"


# -- through the whole of prepare


def rejected_by_prepare(run: RunDir, file: Path, tokenizer_dir: Path) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """The row counts of a file, and its rows in rejected.jsonl."""
    settings = config.resolve({"model": str(tokenizer_dir), "max_rejected": 1.0})
    result = prepare(run, [str(file)], settings, Silent())
    lines = (run.data / REJECTED_FILE).read_text(encoding="utf-8").splitlines()
    return result.rows, [json.loads(line) for line in lines]


def test_every_bad_line_among_good_ones_is_written_down_by_prepare(tmp_path: Path, tokenizer_dir: Path) -> None:
    path, content, expected = tmp_path / "rows.jsonl", b"", []
    for number, (line, reason) in enumerate(BAD_LINES.values()):
        content += f'{{"prompt": "What is {number}?", "completion": "It is {number * 7919}."}}\n'.encode()
        content += (line.encode() if isinstance(line, str) else line) + b"\n"
        # Other lines show that this file is UTF-8, so no other encoding is offered.
        reason = reason.removesuffix(f"; {CURE}")
        expected.append({"source": str(path), "line": 2 * number + 2, "reason": reason})
    path.write_bytes(content)
    rows, rejected = rejected_by_prepare(RunDir(tmp_path / "run"), path, tokenizer_dir)
    assert rejected == expected
    count = len(BAD_LINES)
    assert (rows["read"], rows["kept"], rows["rejected"]) == (2 * count, count, count)


@pytest.mark.parametrize("name", ["ragged.csv", "repeated-key.jsonl", "wrong-types.jsonl"])
def test_prepare_keeps_the_good_rows_beside_a_bad_one(name: str, tmp_path: Path, tokenizer_dir: Path) -> None:
    line, reason = BAD_ROWS[name]
    rows, rejected = rejected_by_prepare(RunDir(tmp_path / "run"), BAD / name, tokenizer_dir)
    assert rejected == [{"source": str(BAD / name), "line": line, "reason": reason}]
    assert (rows["read"], rows["kept"], rows["rejected"]) == (3, 2, 1)


def test_prepare_leaves_nothing_of_a_file_that_breaks_off(tmp_path: Path, tokenizer_dir: Path) -> None:
    path, run = tmp_path / "rows.csv", RunDir(tmp_path / "run")
    path.write_text("prompt,completion\n" + "".join(f"What is {n}?,It is {n}.\n" for n in range(600)) + '"a,b\n')
    with pytest.raises(DataError) as caught:
        rejected_by_prepare(run, path, tokenizer_dir)
    assert caught.value.message == f"{path} line 602: a quote is never closed"
    assert not run.data.exists()
