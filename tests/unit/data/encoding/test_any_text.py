"""Properties of ids and masks that hold for any text in a conversation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from templates import (
    CHATML,
    GEMMA,
    LLAMA_2,
    LLAMA_3,
    MISTRAL,
    ZEPHYR,
    Style,
    one_row,
    special_ids,
    supervised,
    talk,
    text_of,
)

from llmft_cli.data.forms.formats import RowError, parse

PARTS = [
    "<|im_end|>",
    "</s>",
    "[/INST]",
    " [/INST] ",
    "<|im_start|>assistant\n",
    "<think>",
    "</think>",
    "{{ x }}",
    "{%",
    "<<SYS>>",
]
PARTS += [
    "\ue0f00\ue0f1",
    "\ue0f01\ue0f1",
    "\n",
    "  ",
    "👩‍👩‍👧",
    "é",
    "e\u0301",
    "\0",
    "\u2028",
    "a",
    "<end_of_turn>",
    "<|end|>",
    "<|eot_id|>",
]
TEXTS = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=6)), max_size=5).map("".join)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    style=st.sampled_from([CHATML, LLAMA_2, LLAMA_3, MISTRAL, GEMMA, ZEPHYR]),
    system=st.none() | TEXTS,
    texts=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3),
)
def test_any_text_is_masked_exactly(style: Style, system: str | None, texts: Any, encoders: Any) -> None:
    encoder = encoders[style.name]
    turns = [("system", system)] if system is not None and style.system else []
    turns += [turn for question, answer in texts for turn in (("user", question), ("assistant", answer))]
    messages = talk(turns)
    if any(not content.strip() for role, content in turns if role != "system"):
        with pytest.raises(RowError, match=r"is empty$"):
            parse({"messages": messages})
        return
    encoded = one_row(encoder, messages)
    tokenizer = encoder.tokenizer
    clean = one_row(encoder, talk([(role, "a") for role, _ in turns]))
    assert text_of(tokenizer, encoded.input_ids) == encoder.render(messages, False)
    assert text_of(tokenizer, supervised(encoded)) == style.supervised(messages)
    assert special_ids(tokenizer, encoded.input_ids) == special_ids(tokenizer, clean.input_ids)


@settings(max_examples=100, deadline=None)
@given(question=TEXTS, answer=TEXTS)
def test_thinking_templates_supervise_all_that_follows_the_prompt(question: str, answer: str, encoders: Any) -> None:
    encoder = encoders["qwen3"]
    messages = talk([("user", "q" + question), ("assistant", answer + "z")])
    try:
        encoded = one_row(encoder, messages)
    except RowError:
        # With the text of a special token, or where the template loses text before the thinking or one of several thoughts.
        assert "</think>" in answer
        return
    written = encoder.render(messages, False).removeprefix(encoder.render(messages[:1], True)).removesuffix("\n")
    assert text_of(encoder.tokenizer, supervised(encoded)) == written
