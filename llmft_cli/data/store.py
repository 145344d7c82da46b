"""The prepared data on disk: rows during ingestion, and the Arrow splits that training reads."""

from __future__ import annotations

import json
import marshal
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llmft_cli.base.errors import StageError
from llmft_cli.base.file_checks import DamagedFile, check_start
from llmft_cli.data.encoding.tokenising import Span
from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.data.forms.formats import Conversation, Example, Message
from llmft_cli.run_dir.artifacts import reading
from llmft_cli.run_dir.run import RunDir

if TYPE_CHECKING:
    import datasets
    import numpy
    from numpy.typing import NDArray

    Integers = NDArray[numpy.integer[Any]]

TRAIN, VALIDATION = "train", "validation"
HELD_OUT_FILE = "held_out.jsonl"
REJECTED_FILE = "rejected.jsonl"
REPORT_FILE = "report.json"
REPORT_PAGE = "report.html"
SAMPLES_FILE = "samples.jsonl"
TOKENS_PER_RECORD_BATCH = 1 << 20
COLUMNS = ["input_ids", "labels"]
COLUMNS_BEFORE = [*COLUMNS, "row_lengths"]  # of packed sequences, up to version 4 of the data
# A continuation marker and the length 0 (https://arrow.apache.org/docs/format/Columnar.html, "IPC Streaming Format").
END_OF_STREAM = b"\xff" * 4 + b"\0" * 4
BYTES_PER_TOKEN = 4


class RowSpool:
    """Tokens and messages of rows on disk. Only their offsets are in memory, about 60 bytes per row.

    Messages are stored with marshal, ten times as fast as JSON; only this process reads them.
    Files are read, not memory-mapped, since mapped pages count as memory of the process.

    Attributes:
        lengths, supervised: tokens and supervised tokens of each row.
        inputs, sources, lines: the origin of each row: number of the input, number of the file, line.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._tokens = (folder / "tokens").open("w+b")
        self._messages = (folder / "messages").open("w+b")
        self._starts = array("q", [0])
        self._message_starts = array("q", [0])
        self.lengths = array("l")
        self.supervised = array("l")
        self.inputs = array("l")
        self.sources = array("l")
        self.lines = array("q")

    def __len__(self) -> int:
        return len(self.lengths)

    def append(
        self, input: int, source: int, line: int, example: Example | None, input_ids: bytes, supervised: Sequence[Span]
    ) -> None:
        """Add a row: its ids as int32 bytes, its supervised spans, and `example` if it can serve as a prompt."""
        length = len(input_ids) // BYTES_PER_TOKEN
        edges = array("i", [edge for span in supervised for edge in span]).tobytes()
        self._tokens.write(input_ids + edges)
        self._starts.append(self._starts[-1] + len(input_ids) + len(edges))
        prompt = prompt_messages(example)
        messages = marshal.dumps(prompt) if prompt else b""
        self._messages.write(messages)
        self._message_starts.append(self._message_starts[-1] + len(messages))
        self.lengths.append(length)
        self.supervised.append(sum([stop - start for start, stop in supervised]))
        self.inputs.append(input)
        self.sources.append(source)
        self.lines.append(line)

    def finish(self) -> None:
        """Called once, after the last `append` and before the first read."""
        self._tokens.flush()
        self._messages.flush()

    def tokens(self, rows: Sequence[int]) -> tuple[Integers, Integers]:
        """input_ids and labels of rows, one after the other, int32 of shape (tokens,)."""
        import numpy

        contents = [read_range(self._tokens, self._starts[row], self._starts[row + 1]) for row in rows]
        sizes = [self.lengths[row] * BYTES_PER_TOKEN for row in rows]
        ids = [content[:size] for content, size in zip(contents, sizes, strict=True)]
        edges = [content[size:] for content, size in zip(contents, sizes, strict=True)]
        input_ids = numpy.frombuffer(b"".join(ids), numpy.int32)
        starts = numpy.cumsum([0, *sizes[:-1]]) // BYTES_PER_TOKEN
        places = numpy.frombuffer(b"".join(edges), numpy.int32) + numpy.repeat(
            starts, [len(part) // BYTES_PER_TOKEN for part in edges]
        )
        # Spans do not overlap, so between the beginning and the end of one, more have begun than ended.
        begun = numpy.bincount(places[::2], minlength=len(input_ids) + 1)
        ended = numpy.bincount(places[1::2], minlength=len(input_ids) + 1)
        return input_ids, numpy.where(numpy.cumsum(begun - ended)[:-1] > 0, input_ids, numpy.int32(IGNORED))

    def messages(self, row: int) -> list[Message] | None:
        """The messages of a row that can serve as a prompt, or None."""
        content = read_range(self._messages, self._message_starts[row], self._message_starts[row + 1])
        messages: list[Message] | None = marshal.loads(content) if content else None
        return messages

    def __enter__(self) -> RowSpool:
        return self

    def __exit__(self, *error: object) -> None:
        self._tokens.close()
        self._messages.close()


def read_range(file: BinaryIO, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def prompt_messages(example: Example | None) -> list[Message] | None:
    """A row's messages if the last one answers the user and none needs tools: a prompt with its answer; else None."""
    if not isinstance(example, Conversation) or example.tools:
        return None
    messages = example.messages
    plain = all("tool_calls" not in message and message["role"] != "tool" for message in messages)
    return messages if plain and len(messages) > 1 and messages[-2]["role"] == "user" else None


