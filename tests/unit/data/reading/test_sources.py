"""Finding sources: paths, directories, standard input, and errors for everything else."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.base.errors import DataError
from llmft_cli.data.reading.readers import read
from llmft_cli.data.reading.rows import Row, Source
from llmft_cli.data.reading.sources import SUPPORTED, find_sources


def refusal(name: str) -> DataError:
    with pytest.raises(DataError) as caught:
        find_sources([name])
    return caught.value


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.txt", b" \n\t", "is empty"),
        ("a.csv", b"\xef\xbb\xbf\r\n", "is empty"),
        ("a.json", b"ab\0c", "is a binary file, not text (NUL byte at offset 2)"),
        ("a.csv", "a,b".encode("utf-16-be"), "is a binary file, not text (NUL byte at offset 0)"),
        ("a.docx", b"x", "has an unknown file type"),
        ("a", b"x", "has an unknown file type"),
    ],
)
def test_files_that_cannot_hold_rows(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal(str(path)).message == f"{path} {message}"


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
    with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path))}/none contains no data files$") as caught:
        find_sources([str(tmp_path / "none")])
    assert caught.value.hint == SUPPORTED
    assert SUPPORTED == (
        "supported types: .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow, .txt, .md, each also compressed (.gz, .zst)"
    )


@pytest.mark.parametrize("name", ["missing.jsonl", "/no/such/place", "./here", "a/b/c"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(DataError, match=rf"^{re.escape(name)} does not exist$"):
        find_sources([name])


def test_a_path_that_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gone.jsonl").symlink_to("nowhere.jsonl")
    assert refusal("gone.jsonl").message == (
        "gone.jsonl cannot be read: No such file or directory (a symbolic link to nowhere.jsonl)"
    )
    Path("loop.jsonl").symlink_to("loop.jsonl")
    assert refusal("loop.jsonl").message == (
        "loop.jsonl cannot be read: Too many levels of symbolic links (a symbolic link to loop.jsonl)"
    )
    name = "What is it? " * 30 + ".jsonl"
    assert refusal(name).message == f"{name} cannot be read: File name too long"
    assert refusal("~nobody-here/a.jsonl").message == (
        "~nobody-here/a.jsonl cannot be read: Could not determine home directory."
    )


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jsonl")
    error = refusal("pipe.jsonl")
    assert error.message == "pipe.jsonl is a named pipe, not a file"
    assert error.hint == "pass its rows through standard input: llmft prepare - < pipe.jsonl"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jsonl")
        assert refusal("socket.jsonl").message == "socket.jsonl is a socket, not a file"
    assert refusal("/dev/zero").message == "/dev/zero is a device, not a file"
    assert refusal(str(tmp_path)).message == f"{tmp_path}/pipe.jsonl is a named pipe, not a file"


@contextmanager
def as_nobody() -> Iterator[None]:
    """Drop root's permission to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "shut").mkdir()
        (folder / "shut" / "a.jsonl").write_text("{}")
        (folder / "a.jsonl").write_text("{}")
        (folder / "shut").chmod(0)
        (folder / "a.jsonl").chmod(0)
        with as_nobody():
            assert refusal(f"{name}/a.jsonl").message == f"{name}/a.jsonl cannot be read: Permission denied"
            assert refusal(f"{name}/shut/a.jsonl").message == f"{name}/shut/a.jsonl cannot be read: Permission denied"
            assert refusal(name).message == f"{name}/shut cannot be read: Permission denied"
        (folder / "shut").chmod(0o755)


def test_names_that_are_not_utf8_are_shown_and_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"rows-\xff.jsonl")
    path.write_text('{"n": 1}\nx')
    (source,) = find_sources([str(path)])
    assert source == Source(f"{tmp_path}/rows-\\udcff.jsonl", path, ".jsonl", "", 10)
    assert [row.source for row in read(source, "train")] == [source.name] * 2
    path.write_text("")
    assert refusal(str(path)).message == f"{tmp_path}/rows-\\udcff.jsonl is empty"


