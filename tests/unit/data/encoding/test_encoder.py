from __future__ import annotations

from typing import Any

import pytest
from templates import (
    CHATML,
    LLAMA_2,
    LLAMA_3,
    MISTRAL,
    PHI_3,
    QWEN3,
    STYLES,
    ZEPHYR,
    Style,
    metaspace_tokenizer,
    one_row,
    special_ids,
    supervised,
    talk,
    text_of,
    tokenizer_for,
)

from llmft_cli.base.errors import ModelError
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.examples import IGNORED, Conversation
from llmft_cli.data.forms.formats import RowError

SINGLE = [("user", "How do I mount it?"), ("assistant", "Fix the bracket with two screws.")]
MULTI = [*SINGLE, ("user", "And the red light?"), ("assistant", "The battery is low.")]
SYSTEM = [("system", "Answer in one sentence.")]
CONVERSATIONS = {"single": SINGLE, "multi": MULTI, "system": SYSTEM + SINGLE, "system-multi": SYSTEM + MULTI}
SENTENCES = ["Fix the bracket to a post with two screws.", "The battery is low: charge it for four hours."]


@pytest.fixture
def make_encoder(tiny_tokenizer: Any) -> Any:
    """An encoder for the given template, with ChatML's special tokens."""

    def make(template: str) -> ConversationEncoder:
        style = Style("own", template, ["<|im_start|>", "<|im_end|>"], "<|im_end|>")
        return ConversationEncoder(tokenizer_for(style, tiny_tokenizer), rows_per_answer="off")

    return make


def cases() -> list[Any]:
    return [
        pytest.param(style, turns, id=f"{style.name}-{name}")
        for style in STYLES
        for name, turns in CONVERSATIONS.items()
        if style.system or "system" not in name
    ]


def brute_force_labels(encoder: ConversationEncoder, messages: list[dict[str, str]], style: Style, ids: list[int]) -> list[int]:
    """A reference mask: locates tokens in the text by their bytes, and answers by searching."""
    added = {number: len(token.content.encode()) for number, token in encoder.tokenizer.added_tokens_decoder.items()}
    text = encoder.render(messages, False)
    marked = [False] * len(text.encode())
    before = len(text)
    # From the end: a question before the answer may contain the same words.
    for part in reversed(style.supervised(messages).split(style.end)[:-1]):
        start = text.rindex(part + style.end, 0, before)
        for byte in range(len(text[:start].encode()), len(text[: start + len(part + style.end)].encode())):
            marked[byte] = True
        before = start
    labels, place = [], 0
    for token in ids:
        # A byte-level vocabulary spells every byte as one character.
        size = added.get(token) or len(encoder.tokenizer.convert_ids_to_tokens(token))
        labels.append(token if any(marked[place : place + size]) else IGNORED)
        place += size
    assert place == len(marked)
    return labels


@pytest.mark.parametrize(("style", "turns"), cases())
def test_supervises_exactly_the_answers_and_their_ends(style: Style, turns: Any, encoders: Any) -> None:
    encoder, messages = encoders[style.name], talk(turns)
    encoded = one_row(encoder, messages)
    tokenizer = encoder.tokenizer
    assert text_of(tokenizer, supervised(encoded)) == style.supervised(messages)
    if not style.rstrip:  # a token that absorbs spaces does not decode to them
        assert text_of(tokenizer, encoded.input_ids) == encoder.render(messages, False)
        assert encoded.labels == brute_force_labels(encoder, messages, style, encoded.input_ids)


@pytest.mark.parametrize(("style", "turns"), cases())
def test_ids_are_the_tokenizers_for_the_rendered_text(style: Style, turns: Any, encoders: Any) -> None:
    encoder, messages = encoders[style.name], talk(turns)
    ids = one_row(encoder, messages).input_ids
    text = encoder.render(messages, False)
    assert ids == encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    if style.bos:
        assert ids.count(encoder.tokenizer.bos_token_id) == text.count(style.bos)


