"""The inputs of prepare: weights, row limits, and rows in chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from templates import CHATML, Style, tokenizer_for

from llmft_cli.base.errors import DataError
from llmft_cli.data import inputs
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.examples import Conversation
from llmft_cli.data.inputs import ParsedRow, chunks, find_inputs, parse_row
from llmft_cli.data.reading.rows import Row
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


# As Mistral's: roles must alternate.
STRICT = Style(
    "strict",
    """{% for m in messages %}{% if m.role != ('assistant' if loop.index0 % 2 else 'user') %}
{{- raise_exception('roles must alternate') }}{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    ["<|im_start|>", "<|im_end|>"],
    "<|im_end|>",
)


def parsed(turns: list[tuple[str, str]], style: Style, tiny: Any, **settings: Any) -> ParsedRow:
    value = {"messages": [{"role": role, "content": content} for role, content in turns]}
    config = resolve(settings)
    encoder = ConversationEncoder(tokenizer_for(style, tiny), on_unrendered=config.on_unrendered)
    return parse_row(0, Row("a.jsonl", 1, value), encoder, config, None)


def test_a_template_decides_about_turns_of_the_same_role_and_the_cure_is_named(tiny_tokenizer: Any) -> None:
    """Two users in a row were refused whatever the template allows, without a cure."""
    turns = [("user", "q"), ("user", "r"), ("assistant", "a")]
    assert parsed(turns, CHATML, tiny_tokenizer).error == ""
    refused = "the chat template rejects this conversation: roles must alternate"
    cure = "; --merge-turns would join messages of the same role and keep the row"
    assert parsed(turns, STRICT, tiny_tokenizer).error == refused + cure
    joined = parsed(turns, STRICT, tiny_tokenizer, merge_turns=True)
    assert joined.rendered is not None
    assert joined.rendered.rows[0].text == "<|im_start|>user\nq\n\nr<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    # Joining turns would not help these.
    for others in ([("user", "q"), ("system", "s"), ("assistant", "a")], [("system", "s"), *turns]):
        assert parsed(others, STRICT, tiny_tokenizer).error == refused


def test_calls_in_a_text_stay_text_where_the_template_has_no_calls(tiny_tokenizer: Any) -> None:
    turns = [("user", "q"), ("assistant", "[f(x=1)]"), ("tool", "r"), ("assistant", "a")]
    for keep in ("reject", "keep"):
        row = parsed(turns, CHATML, tiny_tokenizer, on_unrendered=keep)
        assert row.error == ""
        assert row.rendered is not None
        assert "<|im_start|>assistant\n[f(x=1)]<|im_end|>" in row.rendered.rows[0].text
        assert row.rendered.left_out == []
        assert row.example == Conversation([{"role": role, "content": content} for role, content in turns])