def test_sources_know_their_kind_compression_and_size(tmp_path: Path) -> None:
    (tmp_path / "a.b.JSONL.GZ").write_bytes(gzip.compress(b"{}", mtime=0))
    (tmp_path / "c.jsonl").write_text('[\n{"n": 1}]')
    (tmp_path / "d.jsonl").write_text("[1]\n[2]")
    (tmp_path / "README.jsonl.gz").write_bytes(b"x")
    names = [str(tmp_path / name) for name in ("a.b.JSONL.GZ", "c.jsonl", "d.jsonl")]
    found = [Source(name, Path(name), kind, *rest) for name, kind, *rest in (
        (names[0], ".jsonl", "gzip", 22),
        (names[1], ".json", "", 11),
        (names[2], ".jsonl", "", 7),
    )]  # fmt: skip
    assert find_sources([str(tmp_path)]) == find_sources(names) == found


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ('[{"text": "a"}]', ".json"),
        ('\n[{"text": "a"},\n{"text": "b"}]', ".json"),
        ('[{"text": "' + "\u20ac" * 5000 + '"}, {"text": "b"}]', ".json"),
        ('[{"role": "user"}]\n[{"role": "user"}]', ".jsonl"),
        ('[{"role": "user"]\n{"text": "a"}', ".jsonl"),
        ("[" * 4000 + "]" * 4000 + "\n{}", ".jsonl"),  # too deep for some Pythons, not for others
        ('{"text": "[a"}', ".jsonl"),
    ],
)
def test_an_array_under_the_name_of_json_lines_is_known(content: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content, encoding="utf-8")
    (source,) = find_sources([str(path)])
    assert source.suffix == kind


def test_a_byte_0_in_a_later_line_makes_no_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n\0\n" + b'"' + "\u20ac".encode() * 5000)
    assert find_sources([str(path)])[0].suffix == ".jsonl"


def test_links_in_a_directory_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jsonl").write_text("{}")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "again").symlink_to(folder)
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    (folder / "d.jsonl").symlink_to(tmp_path / "elsewhere" / "a.jsonl")
    assert [source.name for source in find_sources([str(folder)])] == [f"{folder}/b/a.jsonl", f"{folder}/d.jsonl"]


def test_a_saved_dataset(tmp_path: Path) -> None:
    import datasets

    rows = [{"text": f"row {number}"} for number in range(5)]
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one", num_shards=2)
    (tmp_path / "one" / "cache-1234.arrow").write_bytes(b"left by datasets.map")
    sources = find_sources([str(tmp_path / "one")])
    first, second = (f"{tmp_path}/one/data-0000{number}-of-00002.arrow" for number in (0, 1))
    assert [(source.name, source.suffix) for source in sources] == [(first, ".arrow"), (second, ".arrow")]
    assert [row for source in sources for row in read(source, "train")] == [
        Row(first, 1, rows[0]),
        Row(first, 2, rows[1]),
        Row(first, 3, rows[2]),
        Row(second, 1, rows[3]),
        Row(second, 2, rows[4]),
    ]
    parts = datasets.DatasetDict(a=datasets.Dataset.from_list(rows[:1]), b=datasets.Dataset.from_list(rows[1:]))
    parts.save_to_disk(tmp_path / "dict")
    with pytest.raises(DataError) as caught:
        find_sources([str(tmp_path / "dict")])
    assert caught.value.message == f"{tmp_path}/dict contains the splits a, b"
    assert caught.value.hint == f"name one of them: {tmp_path}/dict/a"
    assert [source.name for source in find_sources([str(tmp_path / "dict/a")])] == [
        f"{tmp_path}/dict/a/data-00000-of-00001.arrow"
    ]


