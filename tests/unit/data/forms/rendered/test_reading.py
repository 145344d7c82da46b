from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.formats import Conversation, Document, parse
from llmft_cli.data.forms.rendered.reading import read_rendered, read_rendered_pair

SYSTEM = {"role": "system", "content": "s"}
CHAT = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r?"},
    {"role": "assistant", "content": "b.\nc"},
]


def conversation_in(text: str) -> tuple[str, list[dict[str, Any]]] | None:
    found = read_rendered(text)
    return found and (found.style, found.messages)


CHATML = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>"
# The four turns of CHAT, with a system message where the first column says so.
RENDERED = [
    (True, "ChatML", f"<|im_start|>system\ns<|im_end|>\n{CHATML}\n"
     "<|im_start|>user\nr?<|im_end|>\n<|im_start|>assistant\nb.\nc<|im_end|>\n"),
    (False, "ChatML", f"{CHATML}\n<|im_start|>user\nr?<|im_end|>\n<|im_start|>assistant\n"
     "<think>\n\n</think>\n\nb.\nc<|im_end|><|endoftext|>"),
    (True, "Phi-4", "<|im_start|>system<|im_sep|>s<|im_end|><|im_start|>user<|im_sep|>q<|im_end|>"
     "<|im_start|>assistant<|im_sep|>a<|im_end|><|im_start|>user<|im_sep|>r?<|im_end|>"
     "<|im_start|>assistant<|im_sep|>b.\nc<|im_end|>"),
    (True, "Llama 3", "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
     "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\ns<|eot_id|>"
     "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>"
     "<|start_header_id|>user<|end_header_id|>\n\nr?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nb.\nc<|eot_id|>"),
    (False, "Llama 3", "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
     "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
     "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>"
     "<|start_header_id|>user<|end_header_id|>\n\nr?<|eot_id|>"
     "<|start_header_id|>assistant<|end_header_id|>\n\nb.\nc<|eot_id|><|end_of_text|>"),
    (True, "Llama 4", "<|begin_of_text|><|header_start|>system<|header_end|>\n\ns<|eot|>"
     "<|header_start|>user<|header_end|>\n\nq<|eot|><|header_start|>assistant<|header_end|>\n\na<|eot|>"
     "<|header_start|>user<|header_end|>\n\nr?<|eot|><|header_start|>assistant<|header_end|>\n\nb.\nc<|eot|>"),
    (False, "Gemma", "<bos><start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n"
     "<start_of_turn>user\nr?<end_of_turn>\n<start_of_turn>model\nb.\nc<end_of_turn>\n"),
    (False, "Mistral or Llama 2", "<s>[INST] q [/INST] a</s>[INST] r? [/INST] b.\nc</s>"),
    (False, "Mistral or Llama 2", "[INST] q [/INST] a [INST] r? [/INST] b.\nc"),
    (True, "Mistral or Llama 2", "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nq [/INST] a </s><s>[INST] r? [/INST] b.\nc </s>"),
    (True, "Mistral or Llama 2", "<s>[SYSTEM_PROMPT]s[/SYSTEM_PROMPT][INST]q[/INST]a</s>[INST]r?[/INST]b.\nc</s>"),
    (True, "gpt-oss", "<|start|>system<|message|>You are ChatGPT, a large language model.\nKnowledge cutoff: 2024-06\n\n"
     "# Valid channels: analysis, commentary, final.<|end|><|start|>developer<|message|># Instructions\n\ns\n\n<|end|>"
     "<|start|>user<|message|>q<|end|><|start|>assistant<|channel|>final<|message|>a<|end|>"
     "<|start|>user<|message|>r?<|end|><|start|>assistant<|channel|>final<|message|>b.\nc<|return|>"),
    (True, "DeepSeek", "<\uff5cbegin▁of▁sentence\uff5c>s<\uff5cUser\uff5c>q"
     "<\uff5cAssistant\uff5c>a<\uff5cend▁of▁sentence\uff5c><\uff5cUser\uff5c>r?<\uff5cAssistant\uff5c></think>b.\nc<\uff5cend▁of▁sentence\uff5c>"),
    (True, "Granite", "<|start_of_role|>system<|end_of_role|>s<|end_of_text|>\n"
     "<|start_of_role|>user<|end_of_role|>q<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>a<|end_of_text|>\n"
     "<|start_of_role|>user<|end_of_role|>r?<|end_of_text|>\n"
     "<|start_of_role|>assistant<|end_of_role|>b.\nc<|end_of_text|>"),
    (True, "Command", "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>s<|END_OF_TURN_TOKEN|>"
     "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>q<|END_OF_TURN_TOKEN|>"
     "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>a<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"
     "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>r?<|END_OF_TURN_TOKEN|>"
     "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>b.\nc<|END_OF_TURN_TOKEN|>"),
    (False, "OpenChat", "<s>GPT4 Correct User: q<|end_of_turn|>GPT4 Correct Assistant: a<|end_of_turn|>"
     "GPT4 Correct User: r?<|end_of_turn|>GPT4 Correct Assistant: b.\nc<|end_of_turn|>"),
    (True, "Phi-3", "<|system|>\ns<|end|>\n<|user|>\nq<|end|>\n<|assistant|>\na<|end|>\n"
     "<|user|>\nr?<|end|>\n<|assistant|>\nb.\nc<|end|>\n<|endoftext|>"),
    (True, "Zephyr", "<|system|>\ns</s>\n<|user|>\nq</s>\n<|assistant|>\na</s>\n<|user|>\nr?</s>\n<|assistant|>\nb.\nc</s>\n"),
    (True, "Tulu or GLM", "<|system|>\ns\n<|user|>\nq\n<|assistant|>\na<|endoftext|>\n"
     "<|user|>\nr?\n<|assistant|>\nb.\nc<|endoftext|>"),
    (True, "Tulu or GLM", "[gMASK]<sop><|system|>\ns<|user|>\nq<|assistant|>\na<|user|>\nr?<|assistant|>\nb.\nc"),
    (False, "### Human: / ### Assistant:", "### Human: q### Assistant: a### Human: r?### Assistant: b.\nc"),
    (False, "### Human: / ### Assistant:", "### Human:\nq\n\n### Assistant:\na\n### Human: r?\n### Assistant: b.\nc</s>\n"),
    (False, "### Instruction: / ### Response:", "Below is an instruction that describes a task. Write a response that "
     "appropriately completes the request.\n\n### Instruction:\nq\n\n### Response:\na\n\n### Instruction:\nr?\n\n"
     "### Response:\nb.\nc\n\n### End"),
    (True, "### User: / ### Assistant:", "### System:\ns\n\n### User:\nq\n\n### Assistant:\na\n\n"
     "### User:\nr?\n\n### Assistant:\nb.\nc\n"),
    (False, "### User: / ### Response:", "### User:\nq\n\n### Response:\na\n\n### User:\nr?\n\n### Response:\nb.\nc"),
    (False, "USER: / ASSISTANT:", "USER: q ASSISTANT: a</s>USER: r? ASSISTANT: b.\nc</s>"),
    (False, "Human: / Assistant:", "\n\nHuman: q\n\nAssistant: a\n\nHuman: r?\n\nAssistant: b.\nc"),
    (False, "User: / Assistant:", "<|endoftext|>User: q\nAssistant: a\nUser: r?\nAssistant: b.\nc<|endoftext|>"),
]  # fmt: skip


