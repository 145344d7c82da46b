"""Tables as people have them: names in other spellings, other separators, columns of bytes, times and decimals."""

from __future__ import annotations

import datetime
import decimal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.data.forms.formats import Conversation, RowError, parse, parse_columns
from llmft_cli.data.reading.column_names import known_names
from llmft_cli.data.reading.readers import read
from llmft_cli.data.reading.rows import Row
from llmft_cli.data.reading.sources import find_sources

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def values_of(path: Path, given: tuple[str, ...] = ()) -> list[Any]:
    (source,) = find_sources([str(path)])
    rows = list(read(replace(source, columns=frozenset(given)), "train"))
    assert all(isinstance(row, Row) for row in rows)
    return [row.value for row in rows if isinstance(row, Row)]


@pytest.mark.parametrize(
    ("names", "given", "known"),
    [
        (["Instruction", " Output"], [], ["instruction", "output"]),
        (["INPUT", "Input", "output"], [], ["INPUT", "Input", "output"]),
        (["output", " Output", "Source"], [], ["output", "Output", "Source"]),
        (["text", "text "], [], ["text", "text "]),
        (["Question", " Answer "], ["Question", " Answer "], ["Question", " Answer "]),
        (["", " Prompt"], [], ["", "prompt"]),
    ],
)
def test_names_are_known_in_another_spelling(names: list[str], given: list[str], known: list[str]) -> None:
    assert known_names(names, given) == known


def test_a_header_with_spaces_and_capitals(tmp_path: Path) -> None:
    """`Instruction, Output` used to be the keys `Instruction` and ` Output`, which no format has."""
    path = tmp_path / "a.csv"
    path.write_text('Instruction, Output\nq, a\n"q", "a, ""b"""\n')
    assert values_of(path) == [{"instruction": "q", "output": "a"}, {"instruction": "q", "output": 'a, "b"'}]
    assert parse(values_of(path)[0]) == ("alpaca", Conversation(TURNS))
    path.write_text("id,Instruction, Output\n1,q, a\n")
    assert values_of(path) == [{"id": "1", "instruction": "q", "output": " a"}]


def test_columns_may_name_a_column_that_begins_with_a_space(tmp_path: Path) -> None:
    columns = parse_columns("instruction=Instruction,output= Output")
    assert columns == {"instruction": "Instruction", "output": " Output"}
    path = tmp_path / "a.csv"
    path.write_text("Instruction, Output\nq,a\n")
    expected = ("alpaca", Conversation(TURNS))
    assert parse({"Instruction": "q", " Output": "a"}, "auto", columns) == expected
    assert parse({"Instruction": "q", "Output": "a"}, "auto", columns) == expected
    assert (
        parse({"Instruction": "q", "Output ": "a"}, "auto", parse_columns("instruction=Instruction,output=Output")) == expected
    )
    assert parse(values_of(path, tuple(columns.values()))[0], "auto", columns) == expected
    assert parse(values_of(path, ("Instruction", "Output"))[0], "auto", columns) == expected


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_the_separator_is_that_of_the_first_line(separator: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    path.write_text(f'\ufeff\nprompt{separator}completion\n"q;,\t|"{separator}a\n', encoding="utf-8")
    assert values_of(path) == [{"prompt": "q;,\t|", "completion": "a"}]


def test_a_first_line_of_sentences_is_a_header_where_the_user_names_them(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("What do you ask?,What is right?\nq,a\n")
    assert values_of(path, ("What do you ask?",)) == [{"What do you ask?": "q", "What is right?": "a"}]


def arrow_file(path: Path, columns: dict[str, Any]) -> Path:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(columns)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
        return path
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_cells_of_any_type_are_json_values(ending: str, tmp_path: Path) -> None:
    import pyarrow as pa

    columns = {
        " Prompt": pa.array([b"q", "\u00fc".encode()], pa.binary()),
        "Completion": pa.array(["a", "b"]).dictionary_encode(),
        "fixed": pa.array([b"ab", b"cd"], pa.binary(2)),
        "bytes": pa.array([[{"part": b"a"}], None], pa.list_(pa.struct([("part", pa.large_binary())]))),
        "long": pa.array([["a"], []], pa.large_list(pa.large_string())),
        "price": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(5, 2)),
        "when": pa.array([datetime.datetime(2024, 1, 2, 3, 4, 5), None], pa.timestamp("ns")),
        "day": pa.array([datetime.date(2024, 1, 2), None]),
        "time": pa.array([datetime.time(3, 4), None]),
        "duration": pa.array([datetime.timedelta(seconds=5), None]),
        "map": pa.array([[("k", b"v")], None], pa.map_(pa.string(), pa.binary())),
        "turns": pa.array([{"from": ["human", "gpt"], "value": ["q", "a"]}, None]),
    }
    if ending == ".arrow":
        columns["view"] = pa.array([["a"], None], pa.list_view(pa.string_view()))
    first, second = values_of(arrow_file(tmp_path / f"a{ending}", columns))
    assert first == {
        "prompt": "q",
        "completion": "a",
        "fixed": "ab",
        "bytes": [{"part": "a"}],
        "long": ["a"],
        "price": "1.50",
        "when": "2024-01-02T03:04:05",
        "day": "2024-01-02",
        "time": "03:04:00",
        "duration": "0:00:05",
        "map": {"k": "v"},
        "turns": {"from": ["human", "gpt"], "value": ["q", "a"]},
        **({"view": ["a"]} if ending == ".arrow" else {}),
    }
    assert second["prompt"] == "\u00fc"
    assert {second[name] for name in ("bytes", "price", "when", "day", "time", "duration", "map", "turns")} == {None}


def test_bytes_that_are_not_text_are_named(tmp_path: Path) -> None:
    import pyarrow as pa

    columns = {
        "prompt": pa.array([b"q", b"\xff\xd8"]),
        "completion": pa.array(["a", "a"]),
        "hash": pa.array([b"\xff", b"\xfe"]),
    }
    first, second = values_of(arrow_file(tmp_path / "a.parquet", columns))
    assert parse(first) == ("prompt-completion", Conversation(TURNS))
    with pytest.raises(RowError, match=r"^prompt is binary data that is not UTF-8, not text$"):
        parse(second)
