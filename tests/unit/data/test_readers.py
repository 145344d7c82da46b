from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.data.readers import find_sources, read
from llmft_cli.data.rows import BadRow, Row
from llmft_cli.errors import DataError


def rows_of(path: Path, content: str | bytes) -> list[tuple[int, Any]]:
    """Line and value (of a bad row: the reason) of everything read from a file of this content."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (source,) = find_sources([str(path)])
    rows = list(read(source, "train"))
    assert {row.source for row in rows} <= {str(path)}
    return [(row.line, row.value if isinstance(row, Row) else row.reason) for row in rows]


def refusal(path: Path, content: str | bytes) -> str:
    """What is said of a file of this content, without its path."""
    with pytest.raises(DataError) as caught:
        rows_of(path, content)
    return caught.value.message.removeprefix(str(path)).strip()


@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_line_ends_and_byte_order_marks_change_nothing(ending: str, bom: bytes, tmp_path: Path) -> None:
    def content(*lines: str) -> bytes:
        return bom + ending.join(lines).encode()

    assert rows_of(tmp_path / "a.jsonl", content('{"text": "a"}', "", '{"text": "b"}')) == [
        (1, {"text": "a"}),
        (3, {"text": "b"}),
    ]
    assert rows_of(tmp_path / "a.json", content("", "[", '{"text": "a"},', '{"text": "b"}', "]", "")) == [
        (3, {"text": "a"}),
        (4, {"text": "b"}),
    ]
    assert rows_of(tmp_path / "a.csv", content("text,n", "a,1", "", "b,2", "")) == [
        (2, {"text": "a", "n": "1"}),
        (4, {"text": "b", "n": "2"}),
    ]
    assert rows_of(tmp_path / "a.txt", content("a", "b")) == [(1, {"text": "a\nb"})]
    assert rows_of(tmp_path / "a.md", content("# a", "b")) == [(1, {"text": "# a\nb"})]


def test_jsonl_lines_end_only_at_line_feeds(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "a.jsonl", '{"text": "a\u2028b\u0085c"}\n{"text": "d"}') == [
        (1, {"text": "a\u2028b\u0085c"}),
        (2, {"text": "d"}),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{'text': 1}", "malformed JSON: Expecting property name enclosed in double quotes in column 2"),
        ('{"text": "a"} x', "malformed JSON: Extra data in column 15"),
        ('{"text": "a', "malformed JSON: Unterminated string starting in column 10"),
        ("[" * 100_000, "malformed JSON: nested too deeply"),
        ('{"text":', "malformed JSON: it ends too early"),
    ],
    ids=["single-quotes", "extra", "unterminated", "deep", "cut"],
)
def test_malformed_json_lines(line: str, reason: str, tmp_path: Path) -> None:
    assert rows_of(tmp_path / "a.jsonl", f'{{"n": 1}}\n{line}\n{{"n": 3}}\n') == [(1, {"n": 1}), (2, reason), (3, {"n": 3})]


def test_a_very_long_line_is_read(tmp_path: Path) -> None:
    text = "x" * 5_000_000
    assert rows_of(tmp_path / "a.jsonl", json.dumps({"text": text})) == [(1, {"text": text})]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('{"text": "a"}', [(1, {"text": "a"})]),
        ('\n{\n "messages": [1]\n}', [(2, {"messages": [1]})]),
        ('{"data": [\n{"n": 1},\n{"n": 2}]}', [(2, {"n": 1}), (3, {"n": 2})]),
        ('{"da[ta": [{"n": 1}]}', [(1, {"n": 1})]),
        ('{"data": []}', []),
        ("[]", []),
        ('[1, null,\n"x"]', [(1, 1), (1, None), (2, "x")]),
        ('"a"', [(1, "a")]),
        ("12", [(1, 12)]),
        ("null", [(1, None)]),
        ('{"n": 1}\n{"n": 2}\n', [(1, {"n": 1}), (2, {"n": 2})]),
        ('{"n": 1}\n{"n": \n{"n": 3}', [(1, {"n": 1}), (2, "malformed JSON: it ends too early"), (3, {"n": 3})]),
    ],
)
def test_what_a_json_file_may_hold(content: str, rows: Any, tmp_path: Path) -> None:
    assert rows_of(tmp_path / "a.json", content) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[,{}]", "line 1: malformed JSON: Expecting value in column 2"),
        ("[{},,{}]", "line 1: malformed JSON: Expecting value in column 5"),
        ("[{},\n{},\n]", "line 2: malformed JSON: Illegal trailing comma before end of array in column 3"),
        ("[{}\n{}]", "line 2: malformed JSON: Expecting ',' delimiter in column 1"),
        ("[{}", "line 1: malformed JSON: it ends too early"),
        ("[{},", "line 1: malformed JSON: it ends too early"),
        ("[{}]\n\nx", "line 3: malformed JSON: Extra data in column 1"),
        ("[{}][{}]", "line 1: malformed JSON: Extra data in column 5"),
        ("[\n" + "[" * 100_000, "line 2: malformed JSON: nested too deeply"),
        ("{\n1}", "line 2: malformed JSON: Expecting property name enclosed in double quotes in column 1"),
        ("\u00a0\u2003", "line 1: malformed JSON: Expecting value in column 1"),
        (" " * 9000, "is empty"),
    ],
)
def test_malformed_json_files_are_refused_with_the_line(content: str, message: str, tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.json", content) == message


def test_csv_lines_count_line_ends_within_quotes(tmp_path: Path) -> None:
    content = 'prompt,"completion\nof it"\n"a\n\nb","c ""d"""\ne,f,g\nh\ni,\n'
    assert rows_of(tmp_path / "a.csv", content) == [
        (3, {"prompt": "a\n\nb", "completion\nof it": 'c "d"'}),
        (6, "has 3 columns, the header has 2"),
        (7, "has 1 columns, the header has 2"),
        (8, {"prompt": "i", "completion\nof it": ""}),
    ]