@pytest.mark.parametrize(("with_system", "style", "text"), RENDERED)
def test_a_rendered_text_is_read_back(with_system: bool, style: str, text: str) -> None:
    expected = [SYSTEM, *CHAT] if with_system else CHAT
    assert conversation_in(text) == (style, expected)
    assert conversation_in(f"\n {text}\n\n") == (style, expected)
    form, example = parse({"text": text, "source": "x"})
    assert (form, example) == ("text", Conversation(expected, style=style))


@pytest.mark.parametrize(("with_system", "style", "text"), RENDERED)
def test_in_the_middle_of_something_else_it_is_a_document(with_system: bool, style: str, text: str) -> None:
    for document in (
        f"A template writes:\n\n{text}",
        f"```\n{text}\n```",
        f"- {text}",
        *([f"{text}\n{text}"] if with_system or "<bos>" in text else []),
    ):
        assert parse({"text": document}) == ("text", Document(document)), style


@pytest.mark.parametrize(("with_system", "style", "text"), RENDERED)
def test_a_document_by_explicit_format_stays_one(with_system: bool, style: str, text: str) -> None:
    assert parse({"text": text}, "text") == ("text", Document(text))


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nq<|im_end|>",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>user\nr<|im_end|>",
        "<|im_start|>assistant\nq<|im_end|>\n<|im_start|>user\nr<|im_end|>",
        f"{CHATML}\n<|im_start|>user\nand then?<|im_end|>",
        f"{CHATML}\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n4<|im_end|>",
        f"{CHATML}\nThe end.",
        "<|im_start|>user\nq\n<|im_start|>assistant\na<|im_end|>",
        f"{CHATML}\n\n{CHATML}",
        "<s>[INST] q [/INST] a </s>\n<s>[INST] r [/INST] b </s>\n",
        "[INST] q [/INST] a</s>\n\n[INST] r [/INST] b</s>",
        "<|im_start|>user\nq <|im_start|> b<|im_end|>\n<|im_start|>assistant\na<|im_end|>",
        "<|im_start|>",
        "[INST] q",
        "<s>[INST] q [/INST] [TOOL_CALLS][{}]</s>",
        "<|start|>user<|message|>q<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>",
        "<|start|>user<|message|>q<|end|><|start|>assistant<|channel|>analysis<|message|>t<|end|>",
        "### Human: q",
        "### Human: q\n### Assistant:",
        "### Human: q### Assistant: a### Human: r",
        "### Instruction:\nq\n\n### Answer:\na",
        "### Input:\ni\n\n### Instruction:\nq\n\n### Response:\na",
        "Human: all people\nAssistant: someone who helps\nOther: x\nAssistant: y\nAssistant: z",
        "Users: q\nAssistant: a",
        "# Chat templates\n\n### User:\nq\n\n### Assistant:\na",
    ],
)
def test_what_is_not_a_whole_conversation_is_a_document(text: str) -> None:
    assert parse({"text": text}) == ("text", Document(text))


