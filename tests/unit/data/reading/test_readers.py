from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from llmft_cli.base.errors import DataError
from llmft_cli.data.reading import compression
from llmft_cli.data.reading.readers import READERS, read
from llmft_cli.data.reading.rows import BadRow, Row, Source
from llmft_cli.data.reading.sources import SUFFIXES, find_sources


def rows_of(path: Path, content: str | bytes) -> list[tuple[int, Any]]:
    """Line and value (of a bad row: the reason) of everything read from a file of this content."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (source,) = find_sources([str(path)])
    rows = list(read(source, "train"))
    assert {row.source for row in rows} <= {str(path)}
    return [(row.line, row.value if isinstance(row, Row) else row.reason) for row in rows]


def refusal(path: Path, content: str | bytes) -> str:
    """The error for a file of this content, without its path."""
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
        ('{"text":', "malformed JSON: unexpected end"),
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
        ('{"n": 1}\n{"n": \n{"n": 3}', [(1, {"n": 1}), (2, "malformed JSON: unexpected end"), (3, {"n": 3})]),
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
        ("[{}", "line 1: malformed JSON: unexpected end"),
        ("[{},", "line 1: malformed JSON: unexpected end"),
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
    assert refusal(tmp_path / "a.csv", 'prompt,n\na,1\n"b,2\nc,3\n') == "line 3: a quote is never closed"
    latin_1 = b"prompt,n\n" + b"a,1\n" * 5000 + b"\xe4,1\n"
    cure = "if the file is not UTF-8, name its encoding: --encoding cp1252"
    assert rows_of(tmp_path / "a.csv", latin_1)[-1] == (5002, f"not UTF-8 (byte 0xe4 in column 1); {cure}")
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


def test_white_space_before_the_rows_is_no_emptiness(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "a.json", "\n" * 9000 + '[{"n": 1}]') == [(9001, {"n": 1})]


def test_a_hub_dataset_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmft_cli.data.reading.readers.hub_is_reachable", lambda: False)
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

    monkeypatch.setattr("llmft_cli.data.reading.readers.hub_is_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (source,) = find_sources(["own/set"])
    assert list(read(source, "train")) == [Row("own/set", 1, {"text": "own/set"}), Row("own/set", 2, {"text": "b"})]
    with pytest.raises(DataError, match=r'^the Hub dataset own/set \(split test\) cannot be read: Unknown split "test"\.$'):
        list(read(source, "test"))


def test_bad_rows_carry_their_source(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{\n")
    assert list(read(find_sources([str(path)])[0], "train")) == [BadRow(str(path), 1, "malformed JSON: unexpected end")]


def test_there_is_a_reader_for_every_kind_of_file() -> None:
    assert tuple(READERS) == SUFFIXES


def zstd(content: bytes) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
VALUES: list[dict[str, Any]] = [{"prompt": "a\n\nä😀\t", "n": "1"}, {"prompt": "", "n": "-2.5e3"}, {"prompt": '"', "n": "x"}]


def table_bytes(kind: str) -> bytes:
    """`VALUES` as a binary table."""
    import pyarrow
    import pyarrow.parquet

    table, sink = pyarrow.Table.from_pylist(VALUES), io.BytesIO()
    if kind == "parquet":
        pyarrow.parquet.write_table(table, sink, row_group_size=2)
    else:
        new = pyarrow.ipc.new_file if kind == "arrow file" else pyarrow.ipc.new_stream
        with new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def csv_text(delimiter: str) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "n"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(VALUES)
    return text.getvalue()


# Names, contents, and the lines of the rows.
FORMS: dict[str, tuple[str, bytes, list[int]]] = {
    "jsonl": ("a.jsonl", "\n".join(map(json.dumps, VALUES)).encode(), [1, 2, 3]),
    "ndjson": ("a.ndjson", "\r\n".join(map(json.dumps, VALUES)).encode(), [1, 2, 3]),
    "array": ("a.json", json.dumps(VALUES, indent=1, ensure_ascii=False).encode(), [2, 6, 10]),
    "array on a line": ("a.json", json.dumps(VALUES).encode(), [1, 1, 1]),
    "array as jsonl": ("a.jsonl", json.dumps(VALUES, indent=1).encode(), [2, 6, 10]),
    "wrapped": ("a.json", json.dumps({"da[ta\n": VALUES}, indent=1).encode(), [3, 7, 11]),
    "lines as json": ("a.json", "\n".join(map(json.dumps, VALUES)).encode(), [1, 2, 3]),
    "objects": ("a.json", "\n".join(json.dumps(value, indent=1) for value in VALUES).encode(), [1, 5, 9]),
    "csv": ("a.csv", csv_text(",").encode(), [2, 5, 6]),
    "tsv": ("a.tsv", csv_text("\t").encode(), [2, 5, 6]),
    "parquet": ("a.parquet", table_bytes("parquet"), [1, 2, 3]),
    "arrow file": ("a.arrow", table_bytes("arrow file"), [1, 2, 3]),
    "arrow stream": ("a.arrow", table_bytes("arrow stream"), [1, 2, 3]),
}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_plain_and_compressed(form: str, packing: str, tmp_path: Path) -> None:
    name, content, lines = FORMS[form]
    path = tmp_path / (name + packing)
    path.write_bytes(PACKERS[packing](content))
    (source,) = find_sources([str(path)])
    read_bytes: list[int] = []
    rows = list(read(source, "train", read_bytes.append))
    assert rows == [Row(str(path), line, value) for line, value in zip(lines, VALUES, strict=True)]
    assert sum(read_bytes) == source.size_bytes == path.stat().st_size


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 17, 64])
@pytest.mark.parametrize("form", [form for form in FORMS if "arrow" not in form and form != "parquet"])
def test_where_a_file_is_cut_into_chunks_changes_nothing(
    form: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "CHUNK_BYTES", size)
    name, content, lines = FORMS[form]
    path = tmp_path / name
    for start in (b"", b"\xef\xbb\xbf"):
        assert rows_of(path, start + content) == list(zip(lines, VALUES, strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 13])
def test_values_of_an_array_that_are_cut(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "CHUNK_BYTES", size)
    values = [-1.5e-3, 12345, 'a]\\"\u00e4\ud83d', None, True, [], {"a": [{"b": "}"}]}, "😀", 1e400]
    content = "[" + " \n ,".join(map(json.dumps, values)) + "]"
    assert rows_of(tmp_path / "a.json", content) == list(enumerate(values, 1))
    assert refusal(tmp_path / "a.json", content[:-1]) == f"line {len(values)}: malformed JSON: unexpected end"
    assert refusal(tmp_path / "a.json", '[{"a": 1},\n\n {"b": tru}]') == "line 3: malformed JSON: Expecting value in column 8"
    assert refusal(tmp_path / "a.json", '[1,\n"ää", x]') == "line 2: malformed JSON: Expecting value in column 7"


def test_csv_with_carriage_returns_alone(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "a.csv", 'prompt,n\ra,1\r"b\rc",2') == [
        (2, {"prompt": "a", "n": "1"}),
        (3, {"prompt": "b\rc", "n": "2"}),
    ]


def test_byte_order_marks_of_joined_files(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "a.jsonl", '{"n": 1}\n\ufeff{"n": 2}\n') == [(1, {"n": 1}), (2, {"n": 2})]


def test_compressed_files_that_were_joined(tmp_path: Path) -> None:
    for packing in (".gz", ".zst"):
        pack = PACKERS[packing]
        content = pack(b'{"n": 1}\n') + pack(b'{"n": 2}\n')
        assert rows_of(tmp_path / f"a.jsonl{packing}", content) == [(1, {"n": 1}), (2, {"n": 2})]


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_compressed_data_that_ends_too_early(packing: str, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"{number * 7919:x} {number * 104729:x}"}) for number in range(30_000)]
    whole = PACKERS[packing]("\n".join(lines).encode())
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError) as caught:
        list(read(find_sources([str(path)])[0], "train"))
    name = {".gz": "gzip", ".zst": "zstd"}[packing]
    line = int(caught.value.message.split()[2].rstrip(":"))
    assert caught.value.message == f"{path} line {line}: the {name} data ends unexpectedly here"
    assert 10_000 < line < 20_000


# -- bounds


@contextmanager
def peak_memory(limit_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit_bytes
    finally:
        tracemalloc.stop()


def too_long(path: Path) -> str:
    return f"{path} line {{}}: a single row of more than {compression.MAX_ROW_BYTES >> 20} MiB"


@pytest.mark.parametrize(
    ("name", "start", "line"),
    [
        ("a.jsonl", '{"n": 1}\n{"text": "', 2),
        ("a.csv", "text\na\n", 3),
        ("a.csv", 'text\na\n"\n', 4),
        ("a.csv", "", 1),
        ("a.tsv", "text\na\n\n", 4),
        ("a.json", '[{"n": 1},\n{"text": "', 2),
        ("a.json", '{"text": "', 1),
        ("a.json", '{"data": [{"n": 1},\n\n{"text": "', 3),
    ],
)
def test_a_row_may_not_be_longer_than_the_limit(
    name: str, start: str, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "MAX_ROW_BYTES", 1 << 20)
    path = tmp_path / name
    for packing, pack in PACKERS.items():
        packed = path.with_name(name + packing)
        packed.write_bytes(pack(start.encode() + b"a" * (2 << 20)))
        with pytest.raises(DataError) as caught:
            list(read(find_sources([str(packed)])[0], "train"))
        assert caught.value.message == too_long(packed).format(line)


def test_the_longest_row_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MAX_ROW_BYTES", 1 << 20)
    row = json.dumps({"text": "a" * ((1 << 20) - 12)})
    assert len(row) == 1 << 20
    assert [line for line, _ in rows_of(tmp_path / "a.jsonl", f"{row}\n{row}")] == [1, 2]
    assert [line for line, _ in rows_of(tmp_path / "a.json", f"[{row},\n{row}]")] == [1, 2]
    with pytest.raises(DataError, match="line 2: a single row of more than 1 MiB"):
        rows_of(tmp_path / "a.jsonl", f"{row}\n {row}")
    with pytest.raises(DataError, match="line 2: a single row of more than 1 MiB"):
        rows_of(tmp_path / "a.json", f"[{row},\n{row[:-1]} }}]")


def test_white_space_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MAX_ROW_BYTES", 1 << 20)
    for name in ("a.json", "a.jsonl", "a.csv"):
        path = tmp_path / name
        path.write_bytes(b" " * (2 << 20))
        with pytest.raises(DataError) as caught:
            list(read(find_sources([str(path)])[0], "train"))
        assert caught.value.message == too_long(path).format(1)


def test_a_long_document_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MAX_ROW_BYTES", 1 << 20)
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\n" * (1 << 20))
    with pytest.raises(DataError, match="line 1: a document of more than 1 MiB") as caught:
        list(read(find_sources([str(path)])[0], "train"))
    assert caught.value.hint == "a text file is one document: split it into several files"


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_long_row_of_a_table(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr(compression, "MAX_ROW_BYTES", 1 << 20)
    table = pyarrow.table({"text": ["a", "b" * 700_000, "b" * 700_000, "c" * 1_100_000]})
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path, compression="none")
    else:
        with pyarrow.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    with pytest.raises(DataError) as caught:
        list(read(find_sources([str(path)])[0], "train"))
    assert caught.value.message == too_long(path).format(4)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_few_large_rows_of_a_table_are_in_memory(kind: str, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": [f"{number}" * (1 << 20) for number in range(10)] * 4})
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    (source,) = find_sources([str(path)])
    with peak_memory(20 << 20):
        assert [row.line for row in read(source, "train")] == [*range(1, 41)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.tsv", "a.txt", "a.md"])
def test_a_gigabyte_on_one_line_is_refused_without_being_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(b'{"text": "' + b"a" * 10_000)
        file.seek(1 << 30)
        file.write(b'"}')
    started = time.monotonic()
    with peak_memory(5 * compression.MAX_ROW_BYTES), pytest.raises(DataError) as caught:
        list(read(find_sources([str(path)])[0], "train"))
    assert time.monotonic() - started < 50
    if name == "a.json":  # the rest of the file is NUL bytes, which JSON does not allow
        assert caught.value.message == f"{path} line 1: malformed JSON: Invalid control character in column 10011"
    else:
        what = "document" if name in ("a.txt", "a.md") else "single row"
        assert caught.value.message == f"{path} line 1: a {what} of more than 64 MiB"


# A compressed file may have any number of members, so a bomb of a gigabyte is cheap to build.
BOMB_LINE = json.dumps({"text": "a" * 20_000}).encode() + b"\n"


def grown(path: Path, message: str) -> int:
    """The reported expansion of a file."""
    times = int(message.removeprefix(f"{path} expands ").split()[0])
    assert f" {times} times " in message
    return times


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_bomb_is_refused_before_its_rows_are_read(name: str, packing: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}{packing}"
    path.write_bytes(PACKERS[packing](BOMB_LINE * 50) * 1000)
    assert path.stat().st_size < 2_000_000
    started = time.monotonic()
    with peak_memory(4 << 20), pytest.raises(DataError) as caught:
        find_sources([str(path)])
    assert time.monotonic() - started < 50
    assert grown(path, caught.value.message) > compression.MAX_EXPANSION


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_bomb_behind_sound_rows_is_refused(packing: str, tmp_path: Path) -> None:
    path, pack = tmp_path / f"a.jsonl{packing}", PACKERS[packing]
    sound = b"".join(b'{"text": "%s"}\n' % Random(number).randbytes(500).hex().encode() for number in range(1000))
    path.write_bytes(pack(sound) + pack(BOMB_LINE * 50) * 1000)
    (source,) = find_sources([str(path)])
    with peak_memory(4 << 20), pytest.raises(DataError) as caught:
        assert all(isinstance(row, Row) for row in read(source, "train"))
    assert grown(path, caught.value.message) > compression.MAX_EXPANSION


def test_what_shrinks_well_and_is_small_is_no_bomb(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.jsonl.gz", gzip.compress(BOMB_LINE * 1000))
    assert [line for line, _ in rows] == [*range(1, 1001)]


@pytest.mark.parametrize("form", ["parquet", "arrow stream"])
def test_a_compressed_table_that_ends_too_early(form: str, tmp_path: Path) -> None:
    name, content, _ = FORMS[form]
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(content)[:-10])
    with pytest.raises(DataError) as caught:
        find_sources([str(path)])
    assert caught.value.message == f"{path}: the gzip data ends unexpectedly"


def test_a_parquet_bomb_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["a" * (1 << 20)] * 100})
    pyarrow.parquet.write_table(table, path, use_dictionary=False, compression="zstd")
    size = path.stat().st_size
    (source,) = find_sources([str(path)])
    with pytest.raises(DataError) as caught:
        list(read(source, "train"))
    grown = 100 * (1 << 20) // size
    assert caught.value.message.startswith(f"{path} expands ")
    assert abs(int(caught.value.message.split()[2]) - grown) <= 1


def long_file(path: Path, start: str, row: str, between: str, end: str, count: int) -> Source:
    with path.open("w") as file:
        file.write(start)
        file.writelines(itertools.repeat(row + between, count))
        file.write(row + end)
    return find_sources([str(path)])[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "start", "between", "end"),
    [
        ("a.jsonl", "", "\n", ""),
        ("a.json", "[", ",\n", "]"),
        ("a.json", '{"rows": [', ", ", "]}"),
        ("a.json", "", "\n", "\n"),
    ],
    ids=["lines", "array", "wrapped", "lines as json"],
)
def test_a_long_file_takes_no_more_memory_than_a_short_one(
    name: str, start: str, between: str, end: str, tmp_path: Path
) -> None:
    row = json.dumps({"prompt": "p" * 450, "completion": "c" * 450})
    source = long_file(tmp_path / name, start, row, between, end, 29_999)
    told: list[int] = []
    with peak_memory(6 << 20):
        assert sum(1 for _ in read(source, "train", told.append)) == 30_000
    assert sum(told) == source.size_bytes > 27_000_000
    assert 50 < len(told) < 1000


# -- damage


def damaged(content: bytes, random: Random) -> bytes:
    """Content with a byte changed, some bytes removed or repeated, a character inserted, or the end truncated."""
    start = random.randrange(len(content))
    end = start + random.randrange(1, 12)
    signs = [b'"', b"{", b"[", b",", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"\\", b"]", b"}", b"1"]
    return random.choice(
        [
            content[:start] + bytes([random.randrange(256)]) + content[start + 1 :],
            content[:start] + content[end:],
            content[:start] + content[start:end] * 2 + content[end:],
            content[:start] + random.choice(signs) + content[start:],
            content[:start],
        ]
    )


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("form", FORMS)
def test_damage_is_told_in_one_line_and_nothing_else_happens(form: str, packing: str, tmp_path: Path) -> None:
    name, content, _ = FORMS[form]
    path, random = tmp_path / (name + packing), Random(form + packing)
    for _ in range(60):
        path.write_bytes(damaged(damaged(PACKERS[packing](content), random) or b"-", random))
        told: list[int] = []
        rows: list[Row | BadRow] = []
        refusals = []
        try:
            (source,) = find_sources([str(path)])
            rows = list(read(source, "train", told.append))
        except DataError as error:
            refusals = [error.message]
        assert refusals or sum(told) == path.stat().st_size
        assert all(message.startswith(str(path)) and "\n" not in message for message in refusals)
        assert [row.line for row in rows] == sorted(row.line for row in rows)
        assert all(row.reason and "\n" not in row.reason for row in rows if isinstance(row, BadRow))


def test_a_large_wrapper_of_rows_with_something_beside_them(tmp_path: Path) -> None:
    rows = ",\n".join(f'{{"text": "{"a" * 1000}"}}' for _ in range(5000))
    assert len(rows_of(tmp_path / "a.json", f'{{"data": [{rows}],\n"version": 2}}')) == 5000
    assert refusal(tmp_path / "a.json", f'{{"data": [{rows}],\n"version" 2}}') == (
        "line 5001: malformed JSON: Expecting ':' delimiter in column 11"
    )
    assert refusal(tmp_path / "a.json", f'{{"data": [{rows}],\n"more": [{rows[:1012]}]}}') == (
        "holds rows under 'data' and under 'more'"
    )