@pytest.mark.parametrize("style", [CHATML, LLAMA_2, LLAMA_3, MISTRAL, QWEN3, ZEPHYR], ids=lambda style: style.name)
@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_the_prompt_begins_the_conversation_and_nothing_of_it_is_supervised(style: Style, turns: Any, encoders: Any) -> None:
    encoder, messages = encoders[style.name], talk(turns)
    prompt = encoder.prompt(messages[:-1])
    encoded = one_row(encoder, messages)
    assert encoded.input_ids[: len(prompt)] == prompt
    answer = [label for label in encoded.labels[len(prompt) :] if label != IGNORED]
    assert text_of(encoder.tokenizer, answer) == style.supervised([messages[-1]])
    assert encoded.labels[len(prompt)] != IGNORED
    if len(messages) == 2:
        assert encoded.labels[: len(prompt)] == [IGNORED] * len(prompt)


def test_llama_2_in_full(encoders: Any) -> None:
    encoder = encoders["llama-2"]
    messages = talk(
        [("system", " Be brief. "), ("user", " Hi "), ("assistant", "\nHello. "), ("user", "Bye"), ("assistant", "Bye.")]
    )
    encoded = one_row(encoder, messages)
    assert text_of(encoder.tokenizer, encoded.input_ids) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Bye [/INST] Bye. </s>"
    )
    assert text_of(encoder.tokenizer, supervised(encoded)) == " Hello. </s> Bye. </s>"
    assert encoded.input_ids.count(encoder.tokenizer.bos_token_id) == 2


def test_a_template_without_system_messages_refuses_them(encoders: Any) -> None:
    with pytest.raises(RowError, match=r"^the chat template .*: System role not supported$"):
        one_row(encoders["gemma"], talk(SYSTEM + SINGLE))


def test_earlier_thinking_that_the_template_strips_is_not_supervised(encoders: Any) -> None:
    turns = [("user", "a"), ("assistant", "<think>\nwell\n</think>\n\nb"), ("user", "c"), ("assistant", "d")]
    with pytest.raises(RowError, match=r"^the chat template leaves out the thinking of message 2$"):
        encoders["qwen3"].rows(Conversation(talk(turns)))
    encoder = ConversationEncoder(encoders["qwen3"].tokenizer, rows_per_answer="off", on_unrendered="keep")
    assert encoder.rows(Conversation(talk(turns))).left_out == ["the thinking of message 2"]
    encoded = one_row(encoder, talk(turns))
    assert text_of(encoder.tokenizer, supervised(encoded)) == "b<|im_end|><think>\n\n</think>\n\nd<|im_end|>"


@pytest.mark.parametrize(
    "thought", ["<think>\nwell\n</think>\n\n", "<think>well</think>"], ids=["as-rendered", "laid-out-anew"]
)
def test_thinking_of_the_last_turn_is_supervised(thought: str, encoders: Any) -> None:
    encoder = encoders["qwen3"]
    encoded = one_row(encoder, talk([("user", "a"), ("assistant", thought + "b")]))
    assert text_of(encoder.tokenizer, supervised(encoded)) == "<think>\nwell\n</think>\n\nb<|im_end|>"


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_content_that_spells_special_tokens_never_becomes_them(style: Style, encoders: Any) -> None:
    encoder = encoders[style.name]
    spelled = "x" + "".join(style.specials) + "y"
    plain = talk([("user", "xy"), ("assistant", "xy"), ("user", "xy"), ("assistant", "xy")])
    messages = talk([("user", spelled), ("assistant", spelled), ("user", spelled), ("assistant", spelled)])
    encoded, clean = one_row(encoder, messages), one_row(encoder, plain)
    tokenizer = encoder.tokenizer
    assert special_ids(tokenizer, encoded.input_ids) == special_ids(tokenizer, clean.input_ids)
    assert special_ids(tokenizer, supervised(encoded)) == [tokenizer.convert_tokens_to_ids(style.end.strip())] * 2
    assert text_of(tokenizer, supervised(encoded)) == style.supervised(messages)
    assert special_ids(tokenizer, encoder.prompt(messages[:-1])) == special_ids(tokenizer, encoder.prompt(plain[:-1]))


