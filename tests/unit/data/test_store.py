from __future__ import annotations

import json
from pathlib import Path

from llmft_cli.data.formats import Document
from llmft_cli.data.rendering import IGNORED, Encoded
from llmft_cli.data.store import PreparedRow, load_split, supervised_count, write_json_lines, write_split

ROWS = [
    PreparedRow("a.jsonl", 1, Document("a"), Encoded([1, 2, 3], [IGNORED, 2, 3])),
    PreparedRow("a.jsonl", 2, Document("b"), Encoded([4, 5], [IGNORED, 5])),
    PreparedRow("a.jsonl", 3, Document("c"), Encoded([6], [6])),
]


def test_a_split_comes_back_as_sequences_with_their_rows_lengths(tmp_path: Path) -> None:
    write_split(tmp_path / "train", ROWS, [[0, 2], [1]])
    split = load_split(tmp_path, "train")
    assert split is not None
    assert split.to_list() == [
        {"input_ids": [1, 2, 3, 6], "labels": [IGNORED, 2, 3, 6], "row_lengths": [3, 1]},
        {"input_ids": [4, 5], "labels": [IGNORED, 5], "row_lengths": [2]},
    ]
    assert split.features["input_ids"].feature.dtype == "int32"
    assert load_split(tmp_path, "validation") is None


def test_lengths_and_supervised_tokens() -> None:
    assert [row.length for row in ROWS] == [3, 2, 1]
    assert [supervised_count(row.encoded) for row in ROWS] == [2, 1, 1]


def test_json_lines_hold_any_text(tmp_path: Path) -> None:
    values = [{"a": "é\u2028\n"}, {"source": "caf\udce9.jsonl"}]
    write_json_lines(tmp_path / "a.jsonl", values)
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == values
    assert lines[0] == '{"a": "é\u2028\\n"}'