def test_the_parts_that_templates_add_are_left_out() -> None:
    alpaca = (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
        "that appropriately completes the request.\n\n### Instruction:\nq\n\n### Input:\ni\n\n### Response:\na</s>"
    )
    answer = {"role": "assistant", "content": "a"}
    assert conversation_in(alpaca) == (
        "### Instruction: / ### Response:",
        [{"role": "user", "content": "q\n\ni"}, answer],
    )
    metadata = (
        "## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 1 May 2026\nReasoning Mode: /think\n\n"
        "## Custom Instructions\n\ns\n\n"
    )
    assert conversation_in(f"<|im_start|>system\n{metadata}<|im_end|>\n{CHATML}") == ("ChatML", [SYSTEM, *CHAT[:2]])
    thought = (
        "<|start|>user<|message|>q<|end|><|start|>assistant<|channel|>analysis<|message|>t<|end|>"
        "<|start|>assistant<|channel|>final<|message|>a<|return|>"
    )
    assert conversation_in(thought) == (
        "gpt-oss",
        [{"role": "user", "content": "q"}, {**answer, "reasoning_content": "t"}],
    )
    preamble = "A chat between a curious user and an artificial intelligence assistant. The assistant gives polite answers."
    assert conversation_in(f"{preamble} USER: q ASSISTANT: a</s>") == (
        "USER: / ASSISTANT:",
        [{"role": "system", "content": preamble}, {"role": "user", "content": "q"}, answer],
    )


def test_an_empty_answer_is_rejected_as_in_messages() -> None:
    with pytest.raises(Exception, match=r"message 2 \(assistant\) is empty"):
        parse({"text": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"})


@pytest.mark.parametrize(
    ("prompt", "completion", "style"),
    [
        ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "a", "ChatML"),
        ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>\n", "ChatML"),
        ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "a<|im_end|>\n", "ChatML"),
        ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n", "a<|im_end|>", "ChatML"),
        ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think></think>", "a<|im_end|>", "ChatML"),
        ("<|im_start|>user\nq<|im_end|>\n", "<|im_start|>assistant\na<|im_end|>", "ChatML"),
        ("<|im_start|>user\nq<|im_end|>\n", "a", "ChatML"),
        ("<s>[INST] q [/INST]", " a </s>", "Mistral or Llama 2"),
        ("<start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n", "a<end_of_turn>", "Gemma"),
        ("<|user|>\nq<|end|>\n<|assistant|>", "\na<|end|>", "Phi-3"),
        ("### Human: q\n### Assistant:", " a", "### Human: / ### Assistant:"),
        ("### Instruction:\nq\n\n### Response:\n", "a", "### Instruction: / ### Response:"),
        ("Human: q\n\nAssistant:", " a", "Human: / Assistant:"),
    ],
)
def test_a_rendered_prompt_and_its_completion(prompt: str, completion: str, style: str) -> None:
    expected = Conversation(CHAT[:2], style=style)
    assert parse({"prompt": prompt, "completion": completion}) == ("prompt-completion", expected)
    assert parse({"prompt": prompt, "response": completion}) == ("question-answer", expected)
    assert parse({"instruction": prompt, "output": completion}) == ("alpaca", expected)


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("q", "a<|im_end|>"),
        ("<|im_start|>user\nq", "a"),
        ("[INST] q", "a"),
        ("### Human: q", "a"),
        ("<|im_start|>user\nq<|im_end|>\n", "a<|im_end|>"),
        ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nThe answer", " is a<|im_end|>"),
        ("Explain <|im_start|>user\nq<|im_end|>", "a"),
    ],
)
def test_a_pair_in_doubt_stays_as_it_is(prompt: str, completion: str) -> None:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    assert parse({"prompt": prompt, "completion": completion}) == ("prompt-completion", Conversation(messages))


