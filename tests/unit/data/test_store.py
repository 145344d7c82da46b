"""Rows on disk, and the splits that training reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from llmft_cli.base.errors import StageError
from llmft_cli.data import store
from llmft_cli.data.encoding.tokenising import Span
from llmft_cli.data.forms.examples import Conversation, Document, Example, Message
from llmft_cli.data.store import RowSpool, load_split, split_file, training_rows, write_json_lines, write_split

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "é"}]
CALL = {"type": "function", "function": {"name": "now", "arguments": {}}}
CALLING = [TALK[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}]


def append(spool: RowSpool, ids: list[int], supervised: list[Span], example: Example, line: int = 1) -> None:
    import numpy

    spool.append(0, 0, line, example, numpy.array(ids, numpy.int32).tobytes(), supervised)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[RowSpool]:
    with RowSpool(tmp_path / "room") as spool:
        append(spool, [1, 2, 3], [(1, 3)], Conversation(TALK), line=7)
        append(spool, [4, 5], [(1, 2)], Document("b"), line=8)
        append(spool, [6, 7, 8, 9], [(1, 2), (3, 4)], Conversation(CALLING), line=9)
        spool.finish()
        yield spool


def test_rows_come_back_as_they_were(spool: RowSpool) -> None:
    rows = [tuple(part.tolist() for part in spool.tokens([row])) for row in range(len(spool))]
    assert rows == [([1, 2, 3], [-100, 2, 3]), ([4, 5], [-100, 5]), ([6, 7, 8, 9], [-100, 7, -100, 9])]
    several = [part.tolist() for part in spool.tokens([2, 0, 2])]
    assert several == [[*rows[2][part], *rows[0][part], *rows[2][part]] for part in (0, 1)]
    assert (list(spool.lengths), list(spool.supervised), list(spool.lines)) == ([3, 2, 4], [2, 1, 2], [7, 8, 9])


def test_only_answers_in_words_can_be_asked_for(spool: RowSpool) -> None:
    assert [spool.messages(row) for row in range(3)] == [TALK, None, None]


@pytest.mark.parametrize("before", [[], [{"role": "system", "content": "s"}], TALK])
def test_an_answer_that_follows_no_question_is_not_asked_for(before: list[Message], tmp_path: Path) -> None:
    """`eval` would have refused the prompt, and with it all held-out rows."""
    with RowSpool(tmp_path / "room") as spool:
        append(spool, [1, 2], [(1, 2)], Conversation([*before, TALK[1]]))
        spool.finish()
        assert spool.messages(0) is None


def test_a_split_holds_rows_in_the_given_order(spool: RowSpool, tmp_path: Path) -> None:
    """A row whose source has a weight comes more than once."""
    write_split(split_file(tmp_path, "train"), spool, [2, 0, 1, 0])
    split = load_split(tmp_path, "train")
    assert split is not None
    assert split[:] == {
        "input_ids": [[6, 7, 8, 9], [1, 2, 3], [4, 5], [1, 2, 3]],
        "labels": [[-100, 7, -100, 9], [-100, 2, 3], [-100, 5], [-100, 2, 3]],
    }
    assert split.features["input_ids"].feature.dtype == "int32"
    assert load_split(tmp_path, "validation") is None


def test_rows_are_written_a_few_at_a_time(spool: RowSpool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "TOKENS_PER_RECORD_BATCH", 4)
    assert list(store.record_batches([0, 1, 2, 1], spool)) == [[0, 1], [2], [1]]
    write_split(split_file(tmp_path, "train"), spool, [0, 1, 2, 1])
    split = load_split(tmp_path, "train")
    assert split is not None
    assert split["input_ids"][:] == [[1, 2, 3], [4, 5], [6, 7, 8, 9], [4, 5]]


# -- damaged splits


@pytest.fixture
def data(spool: RowSpool, tmp_path: Path) -> Path:
    """The data of a run `tmp_path / "run"`."""
    folder = tmp_path / "run" / "data"
    folder.mkdir(parents=True)
    write_split(split_file(folder, "train"), spool, [2, 0, 1])
    return folder


def complaint_of(data: Path) -> str:
    with pytest.raises(StageError) as caught:
        training_rows(data)
    assert caught.value.hint == f"recreate it: llmft prepare DATA --run {data.parent} --overwrite"
    return caught.value.message


def test_a_split_of_every_shorter_length(data: Path) -> None:
    """Without the end of the stream, readers take the batches before it for the whole split."""
    file = split_file(data, "train")
    whole = file.read_bytes()
    file.write_bytes(b"")
    assert complaint_of(data) == f"{file} is empty"
    for size in range(1, len(whole)):
        file.write_bytes(whole[:size])
        assert complaint_of(data) == f"{file} is cut off, or is not an Arrow stream"


def test_a_split_with_any_flipped_bit_is_read_or_refused(data: Path) -> None:
    file = split_file(data, "train")
    whole = file.read_bytes()
    for place in range(0, len(whole), 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with suppress(StageError):
            training_rows(data)


def test_splits_that_are_missing_or_of_another_kind(data: Path) -> None:
    import pyarrow

    file = split_file(data, "train")
    schema = pyarrow.schema([("text", pyarrow.string())])
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pyarrow.record_batch([["a"]], schema=schema))
    assert complaint_of(data) == f"{file} is not prepared data: its columns are text"
    file.unlink()
    assert complaint_of(data) == f"{file} is missing"
    data.rmdir()
    assert complaint_of(data) == f"{data} is missing"


def test_data_of_an_earlier_version_is_told_from_damage(data: Path) -> None:
    """It held packed sequences; `recreate it` would have sent people looking for what damaged it."""
    import pyarrow

    integers = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema([(name, integers) for name in ("input_ids", "labels", "row_lengths")])
    with pyarrow.OSFile(str(split_file(data, "train")), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pyarrow.record_batch([[[1, 2, 3]], [[-100, 2, 3]], [[2, 1]]], schema=schema))
    for refused in (training_rows, store.check_version):
        with pytest.raises(StageError) as caught:
            refused(data)
        assert caught.value.message == f"{data.parent} was prepared by an earlier version of llmft, which packed its rows"
        assert caught.value.hint == f"prepare it again: llmft prepare DATA --run {data.parent} --overwrite"


def test_the_version_of_whole_and_of_missing_data_is_no_fault(data: Path) -> None:
    store.check_version(data)
    split_file(data, "train").unlink()
    store.check_version(data)


def test_json_lines(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "x.jsonl", [{"a": "é\n"}, {"a": "\udcff"}])
    lines = (tmp_path / "x.jsonl").read_bytes().splitlines()
    assert lines[0] == '{"a": "é\\n"}'.encode()
    assert json.loads(lines[1]) == {"a": "\udcff"}
