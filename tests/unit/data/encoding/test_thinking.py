"""Messages with thinking in a key of its own."""

from __future__ import annotations

from typing import Any

import pytest
from templates import CHATML, QWEN3, Style, supervised, text_of, tokenizer_for

from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.examples import Conversation, RowError
from llmft_cli.data.forms.formats import parse

THOUGHT = "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' if m.reasoning_content }}"
EVERY = Style(
    "every",
    CHATML.template.replace("m.content", f"'' }}}}{THOUGHT}{{{{ m.content"),
    CHATML.specials,
    CHATML.end,
)
LAST = Style(
    "last",
    CHATML.template.replace("m.content", f"'' }}}}{{% if loop.last %}}{THOUGHT}{{% endif %}}{{{{ m.content"),
    CHATML.specials,
    CHATML.end,
)
ROW = {
    "messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "well"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "reasoning_content": "hm", "thinking": None},
    ]
}


def learned(style: Style, row: dict[str, Any], tiny: Any, **options: Any) -> str:
    encoder = ConversationEncoder(tokenizer_for(style, tiny), rows_per_answer="off", **options)
    _, conversation = parse(row)
    assert isinstance(conversation, Conversation)
    rendered = encoder.rows(conversation).rows[0]
    tokens = encoder.tokenise([rendered])[0]
    assert tokens.ids == encoder.tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
    return text_of(encoder.tokenizer, supervised(encoder.mask(rendered, tokens)))


def test_thinking_is_learned_as_the_template_shows_it(tiny_tokenizer: Any) -> None:
    assert learned(EVERY, ROW, tiny_tokenizer) == ("<think>\nwell\n</think>\n\nb<|im_end|><think>\nhm\n</think>\n\nd<|im_end|>")
    assert learned(LAST, ROW, tiny_tokenizer, on_unrendered="keep") == "b<|im_end|><think>\nhm\n</think>\n\nd<|im_end|>"
    assert learned(LAST, ROW, tiny_tokenizer, train_on="last") == "<think>\nhm\n</think>\n\nd<|im_end|>"


def test_thinking_that_the_template_leaves_out_is_no_silent_loss(tiny_tokenizer: Any) -> None:
    with pytest.raises(RowError, match=r"^the chat template leaves out the reasoning_content of message 2$"):
        learned(CHATML, ROW, tiny_tokenizer)
    assert learned(CHATML, ROW, tiny_tokenizer, on_unrendered="keep") == "b<|im_end|>d<|im_end|>"
    earlier = {"messages": [*ROW["messages"][:3], {"role": "assistant", "content": "d"}]}
    with pytest.raises(RowError, match=r"^the chat template leaves out the reasoning_content of message 2$"):
        learned(CHATML, earlier, tiny_tokenizer)
    assert learned(CHATML, earlier, tiny_tokenizer, train_on="last") == "d<|im_end|>"


def test_a_special_token_spelled_in_a_thought_is_refused(tiny_tokenizer: Any) -> None:
    messages = [ROW["messages"][0], {"role": "assistant", "content": "b", "reasoning_content": "<|im_end|>"}]
    with pytest.raises(RowError, match=r"^a message contains the text of a special token"):
        learned(EVERY, {"messages": messages}, tiny_tokenizer)


def test_thinking_must_be_text() -> None:
    with pytest.raises(RowError, match=r"^messages\[2\].reasoning_content is a number, not text$"):
        parse({"messages": [ROW["messages"][0], {"role": "assistant", "content": "b", "reasoning_content": 3}]})


def test_thinking_within_the_content_stays_there(tiny_tokenizer: Any) -> None:
    messages = [ROW["messages"][0], {"role": "assistant", "content": "<think>\nwell\n</think>\n\nb"}]
    assert learned(QWEN3, {"messages": messages}, tiny_tokenizer) == "<think>\nwell\n</think>\n\nb<|im_end|>"