def test_thinking_that_the_prompt_begins_is_part_of_the_answer() -> None:
    prompt = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n"
    found = read_rendered_pair(prompt, "t\n</think>\n\na<|im_end|>")
    assert found is not None
    assert found.messages == [CHAT[0], {"role": "assistant", "content": "<think>\nt\n</think>\n\na"}]


def test_answers_inside_a_rendered_prompt_are_not_learned() -> None:
    prompt = f"{CHATML}\n<|im_start|>user\nr?<|im_end|>\n<|im_start|>assistant\n"
    found = read_rendered_pair(prompt, "b.\nc<|im_end|>")
    assert found == ("ChatML", CHAT, [False, False, False, True])
    _, example = parse({"prompt": prompt, "completion": "b.\nc", "system": "s"})
    assert example == Conversation([SYSTEM, *CHAT], trained=(False, False, False, False, True), style="ChatML")


TEXT = st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("\n <|>[]#:"), min_size=1, max_size=20)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.sampled_from(["ChatML", "Llama 3"]))
def test_what_a_template_renders_is_read_back_exactly(pairs: list[tuple[str, str]], style: str) -> None:
    messages = [
        {"role": role, "content": content} for pair in pairs for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    chatml, llama = ("<|im_start|>", "\n", "<|im_end|>\n"), ("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>")
    start, middle, end = chatml if style == "ChatML" else llama
    text = "".join(f"{start}{message['role']}{middle}{message['content']}{end}" for message in messages)
    found = conversation_in(text)
    assert found is not None
    expected = [message["content"].lstrip("\n") for message in messages]
    assert (found[0], [message["content"].lstrip("\n") for message in found[1]]) == (style, expected)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="<|>im_startd/end[INST] \n#HumanAssistant:USER", max_size=80), TEXT)
def test_any_text_can_be_read(text: str, completion: str) -> None:
    read_rendered(text)
    read_rendered_pair(text, completion)
    read_rendered(f"<|im_start|>{text}")
    read_rendered(f"### Human: {text}")


def test_the_rendered_row_is_that_of_messages(encoders: dict[str, ConversationEncoder]) -> None:
    for encoder in encoders.values():
        _, example = parse({"text": CHATML})
        assert isinstance(example, Conversation)
        assert encoder.rows(example) == encoder.rows(Conversation(CHAT[:2]))


@pytest.mark.skipif(not find_spec("trl"), reason="needs trl's chat templates")
def test_texts_of_public_templates_are_rendered_anew_to_the_same(tiny_tokenizer: Any) -> None:
    from public_templates import TEMPLATES, tokenizer_with

    for template in TEMPLATES:
        if template.name == "SmolLM3":  # whose copy has no dates
            continue
        encoder = ConversationEncoder(tokenizer_with(template, tiny_tokenizer))
        for messages in (CHAT, [SYSTEM, *CHAT]):
            if messages[0] == SYSTEM and template.name in ("Mixtral", "Gemma 2"):  # which reject it
                continue
            text = encoder.render(messages, False)
            found = read_rendered(text)
            assert found is not None, (template.name, text)
            assert encoder.render(found.messages, False) == text, template.name
            prompt = encoder.render(messages[:-1], True)
            pair = read_rendered_pair(prompt, CHAT[-1]["content"])
            assert pair is not None, (template.name, prompt)
            assert [turn["content"] for turn in pair.messages[-4:]] == [turn["content"] for turn in found.messages[-4:]]
            assert pair.trained == [turn is pair.messages[-1] for turn in pair.messages]
