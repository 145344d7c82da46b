"""Small templates that behave like well-known chat templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmft_cli.data.encoding.encoder import Encoded
from llmft_cli.data.forms.examples import IGNORED, Conversation

Message = dict[str, str]


@dataclass(frozen=True)
class Style:
    """A chat template, its special tokens, and what the model has to write.

    Attributes:
        specials: special tokens to add to the tokenizer.
        lead: the template's text that the model writes before its answer.
        end: the end of turn that the model writes after it.
        shown: what the template makes of an answer; the bool says whether it is the last one.
        system: whether it takes a system message.
        prompt_is_prefix: whether the prompt's ids begin the conversation's.
        rstrip: whether the special tokens swallow the spaces after them.
    """

    name: str
    template: str
    specials: Sequence[str]
    end: str
    bos: str | None = None
    lead: str = ""
    shown: Callable[[str, bool], str] = lambda answer, last: answer
    system: bool = True
    prompt_is_prefix: bool = True
    rstrip: bool = False

    def supervised(self, messages: Sequence[Message]) -> str:
        """What the model has to write in a conversation, all turns joined."""
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        texts = [self.shown(answer, number == len(answers)) for number, answer in enumerate(answers, 1)]
        return "".join(self.lead_before(number == len(texts)) + text + self.end for number, text in enumerate(texts, 1))

    def lead_before(self, last: bool) -> str:
        return self.lead if last or self.name != "qwen3" else ""


CHATML = Style(
    "chatml",
    """{% if messages[0].role != 'system' %}<|im_start|>system
Be helpful.<|im_end|>
{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    ["<|im_start|>", "<|im_end|>"],
    "<|im_end|>",
)

LLAMA_2 = Style(
    "llama-2",
    """{% set start = 1 if messages[0].role == 'system' else 0 %}{% for m in messages[start:] %}
{%- if m.role == 'user' %}{{ bos_token + '[INST] ' }}
{%- if loop.first and start %}{{ '<<SYS>>\n' + messages[0].content.strip() + '\n<</SYS>>\n\n' }}{% endif %}
{{- m.content.strip() + ' [/INST]' }}
{%- else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    ["<s>", "</s>"],
    " </s>",
    bos="<s>",
    lead=" ",
    shown=lambda answer, last: answer.strip(),
)

LLAMA_3 = Style(
    "llama-3",
    """{{ bos_token }}{% for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "<|eot_id|>",
    bos="<|begin_of_text|>",
    shown=lambda answer, last: answer.strip(),
)

MISTRAL = Style(
    # The system message goes into the last user turn, so the messages are reordered.
    "mistral",
    """{% set system = messages[0].content if messages[0].role == 'system' else none %}{{ bos_token }}
{%- set turns = messages[1:] if system is not none else messages %}
{%- set users = turns | selectattr('role', 'equalto', 'user') | list | length %}
{%- set seen = namespace(users=0) %}{% for m in turns %}
{%- if m.role == 'user' %}{% set seen.users = seen.users + 1 %}{{ '[INST]' }}
{%- if system is not none and seen.users == users %}{{ system + '\n\n' }}{% endif %}{{ m.content + '[/INST]' }}
{%- else %}{{ m.content + eos_token }}{% endif %}{% endfor %}""",
    ["<s>", "</s>", "[INST]", "[/INST]"],
    "</s>",
    bos="<s>",
)

GEMMA = Style(
    "gemma",
    """{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}
{{- m.content | trim + '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}""",
    ["<bos>", "<start_of_turn>", "<end_of_turn>"],
    "<end_of_turn>",
    bos="<bos>",
    shown=lambda answer, last: answer.strip(),
    system=False,
)

QWEN3 = Style(
    # Thinking is removed from earlier turns; the last one always has some, even if empty.
    "qwen3",
    """{% set last = messages | length - 1 %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}{% set thought = '' %}{% set answer = m.content %}
{%- if '</think>' in m.content %}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set answer = m.content.split('</think>')[-1].lstrip('\n') %}{% endif %}
{%- if loop.index0 == last %}{{ '<think>\n' + thought + '\n</think>\n\n' + answer.lstrip('\n') }}
{%- else %}{{ answer }}{% endif %}
{%- else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    ["<|im_start|>", "<|im_end|>"],
    "<|im_end|>",
    lead="<think>\n\n</think>\n\n",
    shown=lambda answer, last: answer.lstrip("\n") if last else answer,
)

PHI_3 = Style(
    "phi-3",
    """{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}""",
    ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    "<|end|>",
    prompt_is_prefix=False,  # its special tokens absorb the spaces at the start of an answer
    rstrip=True,
)

DEEPSEEK = Style(
    "deepseek",
    """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}
{%- elif m.role == 'user' %}{{ '<|User|>' + m.content }}
{%- else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|sentence_end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}""",
    ["<|sentence_begin|>", "<|User|>", "<|Assistant|>", "<|sentence_end|>"],
    "<|sentence_end|>",
    bos="<|sentence_begin|>",
)

ZEPHYR = Style(
    # Role markers are plain text, and the prompt ends before the line feed after them.
    "zephyr",
    """{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}""",
    ["<s>", "</s>"],
    "</s>",
    bos="<s>",
    lead="\n",
    prompt_is_prefix=False,  # the line feed may share a token with those at the start of an answer
)

STYLES = [CHATML, LLAMA_2, LLAMA_3, MISTRAL, GEMMA, QWEN3, PHI_3, DEEPSEEK, ZEPHYR]


def tokenizer_for(style: Style, tiny: Any) -> Any:
    """The tiny tokenizer with a style's template and special tokens."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tiny.backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken(text, rstrip=style.rstrip, normalized=False) for text in style.specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=style.bos, eos_token=style.end.strip(), chat_template=style.template
    )


def metaspace_tokenizer(style: Style, sentences: Sequence[str]) -> Any:
    """A tokenizer like Llama-2's: SentencePiece with a space prepended to the text, and byte fallback."""
    import json

    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trained.train_from_iterator(sentences, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False))
    model = json.loads(trained.to_str())["model"]
    vocabulary = {**model["vocab"], **{f"<0x{byte:02X}>": len(model["vocab"]) + byte for byte in range(256)}}
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in style.specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=style.bos, eos_token=style.end.strip(), chat_template=style.template
    )


def talk(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def supervised(encoded: Encoded) -> list[int]:
    return [label for label in encoded.labels if label != IGNORED]


def text_of(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def special_ids(tokenizer: Any, ids: list[int]) -> list[int]:
    return [token for token in ids if tokenizer.added_tokens_decoder.get(token, None) is not None]


def one_row(encoder: Any, messages: Sequence[Message], **others: Any) -> Encoded:
    """A conversation as one row, encoded."""
    rows = encoder.rows(Conversation(list(messages), **others)).rows
    assert len(rows) == 1
    return encoder.mask(rows[0], encoder.tokenise(rows)[0])