def test_csv_with_an_unnamed_index_column_as_pandas_writes(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "a.csv", ",prompt\n0,a\n") == [(2, {"": "0", "prompt": "a"})]


def test_csv_errors(tmp_path: Path) -> None:
    content = 'prompt,n\n"a"b,1\nc,2\n'
    assert rows_of(tmp_path / "a.csv", content) == [
        (2, "malformed CSV: ',' expected after '\"'"),
        (3, {"prompt": "c", "n": "2"}),
    ]
    assert refusal(tmp_path / "a.csv", 'prompt,n\na,1\n"b,2\nc,3\n') == "line 3: a quote is opened and never closed"
    latin_1 = b"prompt,n\n" + b"a,1\n" * 5000 + b"\xe4,1\n"
    assert rows_of(tmp_path / "a.csv", latin_1)[-1] == (5002, "not UTF-8 (byte 0xe4 in column 1)")
    assert rows_of(tmp_path / "a.csv", "prompt,completion\n") == []


def test_parquet_rows_are_numbered_and_nulls_stay(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    values = [{"instruction": "a", "input": None, "output": "b"}, {"instruction": "c", "input": "d", "output": "e"}]
    path = tmp_path / "a.PARQUET"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), path)
    assert rows_of(path, path.read_bytes()) == list(enumerate(values, 1))


def test_parquet_that_is_broken(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": pyarrow.Array.from_buffers(pyarrow.string(), 1, latin_1_buffers())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    assert rows_of(tmp_path / "a.parquet", content) == [
        (1, "the column 'text' is not UTF-8 (byte 0xe4)"),
    ]
    assert refusal(tmp_path / "a.parquet", content[:-20]).startswith("is not a readable Parquet file: ")


def latin_1_buffers() -> list[Any]:
    """A string column's buffers with one value that is not UTF-8."""
    import struct

    import pyarrow

    return [None, pyarrow.py_buffer(struct.pack("<ii", 0, 1)), pyarrow.py_buffer(b"\xe4")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.txt", b" \n\t", "is empty"),
        ("a.csv", b"\xef\xbb\xbf\r\n", "is empty"),
        ("a.json", b"ab\0c", "is a binary file, not text (byte 0 at offset 2)"),
        ("a.csv", "a,b".encode("utf-16-be"), "is a binary file, not text (byte 0 at offset 0)"),
        ("a.csv", "a,b".encode("utf-16"), "is UTF-16, not UTF-8"),
        ("a.docx", b"x", "has no type known here"),
        ("a", b"x", "has no type known here"),
    ],
)
def test_files_that_cannot_hold_rows(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    assert refusal(tmp_path / name, content) == message


def test_white_space_before_the_rows_is_no_emptiness(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "a.json", "\n" * 9000 + '[{"n": 1}]') == [(9001, {"n": 1})]


def test_directories_are_read_through_without_hidden_files_and_readme(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/z.CSV", "a/b/c.txt", "README.md", "notes.md", ".cache/d.txt", ".e.txt", "picture.png"):
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    found = [
        source.path.relative_to(tmp_path / "data").as_posix()
        for source in find_sources([str(tmp_path / "data")])
        if source.path
    ]
    assert found == ["a/b/c.txt", "a/z.CSV", "b.jsonl", "notes.md"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path))}/none holds no data files$") as caught:
        find_sources([str(tmp_path / "none")])
    assert caught.value.hint == (
        "readable types: .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow, .txt, .md, each also with .gz or .zst behind it"
    )


@pytest.mark.parametrize("name", ["missing.jsonl", "/no/such/place", "./here", "a/b/c"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(DataError, match=rf"^{re.escape(name)} does not exist$"):
        find_sources([name])


def test_a_hub_dataset_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmft_cli.data.readers.hub_is_reachable", lambda: False)
    (source,) = find_sources(["tatsu-lab/alpaca"])
    assert source.path is None
    with pytest.raises(
        DataError, match=r"^there is no file tatsu-lab/alpaca, and the Hub cannot be reached to look for a dataset"
    ):
        list(read(source, "train"))


def test_hub_rows_are_numbered_and_its_errors_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(name: str, split: str) -> list[dict[str, str]]:
        if split == "train":
            return [{"text": name}, {"text": "b"}]
        raise ValueError(f'Unknown split "{split}".\nmore')

    monkeypatch.setattr("llmft_cli.data.readers.hub_is_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (source,) = find_sources(["own/set"])
    assert list(read(source, "train")) == [Row("own/set", 1, {"text": "own/set"}), Row("own/set", 2, {"text": "b"})]
    with pytest.raises(DataError, match=r'^the Hub dataset own/set \(split test\) cannot be read: Unknown split "test"\.$'):
        list(read(source, "test"))


def test_bad_rows_carry_their_source(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{\n")
    assert list(read(find_sources([str(path)])[0], "train")) == [BadRow(str(path), 1, "malformed JSON: it ends too early")]
