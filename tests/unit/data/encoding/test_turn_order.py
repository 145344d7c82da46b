"""Conversations in which the roles do not alternate, with templates that allow it."""

from __future__ import annotations

from typing import Any

import pytest
from templates import CHATML, LLAMA_3, Style, one_row, supervised, text_of, tokenizer_for

from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.formats import Conversation, parse


@pytest.mark.parametrize("style", [CHATML, LLAMA_3], ids=lambda style: style.name)
@pytest.mark.parametrize(
    "roles",
    ["assistant", "assistant user assistant", "system assistant", "user user assistant", "user assistant assistant",
     "system system user assistant", "user system assistant", "user assistant system user assistant",
     "user assistant tool assistant"],
)  # fmt: skip
def test_every_answer_and_its_end_of_turn_is_learned_and_nothing_else(roles: str, style: Style, tiny_tokenizer: Any) -> None:
    turns = [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(roles.split())]
    tokenizer = tokenizer_for(style, tiny_tokenizer)
    encoder = ConversationEncoder(tokenizer)
    example = parse({"messages": turns})[1]
    assert isinstance(example, Conversation)
    encoded = one_row(encoder, example.messages)
    said = "".join(turn["content"] + style.end for turn in turns if turn["role"] == "assistant")
    assert text_of(tokenizer, supervised(encoded)) == said
    assert all(turn["content"] in text_of(tokenizer, encoded.input_ids) for turn in turns)
