"""What prepare is told to read: weights, caps, and rows in chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from templates import CHATML, tokenizer_for

from llmft_cli.base.errors import DataError
from llmft_cli.data import inputs
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.inputs import chunks, find_inputs
from llmft_cli.settings.config import resolve


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for name, count in (("a.jsonl", 5), ("b.jsonl", 7)):
        (tmp_path / name).write_text("".join(f'{{"prompt": "{name} {row}?", "completion": "yes"}}\n' for row in range(count)))
    return [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]


def test_weights_and_caps(files: list[str]) -> None:
    found = find_inputs(files, resolve({"weights": "0.5,2", "max_rows": "3"}))
    assert [(item.name, item.weight, item.max_rows) for item in found] == [(files[0], 0.5, 3), (files[1], 2.0, 3)]
    plain = find_inputs(files, resolve({}))
    assert [(item.weight, item.max_rows) for item in plain] == [(1.0, None), (1.0, None)]
    assert plain[0].size_bytes == Path(files[0]).stat().st_size


def test_standard_input_can_be_named_once() -> None:
    with pytest.raises(DataError, match=r"^standard input \(-\) is given twice but can be read only once$"):
        find_inputs(["-", "a.jsonl", "-"], resolve({}))


def test_rows_come_in_order_in_chunks_that_are_bounded(
    files: list[str], monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any
) -> None:
    encoder = ConversationEncoder(tokenizer_for(CHATML, tiny_tokenizer))
    found = find_inputs(files, resolve({"max_rows": "4,7"}))
    consumed: list[int] = []
    monkeypatch.setattr(inputs, "CHUNK_ROWS", 3)
    rows = [chunk.rows for chunk in chunks(found, encoder, resolve({}), consumed.append)]
    assert [len(part) for part in rows] == [3, 3, 3, 2]
    assert [(row.input, row.line) for part in rows for row in part] == [(0, n) for n in range(1, 5)] + [
        (1, n) for n in range(1, 8)
    ]
    assert [item.read for item in found] == [4, 7]
    monkeypatch.setattr(inputs, "CHUNK_CHARACTERS", 1)
    again = list(chunks(find_inputs(files, resolve({})), encoder, resolve({}), consumed.append))
    assert [len(chunk.rows) for chunk in again] == [1] * 12
