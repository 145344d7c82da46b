"""Conversations with tools: locating the calls in the rendered text, and what is supervised."""

from __future__ import annotations

from typing import Any

import pytest
from templates import CHATML, DEEPSEEK, Style, one_row, special_ids, supervised, talk, text_of, tokenizer_for

from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.examples import Conversation, RowError

# As Qwen's: calls as JSON between words that are tokens but not marked special, results in a user turn.
QWEN_TOOLS = Style(
    "qwen-tools",
    """{% if tools %}{{ '<|im_start|>system\nTools: ' + tools | tojson + '<|im_end|>\n' }}{% endif %}
{%- for m in messages %}{% if m.role == 'tool' %}{{ '<|im_start|>user\n<r>' + m.content + '</r><|im_end|>\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\n' + m.content }}
{%- for call in m.tool_calls %}{{ '\n<call>' + call.function | tojson + '</call>' }}{% endfor %}{{ '<|im_end|>\n' }}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    ["<|im_start|>", "<|im_end|>"],
    "<|im_end|>",
)
# As Llama-3.1's and Mistral's: a special token before the call, results as JSON, another end of turn after a call.
LLAMA_TOOLS = Style(
    "llama-tools",
    """{{ bos_token }}{% for m in messages %}{{ '<|h|>' + m.role + '<|/h|>\n\n' }}
{%- if m.tool_calls %}{{ '<|python_tag|>' + m.tool_calls[0].function | tojson + '<|eom_id|>' }}
{%- elif m.role == 'tool' %}{{ m.content | tojson + '<|eot_id|>' }}{% else %}
{%- if loop.first and tools %}{{ tools[0].function.name + '? ' }}{% endif %}{{ m.content + '<|eot_id|>' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\n\n' }}{% endif %}""",
    ["<|bos|>", "<|h|>", "<|/h|>", "<|python_tag|>", "<|eom_id|>", "<|eot_id|>"],
    "<|eot_id|>",
    bos="<|bos|>",
)
CALL = {"type": "function", "function": {"name": "wind", "arguments": {"place": "shed"}}}
TOOLS = [{"type": "function", "function": {"name": "wind", "description": "Wind now."}}]
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "How windy is it?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"speed": "4 m/s"}'},
    {"role": "assistant", "content": "Four metres per second."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "You are welcome."},
]


@pytest.fixture(params=["qwen", "llama"])
def style(request: pytest.FixtureRequest) -> Style:
    return {"qwen": QWEN_TOOLS, "llama": LLAMA_TOOLS}[request.param]


def encode(style: Style, tiny: Any, conversation: Conversation, train_on: str = "assistant") -> tuple[Any, str, str]:
    tokenizer = tokenizer_for(style, tiny)
    tokenizer.add_tokens(["<call>", "</call>"])
    encoder = ConversationEncoder(tokenizer, train_on)
    rendered = encoder.rows(conversation).rows[0]
    encoded = encoder.mask(rendered, encoder.tokenise([rendered])[0])
    assert encoded.input_ids == tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
    return encoder, text_of(tokenizer, encoded.input_ids), text_of(tokenizer, supervised(encoded))


def test_calls_and_answers_are_learned_with_their_ends(tiny_tokenizer: Any) -> None:
    _, text, learned = encode(QWEN_TOOLS, tiny_tokenizer, Conversation(MESSAGES, TOOLS))
    assert learned == (
        '\n<call>{"name": "wind", "arguments": {"place": "shed"}}</call><|im_end|>'
        "Four metres per second.<|im_end|>You are welcome.<|im_end|>"
    )
    assert text.startswith('<|im_start|>system\nTools: [{"type": "function", "function": {"name": "wind"')
    _, text, learned = encode(LLAMA_TOOLS, tiny_tokenizer, Conversation(MESSAGES, TOOLS))
    assert learned == (
        '<|python_tag|>{"name": "wind", "arguments": {"place": "shed"}}<|eom_id|>'
        "Four metres per second.<|eot_id|>You are welcome.<|eot_id|>"
    )
    assert text.startswith("<|bos|><|h|>user<|/h|>\n\nwind? How windy")


def test_a_conversation_may_end_with_a_call(style: Style, tiny_tokenizer: Any) -> None:
    _, _, learned = encode(style, tiny_tokenizer, Conversation(MESSAGES[:2], TOOLS))
    assert learned.endswith("<|im_end|>" if style is QWEN_TOOLS else "<|eom_id|>")
    assert '"place": "shed"' in learned


def test_what_is_learned_can_be_chosen(style: Style, tiny_tokenizer: Any) -> None:
    _, text, learned = encode(style, tiny_tokenizer, Conversation(MESSAGES, TOOLS), "last")
    assert learned == "You are welcome." + style.end
    _, text, learned = encode(style, tiny_tokenizer, Conversation(MESSAGES, TOOLS), "all")
    assert learned == text[len("<|im_start|>" if style is QWEN_TOOLS else "<|bos|>") :]
    trained = (False, False, False, True, False, False)
    _, _, learned = encode(style, tiny_tokenizer, Conversation(MESSAGES, TOOLS, trained))
    assert learned == "Four metres per second." + style.end
    with pytest.raises(RowError, match=r"^no token is supervised$"):
        encode(style, tiny_tokenizer, Conversation(MESSAGES, TOOLS, trained), "last")


def test_a_template_that_knows_nothing_of_tools_is_no_silent_loss(tiny_tokenizer: Any) -> None:
    with pytest.raises(RowError, match=r"^the chat template ignores the tools$"):
        encode(CHATML, tiny_tokenizer, Conversation(MESSAGES, TOOLS))
    with pytest.raises(RowError, match=r"^the chat template leaves out the tool calls in message 2$"):
        encode(CHATML, tiny_tokenizer, Conversation(MESSAGES))
    without_results = QWEN_TOOLS.template.replace("m.content + '</r>", "'</r>")
    silent = Style("silent", without_results, QWEN_TOOLS.specials, QWEN_TOOLS.end)
    with pytest.raises(RowError, match=r"^the chat template leaves out the tool result in message 3$"):
        encode(silent, tiny_tokenizer, Conversation(MESSAGES))


def test_a_template_that_insists_on_the_order_of_turns_keeps_its_calls(tiny_tokenizer: Any) -> None:
    """Testing whether the template renders calls by removing them failed on such templates, so valid rows were rejected."""
    check = """{% set ns = namespace(turn=0) %}{% for m in messages %}
{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
{%- if (m.role == 'user') != (ns.turn % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- set ns.turn = ns.turn + 1 %}{% endif %}{% endfor %}"""
    strict = Style("strict", check + QWEN_TOOLS.template, QWEN_TOOLS.specials, QWEN_TOOLS.end)
    assert (
        encode(strict, tiny_tokenizer, Conversation(MESSAGES, TOOLS))[2]
        == (encode(QWEN_TOOLS, tiny_tokenizer, Conversation(MESSAGES, TOOLS))[2])
    )


@pytest.mark.parametrize("place", ["question", "argument", "result", "schema"])
def test_a_special_token_spelled_beside_calls_is_refused(place: str, style: Style, tiny_tokenizer: Any) -> None:
    """The template's own special tokens could not be told apart from those in messages."""
    spelled = style.specials[1]
    messages = [dict(message) for message in MESSAGES]
    tools = TOOLS
    if place == "question":
        messages[0]["content"] += spelled
    elif place == "argument":
        messages[1]["tool_calls"] = [{"type": "function", "function": {"name": "wind", "arguments": {"place": spelled}}}]
    elif place == "result":
        messages[2]["content"] = spelled
    else:
        tools = [{"type": "function", "function": {"name": "wind", "description": spelled}}]
    with pytest.raises(RowError, match=r"^a message contains the text of a special token"):
        encode(style, tiny_tokenizer, Conversation(messages, tools))


def test_plain_conversations_can_be_learned_in_part(encoders: Any) -> None:
    for style in (CHATML, DEEPSEEK):
        encoder = encoders[style.name]
        turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
        rendered = encoder.rows(Conversation(talk(turns), trained=(False, True, False, False))).rows[0]
        encoded = encoder.mask(rendered, encoder.tokenise([rendered])[0])
        assert text_of(encoder.tokenizer, supervised(encoded)) == "b" + style.end
        assert special_ids(encoder.tokenizer, encoded.input_ids) == special_ids(
            encoder.tokenizer, one_row(encoder, talk(turns)).input_ids
        )


def test_where_turns_begin_after_calls_and_answers(style: Style, tiny_tokenizer: Any) -> None:
    tokenizer = tokenizer_for(style, tiny_tokenizer)
    tokenizer.add_tokens(["<call>", "</call>"])
    rendered = ConversationEncoder(tokenizer).rows(Conversation(MESSAGES, TOOLS)).rows[0]
    starts = [(rendered.text[start:].lstrip(), by_user) for start, by_user in rendered.turn_starts]
    user = "<|im_start|>user\n" if style is QWEN_TOOLS else "<|h|>user<|/h|>\n\n"
    result = "<|im_start|>user\n<r>" if style is QWEN_TOOLS else "<|h|>tool<|/h|>\n\n"
    assert [by_user for _, by_user in starts] == [False, True]
    assert starts[0][0].startswith(result)
    assert starts[1][0].startswith(f"{user}Thanks")