@pytest.mark.parametrize("style", [LLAMA_2, MISTRAL], ids=lambda style: style.name)
def test_no_space_is_put_in_where_text_is_split_around_special_tokens(style: Style) -> None:
    tokenizer = metaspace_tokenizer(style, SENTENCES)
    encoder = ConversationEncoder(tokenizer)
    messages = talk([("user", "is </s> it"), ("assistant", "low </s> four")])
    encoded = one_row(encoder, messages)
    plain = tokenizer(encoder.render(talk([("user", "is it"), ("assistant", "low")]), False), add_special_tokens=False)
    leading = len(text_of(tokenizer, plain["input_ids"])) - len(text_of(tokenizer, plain["input_ids"]).lstrip())
    assert text_of(tokenizer, encoded.input_ids)[leading:] == encoder.render(messages, False)
    assert text_of(tokenizer, supervised(encoded)) == style.supervised(messages)
    assert encoded.input_ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("style", [LLAMA_2, MISTRAL, PHI_3, CHATML], ids=lambda style: style.name)
def test_text_between_special_tokens_gets_the_ids_it_would_have_had(style: Style, tiny_tokenizer: Any) -> None:
    tokenizers = [tokenizer_for(style, tiny_tokenizer)]
    tokenizers += [] if style.rstrip else [metaspace_tokenizer(style, SENTENCES)]
    for tokenizer in tokenizers:
        encoder = ConversationEncoder(tokenizer)
        text = encoder.render(talk(MULTI), False)
        owned = [match.span() for match in encoder._tokeniser.control.finditer(text)]
        tokens = encoder._tokeniser._encode_around(text, owned)
        expected = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert tokens.ids == expected["input_ids"]
        assert tokens.offsets == expected["offset_mapping"]


def test_offsets_without_their_spaces_give_the_same_mask(tiny_tokenizer: Any) -> None:
    from tokenizers import processors

    for style in (CHATML, LLAMA_2, ZEPHYR):
        tokenizer = tokenizer_for(style, tiny_tokenizer)
        messages = talk([("user", " a \n"), ("assistant", "  \n b  \n\n"), ("user", "c"), ("assistant", " d ")])
        expected = one_row(ConversationEncoder(tokenizer), messages)
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
        assert one_row(ConversationEncoder(tokenizer), messages) == expected


def test_a_special_token_that_swallows_the_spaces_of_an_answer_is_not_supervised(encoders: Any) -> None:
    encoder = encoders["phi-3"]
    encoded = one_row(encoder, talk([("user", "a"), ("assistant", "  b")]))
    assert text_of(encoder.tokenizer, supervised(encoded)) == "b<|end|>"


HEADLESS = "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"


def test_a_template_without_generation_prompt_has_the_model_write_the_header(make_encoder: Any) -> None:
    encoder = make_encoder(HEADLESS)
    encoded = one_row(encoder, talk([("user", "a"), ("assistant", "b")]))
    assert text_of(encoder.tokenizer, encoder.prompt(talk([("user", "a")]))) == "user: a<|im_end|>"
    assert text_of(encoder.tokenizer, supervised(encoded)) == "assistant: b<|im_end|>"