def split_file(data: Path, split: str) -> Path:
    return data / f"{split}.arrow"


def write_split(path: Path, spool: RowSpool, rows: Iterable[int]) -> None:
    """Write rows as an Arrow stream with the input_ids and labels of each; a row may occur more than once."""
    import pyarrow

    integers = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema([(column, integers) for column in COLUMNS])
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
        for group in record_batches(rows, spool):
            writer.write_batch(record_batch(group, spool, schema))


def record_batches(rows: Iterable[int], spool: RowSpool) -> Iterator[list[int]]:
    """Rows in groups of about a million tokens, to limit memory."""
    group: list[int] = []
    tokens = 0
    for row in rows:
        group.append(row)
        tokens += spool.lengths[row]
        if tokens >= TOKENS_PER_RECORD_BATCH:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def record_batch(rows: Sequence[int], spool: RowSpool, schema: Any) -> Any:
    import numpy
    import pyarrow

    offsets = numpy.cumsum([0, *(spool.lengths[row] for row in rows)]).astype(numpy.int32)
    columns = [pyarrow.ListArray.from_arrays(offsets, values) for values in spool.tokens(rows)]
    return pyarrow.RecordBatch.from_arrays(columns, schema=schema)


def load_split(data: Path, split: str) -> datasets.Dataset | None:
    """A split of the data in a run's directory, or None if it has no rows.

    Raises:
        StageError: its file is damaged, the data is missing, or an earlier version prepared it.
    """
    import datasets

    file = split_file(data, split)
    with reading(RunDir(data.parent), file):
        if not data.is_dir():
            raise DamagedFile(data, "is missing")
        if not file.exists():
            return None
        check_start(file)
        check_end(file)
        rows = datasets.Dataset.from_file(str(file))
        rows.data.table.validate(full=True)
        refuse_earlier(data, rows.column_names)
        if rows.column_names != COLUMNS:
            raise DamagedFile(file, f"is not prepared data: its columns are {', '.join(rows.column_names)}")
    return rows


def training_rows(data: Path) -> datasets.Dataset:
    """The training split of the data in a run's directory.

    Raises:
        StageError: it is damaged or missing (there always is one), or an earlier version prepared it.
    """
    rows = load_split(data, TRAIN)
    with reading(RunDir(data.parent), data):
        if not rows:
            raise DamagedFile(split_file(data, TRAIN), "is missing" if rows is None else "has no rows")
    return rows


def check_version(data: Path) -> None:
    """Check at once that the data in a run's directory, if it is there, is not of an earlier version.

    Raises:
        StageError: it is, or its file is damaged.
    """
    import pyarrow

    file = split_file(data, TRAIN)
    if file.exists():
        with reading(RunDir(data.parent), file):
            check_start(file)
            with pyarrow.OSFile(str(file)) as content, pyarrow.ipc.open_stream(content) as stream:
                refuse_earlier(data, stream.schema.names)


def refuse_earlier(data: Path, columns: Sequence[str]) -> None:
    """Raises StageError if the columns are those that earlier versions wrote."""
    if columns == COLUMNS_BEFORE:
        run = RunDir(data.parent)
        raise StageError(
            f"{run.path} was prepared by an earlier version of llmft, which packed its rows",
            f"prepare it again: {run.command_for('prepare')} --overwrite",
        )


def check_end(file: Path) -> None:
    """Check that an Arrow stream has its end: without it, readers take the batches that are there for all."""
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - len(END_OF_STREAM)))
        if content.read() != END_OF_STREAM:
            raise DamagedFile(file, "is cut off, or is not an Arrow stream")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    # A file name that is not UTF-8 contains lone surrogates; backslashreplace turns them into JSON escapes.
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for value in values:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
