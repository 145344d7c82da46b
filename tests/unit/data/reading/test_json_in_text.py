from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from llmft_cli.base.errors import DataError
from llmft_cli.base.reporter import Silent
from llmft_cli.data.reading.json_in_text import with_json_suffix
from llmft_cli.data.reading.readers import read
from llmft_cli.data.reading.rows import Row, Source
from llmft_cli.data.reading.sources import find_sources

ROWS = '{"text": "a"}\n{"text": "b"}\n'


class Listening(Silent):
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, message: str) -> None:
        self.told.append(message)


def recognised(path: Path, text: str) -> tuple[Source, list[str]]:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    reporter = Listening()
    (source,) = find_sources([str(path)])
    return with_json_suffix(source, reporter), reporter.told


@pytest.mark.parametrize("name", ["rows.txt", "rows.md", "rows.txt.gz"])
@pytest.mark.parametrize("text", [ROWS, f"\ufeff\n{ROWS}\n\n", ROWS.strip(), ROWS.replace("\n", "\r\n")])
def test_json_lines(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    source, told = recognised(path, text)
    assert source.suffix == ".jsonl"
    assert told == [f"{path} is JSON Lines, read as rows (--format text reads it as one document)"]
    assert [row.value for row in read(source, "train")] == [{"text": "a"}, {"text": "b"}]  # type: ignore[union-attr]


def test_an_array(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    source, told = recognised(path, '[\n {"text": "a"},\n {"text": "b"}\n]\n')
    assert source.suffix == ".json"
    assert told == [f"{path} is a JSON array, read as rows (--format text reads it as one document)"]
    assert [row.value for row in read(source, "train")] == [{"text": "a"}, {"text": "b"}]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text",
    [
        "A text.\n",
        '{"text": "a"}\nis a row.\nSo is this:\n{"text": "b"}\n',
        '{\n "text": "a"\n}\n',
        "{braces}\n",
        "[1, 2]\n",
        "[]",
        "[see above]",
        '[{"a": 1}] is an array\n',
    ],
)
def test_a_document_stays_one(tmp_path: Path, text: str) -> None:
    source, told = recognised(tmp_path / "text.txt", text)
    assert (source.suffix, told) == (".txt", [])


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (f'{ROWS}{{"text": "c}}\n', 3, "malformed JSON"),
        (f"{ROWS}[1]\n", 3, "not an object"),
        (f'{{"text": \n{ROWS}', 1, "malformed JSON"),
    ],
)
def test_most_lines_are_rows_but_not_all(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = tmp_path / "rows.txt"
    with pytest.raises(
        DataError, match=rf"rows.txt looks like JSON Lines, but line {line} is not a JSON object: {reason}"
    ) as error:
        recognised(path, text)
    assert "--format text" in str(error.value.hint)


def test_other_files_are_not_looked_at(tmp_path: Path) -> None:
    source, told = recognised(tmp_path / "rows.json", ROWS)
    assert (source.suffix, told) == (".json", [])
    hub = Source("own/set", None)
    assert with_json_suffix(hub, Silent()) is hub


def test_rows_in_a_text_file_of_another_encoding(tmp_path: Path) -> None:
    """A text file with JSON rows in GBK used to end in the error of its first line."""
    rows = [
        {"prompt": f"\u4ec0\u4e48\u662f\u5b66\u4e60{number}", "completion": "\u5b66\u4e60\u662f\u4e00\u4e2a\u5206\u652f"}
        for number in range(9)
    ]
    for suffix, text in (
        (".jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)),
        (".json", json.dumps(rows, ensure_ascii=False)),
    ):
        path = tmp_path / "rows.txt"
        path.write_bytes(text.encode("gbk"))
        (source,) = find_sources([str(path)])
        found = with_json_suffix(source, Silent())
        assert found.suffix == suffix
        assert [row.value for row in read(found, "train") if isinstance(row, Row)] == rows
    path.write_bytes("Gr\u00fc\u00dfe\n{".encode("cp1252"))
    (source,) = find_sources([str(path)])
    assert with_json_suffix(source, Silent()) is source