def test_no_end_of_turn_is_refused(make_encoder: Any) -> None:
    encoder = make_encoder("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    with pytest.raises(RowError, match=r"^the chat template adds no end of turn after message 2$"):
        one_row(encoder, talk(MULTI))
    assert encoder.end_of_turn() is None


def test_a_message_that_the_template_leaves_out_is_refused(make_encoder: Any) -> None:
    without_system = HEADLESS.replace("in messages", "in messages if m.role != 'system'")
    encoder = make_encoder(without_system)
    assert text_of(encoder.tokenizer, supervised(one_row(encoder, talk(SINGLE)))).endswith("two screws.<|im_end|>")
    for ask, conversation in ((encoder.rows, Conversation(talk(SYSTEM + SINGLE))), (encoder.prompt, talk(SYSTEM + SINGLE))):
        with pytest.raises(RowError, match=r"^the chat template leaves out message 1 \(system\)$"):
            ask(conversation)


def test_an_answer_that_the_template_rewrites_is_refused(make_encoder: Any) -> None:
    encoder = make_encoder(HEADLESS.replace("m.content", "m.content | replace('screws', 'nails')"))
    with pytest.raises(RowError, match=r"^the chat template leaves out or changes a part of message 2 \(assistant\)$"):
        one_row(encoder, talk(SINGLE))


def test_an_end_of_turn_that_is_not_special_may_not_be_spelled(tiny_tokenizer: Any) -> None:
    style = Style("own", HEADLESS.replace("<|im_end|>", "<end>"), [], "<|im_end|>")
    tokenizer = tokenizer_for(style, tiny_tokenizer)
    tokenizer.add_tokens(["<end>"])
    encoder = ConversationEncoder(tokenizer)
    assert supervised(one_row(encoder, talk(SINGLE)))[-1] == tokenizer.convert_tokens_to_ids("<end>")
    reason = r"^a message contains <end>, the end of turn, which the tokenizer does not mark as special$"
    with pytest.raises(RowError, match=reason):
        one_row(encoder, talk([("user", "say <end>"), ("assistant", "no")]))


def test_no_template_and_a_broken_one(make_encoder: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(ModelError, match=r"^the model's tokenizer has no chat template$"):
        one_row(make_encoder(None), talk(SINGLE))
    assert make_encoder(None).end_of_turn() is None
    with pytest.raises(ModelError, match=r"^the chat template is not valid Jinja \(line 2\): ") as caught:
        one_row(make_encoder("{# comment #}\n{% for m in %}"), talk(SINGLE))
    assert "--chat-template" in caught.value.hint


def test_end_of_turn_of_every_style(encoders: Any) -> None:
    for style in STYLES:
        encoder = encoders[style.name]
        assert encoder.end_of_turn() == encoder.tokenizer.convert_tokens_to_ids(style.end.strip())


def test_a_document_stands_between_beginning_and_end_of_text(encoders: Any) -> None:
    encoder = encoders["llama-3"]
    ids = encoder.document("a <|eot_id|> b")
    assert text_of(encoder.tokenizer, ids) == "<|begin_of_text|>a <|eot_id|> b<|eot_id|>"
    assert special_ids(encoder.tokenizer, ids) == [encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id]


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_what_all_rows_begin_with_is_tokenised_once_and_nothing_changes(style: Style, tiny_tokenizer: Any) -> None:
    for tokenizer in (tokenizer_for(style, tiny_tokenizer), metaspace_tokenizer(style, SENTENCES)):
        encoder = ConversationEncoder(tokenizer)
        rows = [
            encoder.rows(Conversation(talk([("user", text), ("assistant", text)]))).rows[0] for text in ("a b", " a\n", "é")
        ]
        with_head = encoder.tokenise(rows)
        without = encoder.tokenise([rendered._replace(prefix_length=0) for rendered in rows])
        for rendered, one, other in zip(rows, with_head, without, strict=True):
            assert one.ids == other.ids == tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
            assert encoder.mask(rendered, one) == encoder.mask(rendered, other)


def test_a_head_that_changes_what_follows_is_not_used(tiny_tokenizer: Any) -> None:
    def heads(tokenizer: Any) -> list[bool]:
        encoder = ConversationEncoder(tokenizer)
        one_row(encoder, talk(SINGLE))
        return [ids is not None for head, ids in encoder._tokeniser._prefixes.items() if head]

    assert heads(tokenizer_for(CHATML, tiny_tokenizer)) == [True]
    assert heads(tokenizer_for(PHI_3, tiny_tokenizer)) == [False]
    assert heads(metaspace_tokenizer(LLAMA_2, SENTENCES)) == [False]
