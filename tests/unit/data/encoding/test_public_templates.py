"""Every template of today's models, with rows of eight kinds: the mask is that of an independent, slow reference.

The reference renders each answer after its own generation prompt. What comes of it is the table in docs/data-formats.md;
to write it anew: LLMFT_WRITE_TABLES=1 python -m pytest tests/unit/data/encoding/test_public_templates.py
"""

from __future__ import annotations

import contextlib
import os
import re
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if not find_spec("trl"):
    pytest.skip("needs trl's chat templates", allow_module_level=True)

from public_templates import TEMPLATES, PublicTemplate, tokenizer_with

from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.examples import Conversation, RowError
from llmft_cli.data.forms.formats import parse

TABLE = Path(__file__).parents[4] / "docs/data-formats.md"
PARAMETERS = {"type": "object", "properties": {"place": {"type": "string", "description": "Where."}}, "required": ["place"]}
TOOLS = [{"type": "function", "function": {"name": "wind", "description": "Speed of the wind.", "parameters": PARAMETERS}}]
Message = dict[str, Any]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def answer(text: str, thought: str = "", places: tuple[str, ...] = ()) -> Message:
    functions = [("call" + place.rjust(5, "0"), {"name": "wind", "arguments": {"place": place}}) for place in places]
    calls = [{"id": identifier, "type": "function", "function": function} for identifier, function in functions]
    thinking = {"reasoning_content": thought} if thought else {}
    return {"role": "assistant", "content": text, **thinking} | ({"tool_calls": calls} if calls else {})


def result(place: str, text: str) -> Message:
    return {"role": "tool", "content": text, "tool_call_id": f"call{place.rjust(5, '0')}", "name": "wind"}


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


@pytest.fixture(scope="module")
def tokenizers(tiny_tokenizer: Any) -> dict[str, Any]:
    return {template.name: tokenizer_with(template, tiny_tokenizer) for template in TEMPLATES}


def tools_of(kind: str) -> Any:
    return TOOLS if "call" in kind else None


def rows_of(tokenizer: Any, messages: list[Message], tools: Any) -> tuple[ConversationEncoder, Any]:
    _, conversation = parse({"messages": messages} | ({"tools": tools} if tools else {}))
    assert isinstance(conversation, Conversation)
    encoder = ConversationEncoder(tokenizer)
    return encoder, encoder.rows(conversation)


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


# -- any conversation

WORDS = st.text(st.sampled_from("ab é\n\"{}<>/|[]'\\"), max_size=12) | st.sampled_from(["<think>", "</think>", "[INST]", " "])


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Message], bool]:
    """Messages in which each text ends with a word of its own, and whether there are tools."""
    messages: list[Message] = []
    with_tools = draw(st.booleans())

    def text(kind: str) -> str:
        return f"{draw(WORDS)} {kind}{len(messages)}."

    if draw(st.booleans()):
        messages.append({"role": "system", "content": text("system")})
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(text("user")))
        if with_tools and draw(st.booleans()):
            content, count = draw(st.sampled_from(["", text("content")])), draw(st.integers(1, 2))
            place = len(messages)
            messages.append(answer(content, places=tuple(f"place{place}{number}" for number in range(count))))
            for number in range(count):
                messages.append(result(f"place{place}{number}", text("result")))
        messages.append(answer(text("answer"), draw(st.sampled_from(["", text("thought")]))))
    return messages, with_tools


def without_spaces(text: str) -> str:
    """And without the tags of thinking, which are no text."""
    return re.sub(r"\s|</?think>", "", text)


def own_words(message: Message) -> set[str]:
    """The words that only this message has."""
    calls = {call["function"]["arguments"]["place"] for call in message.get("tool_calls", ())}
    return calls | words(message["content"]) | words(message.get("reasoning_content", ""))


def words(text: str) -> set[str]:
    return set(re.findall(r"(?:system|user|content|result|answer|thought|place)\d+", text))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(template=st.sampled_from(TEMPLATES), drawn=conversations())
def test_each_answer_is_learned_whole_and_alone(template: PublicTemplate, drawn: Any, tokenizers: dict[str, Any]) -> None:
    """Whatever is kept: every answer is in one span, no span has words of other messages, and nothing is lost."""
    messages, with_tools = drawn
    try:
        _, rendered = rows_of(tokenizers[template.name], messages, TOOLS if with_tools else None)
    except RowError:
        return
    spans = [row.text[start:stop] for row in rendered.rows for start, stop in row.learned_spans]
    answers = [message for message in messages if message["role"] == "assistant"]
    assert len(spans) == len(answers)
    everything = {word for message in messages for word in own_words(message)}
    for message in answers:
        [span] = [span for span in spans if own_words(message) <= words(span)]
        assert words(span) & everything == own_words(message)
        assert without_spaces(message["content"]) in without_spaces(span)
        assert span.endswith(tuple(template.ends))
    texts = "\n".join(row.text for row in rendered.rows)
    assert words(texts) >= everything


# -- rows that were masked wrongly or refused for an untrue reason


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