def test_files_of_other_folders_may_be_called_as_those_of_a_saved_dataset(tmp_path: Path) -> None:
    for name in ("state.json", "cache-1.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}')
    assert len(find_sources([str(tmp_path)])) == 2


# -- standard input


def piped(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    (source,) = find_sources(["-"])
    return source


def arrow_bytes(new_writer: Any) -> bytes:
    import pyarrow

    table, sink = pyarrow.table({"text": ["a"]}), io.BytesIO()
    with new_writer(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def table_bytes(kind: str) -> bytes:
    import pyarrow
    import pyarrow.parquet

    if kind == "parquet":
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), sink)
        return sink.getvalue()
    return arrow_bytes(pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream)


ROW = {"text": "a"}


@pytest.mark.parametrize(
    ("content", "kind", "rows"),
    [
        (b'{"text": "a"}', ".json", [(1, ROW)]),
        (b'\xef\xbb\xbf\n{"text": "a"}\n{"text": "a"}\n', ".json", [(2, ROW), (3, ROW)]),
        (b'[{"text": "a"},\n{"text": "a"}]', ".json", [(1, ROW), (2, ROW)]),
        (b"prompt,completion\na,b\n", ".csv", [(2, {"prompt": "a", "completion": "b"})]),
        (b"id\tText\n1\ta\n", ".tsv", [(2, {"id": "1", "text": "a"})]),
        (b"prompt;completion\na;b\n", ".csv", [(2, {"prompt": "a", "completion": "b"})]),
        (b"Once upon a time, there was\na text.", ".txt", [(1, {"text": "Once upon a time, there was\na text."})]),
        (b"text", ".txt", [(1, {"text": "text"})]),
    ],
    ids=["object", "lines", "array", "csv", "tsv", "semicolons", "prose", "word"],
)
def test_standard_input_is_known_by_its_content(
    content: bytes, kind: str, rows: list[tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for compression, packed in (("", content), ("gzip", gzip.compress(content))):
        source = piped(packed, monkeypatch)
        assert (source.name, source.suffix, source.compression) == ("stdin", kind, compression)
        assert source.size_bytes == len(packed)
        assert list(read(source, "train")) == [Row("stdin", line, value) for line, value in rows]


@pytest.mark.parametrize(("kind", "known"), [("parquet", ".parquet"), ("file", ".arrow"), ("stream", ".arrow")])
def test_tables_from_standard_input(kind: str, known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = piped(table_bytes(kind), monkeypatch)
    assert source.suffix == known
    assert list(read(source, "train")) == [Row("stdin", 1, ROW)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "stdin is empty"),
        (b" \n", "stdin is empty"),
        (gzip.compress(b"", mtime=0), "stdin is empty"),
        (b"PK\x03\x04...", "stdin is zip data"),
        (b"\x89PNG\r\n\x1a\n\0\0", "stdin is a binary file, not text (NUL byte at offset 8)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "stdin is a Git LFS pointer, not the data itself"),
        (gzip.compress(b'{"text": "a"}', mtime=0)[:-9], "stdin line 1: the gzip data ends unexpectedly here"),
    ],
)
def test_what_standard_input_may_not_hold(content: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError) as caught:
        piped(content, monkeypatch)
    assert caught.value.message == message


def test_bad_rows_of_standard_input_have_their_line(monkeypatch: pytest.MonkeyPatch) -> None:
    source = piped(b'{"text": "a"}\n{"text"\n{"text": "a"}', monkeypatch)
    lines = [(row.line, type(row).__name__) for row in read(source, "train")]
    assert lines == [(1, "Row"), (2, "BadRow"), (3, "Row")]


def test_a_terminal_gives_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = os.openpty()
    with os.fdopen(follower) as terminal, os.fdopen(leader):
        monkeypatch.setattr(sys, "stdin", terminal)
        error = refusal("-")
    assert error.message == "nothing was piped to standard input"
    assert error.hint == "pipe rows in, for example: zcat rows.jsonl.gz | llmft prepare -"
    monkeypatch.setattr(sys, "stdin", None)
    assert refusal("-").message == "nothing was piped to standard input"


def test_an_endless_input_that_is_no_text_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`llmft prepare - < /dev/zero` used to fill the disk."""
    with Path("/dev/zero").open(encoding="utf-8") as zeros:
        monkeypatch.setattr(sys, "stdin", zeros)
        assert refusal("-").message == "stdin is a binary file, not text (NUL byte at offset 0)"


def test_the_copy_of_standard_input_goes_with_the_process(tmp_path: Path) -> None:
    program = """
import os, sys
from llmft_cli.data.reading.readers import read
from llmft_cli.data.reading.sources import find_sources
(source,) = find_sources(["-"])
print(source.path.parent, [row.value for row in read(source, "train")], len(os.listdir(source.path.parent)))
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    shown = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(ROW), env=environment, capture_output=True, text=True, timeout=300
    )
    assert (shown.stdout, shown.stderr) == (f"{tmp_path} [{ROW}] 1\n", "")
    assert list(tmp_path.iterdir()) == []


def test_finding_files_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    program = """
import sys
from llmft_cli.data.reading.readers import read
from llmft_cli.data.reading.sources import find_sources
assert list(read(*find_sources(sys.argv[1:]), "train"))
print(sorted({"pyarrow", "datasets", "torch", "transformers", "numpy"} & set(sys.modules)))
"""
    shown = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.jsonl")], capture_output=True, text=True, timeout=300
    )
    assert (shown.stdout, shown.stderr) == ("[]\n", "")


def test_a_name_that_is_nearly_right_is_asked_after(tmp_path: Path) -> None:
    (tmp_path / "my chats.jsonl").write_text("{}")
    for name, hint in (("my chats.json", f"did you mean '{tmp_path / 'my chats.jsonl'}'?"), ("other.csv", "")):
        with pytest.raises(DataError, match=r"does not exist$") as caught:
            find_sources([str(tmp_path / name)])
        assert caught.value.hint == hint
    with pytest.raises(DataError, match=r"does not exist$") as caught:
        find_sources([str(tmp_path / "nowhere" / "rows.jsonl")])
    assert caught.value.hint == ""
