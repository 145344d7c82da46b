"""JSON files as other tools write them: around the rows, by columns, by keys, pages and articles."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.base.errors import DataError
from llmft_cli.data.reading import json_rows
from llmft_cli.data.reading.json_layouts import Layout, layout_of
from llmft_cli.data.reading.json_text import beginning_of
from llmft_cli.data.reading.readers import read
from llmft_cli.data.reading.rows import Row
from llmft_cli.data.reading.sources import find_sources

ROWS = [{"prompt": f"q{number}", "completion": f"a{number}"} for number in range(12)]
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SPEECH = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]

PAGE = {
    "features": [{"feature_idx": 0, "name": "prompt", "type": {"dtype": "string", "_type": "Value"}}],
    "rows": [{"row_idx": number, "row": row, "truncated_cells": []} for number, row in enumerate(ROWS)],
    "num_rows_total": 12,
    "partial": False,
}
SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Emma",
            "paragraphs": [
                {
                    "context": f"Emma appeared in {year}.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "When?",
                            "answers": [{"text": f"in {year}", "answer_start": 14}, {"text": "then"}],
                        },
                        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
                for year in (1815, 1816)
            ],
        }
    ],
}
QUESTIONS = [
    {"context": f"Emma appeared in {year}.", "question": question, "answers": answers}
    for year in (1815, 1816)
    for question, answers in (("When?", [f"in {year}", "then"]), ("Why?", []))
]

# What a file holds, and its rows.
FILES: dict[str, tuple[Any, list[Any]]] = {
    "data": ({"data": ROWS}, ROWS),
    "examples": ({"examples": ROWS}, ROWS),
    "train": ({"train": ROWS}, ROWS),
    "any name": ({"my rows": ROWS}, ROWS),
    "version first": ({"version": "1.0", "info": {"by": "me"}, "data": ROWS}, ROWS),
    "version last": ({"data": ROWS, "version": "1.0", "tags": ["a"]}, ROWS),
    "rows of a name beside others": ({"name": "mine", "entries": ROWS, "authors": [{"name": "me"}]}, ROWS),
    "conversations in an envelope": ({"data": [{"messages": TURNS}] * 2}, [{"messages": TURNS}] * 2),
    "lists of messages in an envelope": ({"data": [TURNS, TURNS]}, [TURNS, TURNS]),
    "lists of messages": ([TURNS, TURNS], [TURNS, TURNS]),
    "one conversation": (TURNS, [TURNS]),
    "one conversation of sharegpt": (SPEECH, [SPEECH]),
    "one row": (ROWS[0], ROWS[:1]),
    "one row of messages": ({"messages": TURNS}, [{"messages": TURNS}]),
    "one row of messages on both sides": (
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        [{"prompt": TURNS[:1], "completion": TURNS[1:]}],
    ),
    "one row with tools": ({"tools": [{"name": "f"}], "messages": TURNS}, [{"tools": [{"name": "f"}], "messages": TURNS}]),
    "one row of turns under another name": ({"dialog": TURNS}, [{"dialog": TURNS}]),
    "one row of turns beside an id": ({"id": "1", "data": TURNS}, [{"id": "1", "data": TURNS}]),
    "one row of tokens": ({"input_ids": [1, 2], "labels": [1, 2]}, [{"input_ids": [1, 2], "labels": [1, 2]}]),
    "keyed": ({f"id{number}": row for number, row in enumerate(ROWS)}, ROWS),
    "keyed, one": ({"id1": ROWS[0]}, ROWS[:1]),
    "keyed conversations": ({"a": {"messages": TURNS}, "b": {"messages": TURNS}}, [{"messages": TURNS}] * 2),
    "keyed lists of messages": ({"a": TURNS, "b": TURNS, "c": SPEECH}, [TURNS, TURNS, SPEECH]),
    "one conversation of questions and answers": (
        {"conversation": [{"human": "q", "assistant": "a"}]},
        [{"conversation": [{"human": "q", "assistant": "a"}]}],
    ),
    "rows of questions and answers": ([{"user": "q", "assistant": "a"}] * 2, [{"user": "q", "assistant": "a"}] * 2),
    "rows with a role": (
        [{"role": "chef", "instruction": "q", "output": "a"}],
        [{"role": "chef", "instruction": "q", "output": "a"}],
    ),
    "parts of a tree of messages": (
        [{"role": "user", "content": "q", "message_id": "1", "parent_id": None}],
        [{"role": "user", "content": "q", "message_id": "1", "parent_id": None}],
    ),
    "keyed, of unknown names": ({"a": {"frage": "q"}, "b": {"frage": "r"}}, [{"frage": "q"}, {"frage": "r"}]),
    "records of pandas": (ROWS, ROWS),
    "split of pandas": (
        {"columns": [" Prompt", "completion"], "index": [*range(12)], "data": [[*row.values()] for row in ROWS]},
        ROWS,
    ),
    "index of pandas": ({str(number): row for number, row in enumerate(ROWS)}, ROWS),
    "columns of pandas": (
        {key: {str(number): row[key] for number, row in enumerate(ROWS)} for key in ("prompt", "completion")},
        ROWS,
    ),
    "columns of pandas with an index of names": (
        {"prompt": {"a": "q0", "b": "q1"}, "Completion": {"a": "a0", "b": "a1"}},
        ROWS[:2],
    ),
    "columns of pandas with unknown names": (
        {"frage": {"0": "q", "1": None}, "antwort": {"0": "a", "1": "b"}},
        [{"frage": "q", "antwort": "a"}, {"frage": None, "antwort": "b"}],
    ),
    "table of pandas": ({"schema": {"fields": [{"name": "prompt"}]}, "data": ROWS}, ROWS),
    "lists by columns": ({key: [row[key] for row in ROWS] for key in ("prompt", "completion")}, ROWS),
    "page of the datasets server": (PAGE, [{**row} for row in ROWS]),
    "SQuAD": (SQUAD, QUESTIONS),
    "articles of SQuAD": (SQUAD["data"], QUESTIONS),
}


def written(path: Path, value: Any, indent: int | None = None) -> Path:
    path.write_text(json.dumps(value, indent=indent))
    return path


def values_of(path: Path) -> list[Any]:
    (source,) = find_sources([str(path)])
    rows = read(source, "train")
    return [row.value if isinstance(row, Row) else row.reason for row in rows]


@pytest.mark.parametrize(("name", "indent"), [("a.json", None), ("a.json", 1), ("a.jsonl", None), ("a.jsonl", 1)])
@pytest.mark.parametrize("kind", FILES)
def test_the_rows_of_a_layout(kind: str, name: str, indent: int | None, tmp_path: Path) -> None:
    value, rows = FILES[kind]
    assert values_of(written(tmp_path / name, value, indent)) == rows


def test_a_value_that_is_nested_too_deeply(tmp_path: Path) -> None:
    deep = '{"a":' * 300_000
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text(deep)
    with pytest.raises(DataError, match=r"a\.json line 1: malformed JSON: nested too deeply$"):
        values_of(tmp_path / "a.json")
    assert values_of(tmp_path / "a.jsonl") == ["malformed JSON: nested too deeply"]


@pytest.mark.parametrize("kind", FILES)
def test_a_long_file_has_the_layout_of_a_short_one(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout is seen in the beginning of the file alone."""
    value, rows = FILES[kind]
    monkeypatch.setattr(json_rows, "LOOKAHEAD_CHARACTERS", 60)
    assert values_of(written(tmp_path / "a.json", value)) == rows
    text = json.dumps(value)
    if isinstance(value, dict):
        assert layout_of(value) in {layout_of(beginning_of(text[:cut], 0)[0]) for cut in (len(text) - 1, len(text) // 2)}


def test_the_beginning_of_a_value() -> None:
    text = '{"a": [1, {"b": "c"}, {"d": [2, "e'
    expected = {"a": [1, {"b": "c"}, {"d": [2, None]}]}
    assert beginning_of(text, 0)[0] == expected
    assert beginning_of(f"  {text}", 0)[0] == expected
    assert beginning_of('{"a": {"b', 0)[0] == {"a": {}}
    assert beginning_of('{"a"', 0)[0] == {}
    assert beginning_of("[[1], ", 0)[0] == [[1], None]
    assert beginning_of('{"a": 1}', 0) == ({"a": 1}, 8)


def test_lists_of_messages_line_by_line(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json"):
        path = tmp_path / name
        path.write_text(f"{json.dumps(TURNS)}\n{json.dumps(SPEECH)}\n")
        assert values_of(path) == [TURNS, SPEECH]
    path = tmp_path / "b.jsonl"
    path.write_text(json.dumps(TURNS))
    assert values_of(path) == [TURNS]


def test_an_object_over_several_lines_under_the_name_of_json_lines(tmp_path: Path) -> None:
    assert values_of(written(tmp_path / "a.jsonl", {"data": ROWS}, 2)) == ROWS
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))
    assert values_of(tmp_path / "b.jsonl") == ROWS


def test_cells_that_the_datasets_server_cut_off(tmp_path: Path) -> None:
    page = {"features": [], "rows": [{"row_idx": 0, "row": ROWS[0], "truncated_cells": ["prompt"]}, PAGE["rows"][1]]}  # type: ignore[index]
    assert values_of(written(tmp_path / "a.json", page)) == ["the datasets server has cut off its cells: prompt", ROWS[1]]


def test_a_malformed_article(tmp_path: Path) -> None:
    articles = [SQUAD["data"][0], {"paragraphs": [{"context": "c"}]}, {"title": "t"}]  # type: ignore[index]
    reason = "an article must have paragraphs with context and qas"
    assert values_of(written(tmp_path / "a.json", {"data": articles})) == [*QUESTIONS, reason, reason]


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        (
            [["q", "a"], ["r", "b"]],
            "holds rows without names of columns: ['q', 'a']",
            "write it with names, in pandas: to_json(FILE, orient='records', lines=True)",
        ),
        (
            {"train": ROWS, "test": ROWS},
            "holds several lists of rows: 'train', 'test'",
            "write each of them to a file of its own",
        ),
        (
            {"prompt": ["q", "r"], "completion": ["a"]},
            "has columns of different lengths",
            "write one object for each row",
        ),
    ],
)
def test_layouts_that_are_refused(value: Any, message: str, hint: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", value)
    with pytest.raises(DataError) as caught:
        values_of(path)
    assert caught.value.message == f"{path} {message}"
    assert caught.value.hint == hint


def test_a_row_with_too_many_cells(tmp_path: Path) -> None:
    table = {"columns": ["prompt", "completion"], "data": [["q", "a"], ["q"], 3]}
    reason = "a row must be a list of 2 cells, one for each column"
    assert values_of(written(tmp_path / "a.json", table)) == [{"prompt": "q", "completion": "a"}, reason, reason]


@pytest.mark.parametrize("kind", ["wrapped", "keyed", "split", "page"])
def test_memory_does_not_grow_with_the_file(kind: str, tmp_path: Path) -> None:
    def rows(count: int) -> Iterator[dict[str, str]]:
        return ({"prompt": f"{number} {'x' * 1000}", "completion": "a"} for number in range(count))

    def peak(count: int) -> int:
        value: Any = {
            "wrapped": lambda: {"version": 1, "data": list(rows(count))},
            "keyed": lambda: {str(number): row for number, row in enumerate(rows(count))},
            "split": lambda: {"columns": ["prompt", "completion"], "data": [[*row.values()] for row in rows(count)]},
            "page": lambda: {"rows": [{"row_idx": number, "row": row} for number, row in enumerate(rows(count))]},
        }[kind]()
        (source,) = find_sources([str(written(tmp_path / "a.json", value))])
        del value
        tracemalloc.start()
        assert sum(isinstance(row, Row) for row in read(source, "train")) == count
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    assert peak(12_000) < 1.3 * peak(4_000)


def test_layouts_by_name() -> None:
    assert layout_of({"data": ROWS}) == Layout("wrapped", "data")
    assert layout_of({"messages": TURNS, "data": ROWS}) is None
    assert layout_of({"text": "a"}) is None
