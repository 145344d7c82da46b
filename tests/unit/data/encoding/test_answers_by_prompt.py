"""Rows that were masked wrongly, or refused for an untrue reason, with the templates of today's models."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import pytest

if not find_spec("trl"):
    pytest.skip("needs trl's chat templates", allow_module_level=True)

from public_templates import PublicTemplate, tokenizer_with
from talks import TOOLS, Message, answer, user

from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.examples import Conversation, RowError


def learned_texts(tokenizer: Any, messages: list[Message], tools: Any = None, **options: Any) -> list[str]:
    rows = ConversationEncoder(tokenizer, **options).rows(Conversation(messages, tools)).rows
    return [row.text[start:stop] for row in rows for start, stop in row.learned_spans or ()]


def test_qwen3_learns_a_call_and_the_answer_after_its_result(tokenizers: dict[str, Any]) -> None:
    """Refused with "no end of turn after message 2", as the prompt of the answer renders the call in another way."""
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    }
    messages = [user("q"), call, {"role": "tool", "content": "r"}, answer("a")]
    tools = [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}}
    ]
    thought = "<think>\n\n</think>\n\n"
    assert learned_texts(tokenizers["Qwen3"], messages, tools) == [
        f'{thought}<tool_call>\n{{"name": "f", "arguments": {{}}}}\n</tool_call><|im_end|>',
        f"{thought}a<|im_end|>",
    ]


def test_gpt_oss_learns_the_answer_and_not_its_header_alone(tokenizers: dict[str, Any]) -> None:
    """Without a word, `<|channel|>final<|message|>` was learned and the answer was not."""
    messages = [user("q"), answer("a", "t"), user("r"), answer("b", "u")]
    between = "<|end|><|start|>assistant<|channel|>final<|message|>"
    assert learned_texts(tokenizers["gpt-oss"], messages) == [
        f"<|channel|>analysis<|message|>t{between}a<|return|>",
        f"<|channel|>analysis<|message|>u{between}b<|return|>",
    ]
    assert learned_texts(tokenizers["gpt-oss"], messages, rows_per_answer="off", on_unrendered="keep") == [
        "<|channel|>final<|message|>a<|end|>",
        f"<|channel|>analysis<|message|>u{between}b<|return|>",
    ]


def test_a_second_answer_in_a_row_is_learned_without_its_header(tokenizers: dict[str, Any]) -> None:
    """OLMo's template writes a line feed between two turns, and none before the prompt of the second."""
    messages = [user("q"), answer("a"), answer("b")]
    assert learned_texts(tokenizers["OLMo 2"], messages) == ["a<|endoftext|>", "b<|endoftext|>"]
    assert learned_texts(tokenizers["Qwen2.5"], messages) == ["a<|im_end|>", "b<|im_end|>"]


def test_calls_without_ids_get_some_where_the_template_demands_them(tokenizers: dict[str, Any]) -> None:
    """Refused with "'dict object' has no attribute 'tool_call_id'", though no format but OpenAI's has ids."""
    function = {"name": "wind", "arguments": {"place": "shed"}}
    called = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}] * 2}
    messages = [user("q"), called, {"role": "tool", "content": "r"}, {"role": "tool", "content": "s"}, answer("a")]
    [row] = ConversationEncoder(tokenizers["Mistral v3"]).rows(Conversation(messages, TOOLS)).rows
    assert re.findall(r"call\d{5}", row.text) == ["call00000", "call00001"] * 2


def test_a_reason_quotes_the_row_and_no_placeholder(tiny_tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{{ raise_exception('no ' + m.content) if m.role == 'system' }}{{ m.content }}{% endfor %}"
    )
    plain = PublicTemplate("own", [], "", [], text=template)
    messages = [{"role": "system", "content": "s"}, user("q"), answer("a")]
    with pytest.raises(RowError, match=r"^the chat template rejects this conversation: no s$"):
        ConversationEncoder(tokenizer_with(plain, tiny_tokenizer)).rows(Conversation(messages))
