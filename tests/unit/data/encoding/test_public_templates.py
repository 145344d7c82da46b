"""Every template of today's models, with rows of eight kinds: the mask is that of an independent, slow reference.

The reference renders each answer after its own generation prompt. What comes of it is the table in docs/data-formats.md;
to write it anew: LLMFT_WRITE_TABLES=1 python -m pytest tests/unit/data/encoding/test_public_templates.py
"""

from __future__ import annotations

import contextlib
import os
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not find_spec("trl"):
    pytest.skip("needs trl's chat templates", allow_module_level=True)

from public_templates import TEMPLATES, PublicTemplate
from talks import TOOLS, Message, answer, result, rows_of, user

from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.examples import RowError

TABLE = Path(__file__).parents[4] / "docs/data-formats.md"


SYSTEM = {"role": "system", "content": "Be brief."}
KINDS: dict[str, list[Message]] = {
    "single": [user("How high?"), answer("Two metres.")],
    "multi-turn": [user("How high?"), answer("Two metres."), user("And how wide?"), answer("One metre.")],
    "system": [SYSTEM, user("How high?"), answer("Two metres."), user("And how wide?"), answer("One metre.")],
    "thinking": [
        *(user("How high?"), answer("Two metres.", "See the plan.")),
        *(user("And how wide?"), answer("One metre.", "The plan says one.")),
    ],
    "thinking last": [
        user("How high?"),
        answer("Two metres."),
        user("And how wide?"),
        answer("One metre.", "The plan says one."),
    ],
    "call": [user("Windy?"), answer("", places=("shed",)), result("shed", "4 m/s"), answer("A little.")],
    "parallel calls": [
        *(user("Windy?"), answer("", places=("shed", "roof"))),
        *(result("shed", "4 m/s"), result("roof", "9 m/s"), answer("On the roof.")),
    ],
    "call with content": [
        user("Windy?"),
        answer("Let me see.", places=("shed",)),
        result("shed", "4 m/s"),
        answer("A little."),
    ],
}


# The ids of a row up to an end of turn, and which of them, by position, the model has to write.
Learned = tuple[list[int], list[int]]


def reference(template: PublicTemplate, tokenizer: Any, messages: list[Message], tools: Any) -> list[Learned]:
    """What is to be learned of each answer."""
    known = [renamed(template, message) for message in messages]
    expected = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.apply_chat_template(known[:number], tools=tools, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(known[: number + 1], tools=tools, tokenize=False)
        whole += template.closing["tool_calls" in message]
        if whole.startswith(prompt):
            start = len(prompt)
        elif template.header == "<|start|>assistant":  # gpt-oss forgets earlier thinking once there is a last answer
            turn = whole.rindex(template.header) + len(template.header)
            whole, start = prompt + whole[turn:], len(prompt)
        else:  # the prompt writes something of the turn, such as the beginning of thinking, that is not in this answer
            start = shared_by(tokenizer, whole, prompt)
        stop = min(whole.index(end, start) + len(end) for end in template.ends if end in whole[start:])
        encoding = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        spans = encoding["offset_mapping"]
        count = sum(first < stop for first, _ in spans)
        expected.append((encoding["input_ids"][:count], [place for place in range(count) if spans[place][1] > start]))
    return expected


def shared_by(tokenizer: Any, *texts: str) -> int:
    """How many characters two texts share, in whole added tokens."""
    place = next((n for n, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), min(map(len, texts)))
    for text in texts:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        for token, (start, stop) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            if token in tokenizer.added_tokens_decoder and start < place < stop:
                place = start
    return place


def renamed(template: PublicTemplate, message: Message) -> Message:
    thought = message.get("reasoning_content")
    if not thought:
        return message
    rest = {key: value for key, value in message.items() if key != "reasoning_content"}
    if template.thinking_key:
        return rest | {template.thinking_key: thought}
    return rest | {"content": f"<think>\n{thought}\n</think>\n\n{message['content']}"}


def learned(encoder: ConversationEncoder, rows: list[Any]) -> list[Learned]:
    """What is learned in rows."""
    found = []
    for rendered, tokens in zip(rows, encoder.tokenise(rows), strict=True):
        encoded = encoder.mask(rendered, tokens)
        found += [(encoded.input_ids[:stop], list(range(start, stop))) for start, stop in encoded.supervised]
    return found


def tools_of(kind: str) -> Any:
    return TOOLS if "call" in kind else None


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_the_mask_is_that_of_the_reference(template: PublicTemplate, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[template.name]
    kept = 0
    for kind, messages in KINDS.items():
        with contextlib.suppress(RowError):
            encoder, rendered = rows_of(tokenizer, messages, tools_of(kind))
            assert rendered.left_out == []
            assert learned(encoder, rendered.rows) == reference(template, tokenizer, messages, tools_of(kind)), kind
            kept += 1
    assert kept >= 2


def cell(tokenizer: Any, kind: str) -> str:
    try:
        count = len(rows_of(tokenizer, KINDS[kind], tools_of(kind))[1].rows)
    except RowError as error:
        return "refused: " + str(error).removeprefix("the chat template ")
    return "1 row" if count == 1 else f"{count} rows"


def test_the_table_in_the_docs(tokenizers: dict[str, Any]) -> None:
    """In the docs, reasons are notes below the table."""
    table = {name: {kind: cell(tokenizer, kind) for kind in KINDS} for name, tokenizer in tokenizers.items()}
    reasons = list(dict.fromkeys(cell for row in table.values() for cell in row.values() if cell.startswith("refused: ")))
    short = {reason: f"refused ({number})" for number, reason in enumerate(reasons, 1)}
    lines = ["| | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(short.get(cell, cell) for cell in row.values()) + " |" for name, row in table.items()]
    for number, reason in enumerate(reasons, 1):
        note = f"{number}. The template {reason.removeprefix('refused: ').rstrip('.')}."
        lines += ["", *textwrap.wrap(note, 100, subsequent_indent="   ", break_on_hyphens=False)]
    text = TABLE.read_text(encoding="utf-8")
    start, end = "<!-- templates: begin -->\n", "<!-- templates: end -->\n"
    before, after = text.split(start)[0], text.split(end)[1]
    if os.environ.get("LLMFT_WRITE_TABLES") == "1":
        TABLE.write_text(before + start + "\n".join(lines) + "\n" + end + after, encoding="utf-8")
    assert text[len(before) + len(start) :].split(end)[0] == "\n".join(lines) + "\n"
