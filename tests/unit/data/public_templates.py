"""Chat templates of today's models: their own, as TRL's package has them, and copies of the logic of others.

A copy writes the same special tokens in the same order, with the same rules for thinking, tools and the system message.
"""
# ruff: noqa: RUF001  DeepSeek's tokens have such characters.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PublicTemplate:
    """A model family's chat template.

    Attributes:
        special: its special tokens, apart from bos and eos.
        header: what begins the assistant's turn; the model writes what follows.
        ends: tokens that end the assistant's turn.
        bos, eos: None if the template does not write one.
        added: tokens that are not special.
        thinking_key: the key of an answer's thinking that the template reads.
        closing: what begins the next turn, and a turn of tool results, if the assistant's has no end.
        file: in TRL's package; else `text` has the template.
    """

    name: str
    special: Sequence[str]
    header: str
    ends: Sequence[str]
    bos: str = "<s>"
    eos: str = "</s>"
    added: Sequence[str] = ()
    thinking_key: str = "reasoning_content"
    closing: tuple[str, str] = ("", "")
    file: str = ""
    text: str = ""

    @property
    def template(self) -> str:
        return self.text or (trl_templates() / f"{self.file}.jinja").read_text(encoding="utf-8")


def trl_templates() -> Path:
    """The folder of chat templates in TRL's package, which is not imported."""
    spec = find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "chat_templates"


def tokenizer_with(template: PublicTemplate, tiny: Any) -> Any:
    """The tiny tokenizer with a template and its tokens."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tiny.backend_tokenizer.to_str())
    special = dict.fromkeys([template.bos, template.eos, *template.special])
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False) for token in template.added])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=template.bos, eos_token=template.eos, chat_template=template.template
    )


CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]
QWEN_TOKENS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
LLAMA_3_TOKENS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"]
GPT_OSS_TOKENS = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|constrain|>"]
GLM_TOKENS = ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
COHERE_TOKENS = ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"]
DEEPSEEK_TOKENS = [
    *(f"<｜tool▁{part}▁{edge}｜>" for part in ("calls", "call", "outputs", "output") for edge in ("begin", "end")),
    *("<｜User｜>", "<｜Assistant｜>", "<｜tool▁sep｜>"),
]

MISTRAL_CALLS = """{%- macro calls(m) %}{{ '[TOOL_CALLS][' }}{% for c in m.tool_calls %}
{{- '{"name": "' + c.function.name + '", "arguments": ' + c.function.arguments | tojson + ', "id": "' + c.id + '"}' }}
{{- ', ' if not loop.last }}{% endfor %}{{ ']' + eos_token }}{% endmacro -%}"""
# The tools and the system message stand in or before the last user turn.
MISTRAL_V3 = (
    MISTRAL_CALLS
    + """{%- set system = messages[0].content if messages[0].role == 'system' else none %}
{%- set turns = messages[1:] if system is not none else messages %}
{%- set users = turns | selectattr('role', 'equalto', 'user') | list %}{{ bos_token }}
{%- for m in turns %}{% if m.role == 'user' %}{% if m == users[-1] %}
{%- if tools %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST] ' }}{% if system is not none %}{{ system + '\\n\\n' }}{% endif %}{% else %}{{ '[INST] ' }}{% endif %}
{{- m.content + '[/INST]' }}
{%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS]{"content": ' + m.content | tojson + ', "call_id": "' + m.tool_call_id }}
{{- '"}[/TOOL_RESULTS]' }}
{%- elif m.tool_calls %}{{ calls(m) }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""
)
MISTRAL_V7 = """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}
{{- '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}{% elif m.role == 'user' %}
{%- if tools and loop.first %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST]' + m.content + '[/INST]' }}
{%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.tool_call_id + '[TOOL_CONTENT]' + m.content + '[/TOOL_RESULTS]' }}
{%- else %}{{ m.content }}{% for c in m.tool_calls %}
{{- '[TOOL_CALLS]' + c.function.name + '[ARGS]' + c.function.arguments | tojson }}{% endfor %}{{ eos_token }}
{%- endif %}{% endfor %}"""
LLAMA_2 = """{% set start = 1 if messages[0].role == 'system' else 0 %}{% for m in messages[start:] %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate user/assistant') }}{% endif %}
{%- if m.role == 'user' %}{{ bos_token + '[INST] ' }}
{%- if loop.first and start %}{{ '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' }}{% endif %}
{{- m.content.strip() + ' [/INST]' }}{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
MIXTRAL = """{{ bos_token }}{% for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate user/assistant') }}{% endif %}
{%- if m.role == 'user' %}{{ ' [INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}
{%- endfor %}"""
LLAMA_4 = """{{ bos_token }}{% for m in messages %}{% if loop.first and tools %}
{{- '<|header_start|>system<|header_end|>\\n\\nTools: ' + tools | tojson + '<|eot|>' }}{% endif %}
{%- if m.role == 'tool' %}{{ '<|header_start|>ipython<|header_end|>\\n\\n' + m.content | tojson + '<|eot|>' }}
{%- else %}{{ '<|header_start|>' + m.role + '<|header_end|>\\n\\n' }}
{%- if m.tool_calls %}{{ '<|python_start|>' + m.content + '<|python_end|>' }}{% for c in m.tool_calls %}
{{- '{"name": "' + c.function.name + '", "parameters": ' + c.function.arguments | tojson + '}' }}{% endfor %}
{{- '<|eom|>' }}{% else %}{{ m.content + '<|eot|>' }}{% endif %}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\\n\\n' }}{% endif %}"""
PHI_4 = """{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""
GRANITE = """{% if tools %}{{ '<|start_of_role|>available_tools<|end_of_role|>' + tools | tojson }}
{{- '<|end_of_text|>\\n' }}{% endif %}
{%- if messages[0].role != 'system' %}
{{- '<|start_of_role|>system<|end_of_role|>You are Granite.<|end_of_text|>\\n' }}{% endif %}
{%- for m in messages %}{% if m.role == 'tool' %}
{{- '<|start_of_role|>user<|end_of_role|>\\n<tool_response>\\n' + m.content + '\\n</tool_response><|end_of_text|>\\n' }}
{%- else %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content }}{% for c in m.tool_calls %}
{{- '\\n' if m.content or not loop.first }}
{{- '<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' + c.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}{{ '<|end_of_text|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""
OLMO_2 = """{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}
{%- if m.role != 'assistant' %}{{ '\\n' }}{% elif loop.last %}{{ eos_token }}{% else %}{{ eos_token + '\\n' }}{% endif %}
{%- if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"""
SMOLLM2 = """{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are SmolLM.<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
# Without /think in the system message the thinking is empty; tools are read from keys of their own.
SMOLLM3 = """{% set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- set mode = '/no_think' if '/no_think' in system else '/think' %}
{%- set system = system.replace('/no_think', '').replace('/think', '').rstrip() %}
{{- '<|im_start|>system\\nReasoning Mode: ' + mode + '\\n\\n' + system }}
{{- '<|im_end|>\\n' }}{% for m in messages %}{% if m.role == 'user' or m.role == 'tool' %}
{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}{% elif m.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n' if mode == '/no_think' else '') + m.content.lstrip('\\n') }}
{{- '<|im_end|>\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n' if mode == '/no_think' else '') }}{% endif %}"""

CHATML_HEADER = "<|im_start|>assistant\n"
LLAMA_3_HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"


def qwen(name: str, file: str) -> PublicTemplate:
    return PublicTemplate(name, CHATML_TOKENS, CHATML_HEADER, ["<|im_end|>"], added=QWEN_TOKENS, file=file)


TEMPLATES = [
    PublicTemplate("Llama 2", [], "[/INST]", ["</s>"], text=LLAMA_2),
    PublicTemplate(
        "Llama 3.1", LLAMA_3_TOKENS, LLAMA_3_HEADER, ["<|eot_id|>", "<|eom_id|>"], "<|begin_of_text|>", file="llama3_1"
    ),
    PublicTemplate(
        "Llama 4",
        ["<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>", "<|python_start|>", "<|python_end|>"],
        "<|header_start|>assistant<|header_end|>\n\n",
        ["<|eot|>", "<|eom|>"],
        "<|begin_of_text|>",
        text=LLAMA_4,
    ),
    PublicTemplate(
        "Mistral v3",
        ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"],
        "",
        ["</s>"],
        text=MISTRAL_V3,
    ),
    PublicTemplate(
        "Mistral v7",
        [
            *("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[ARGS]"),
            *("[/TOOL_RESULTS]", "[TOOL_CONTENT]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        ],
        "",
        ["</s>"],
        text=MISTRAL_V7,
    ),
    PublicTemplate("Mixtral", [], "[/INST]", ["</s>"], text=MIXTRAL),
    qwen("Qwen2.5", "qwen2_5"),
    qwen("Qwen3", "qwen3"),
    qwen("Qwen3 2507", "qwen3_instruct_2507"),
    qwen("Qwen3.5, thinking", "qwen3_5_think"),
    qwen("Qwen3.5, not thinking", "qwen3_5_nothink"),
    PublicTemplate(
        "Gemma 2", ["<start_of_turn>", "<end_of_turn>"], "<start_of_turn>model\n", ["<end_of_turn>"], "<bos>", file="gemma"
    ),
    PublicTemplate(
        "Gemma 3", ["<start_of_turn>", "<end_of_turn>"], "<start_of_turn>model\n", ["<end_of_turn>"], "<bos>", file="gemma3"
    ),
    PublicTemplate(
        "Phi-3", ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        "<|assistant|>\n", ["<|end|>"], eos="<|endoftext|>", file="phi3",
    ),
    PublicTemplate("Phi-4", [*CHATML_TOKENS, "<|im_sep|>"], "<|im_start|>assistant<|im_sep|>", ["<|im_end|>"], text=PHI_4),
    PublicTemplate(
        "DeepSeek V3", DEEPSEEK_TOKENS, "<｜Assistant｜>", ["<｜end▁of▁sentence｜>"],
        "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", file="deepseekv3",
    ),
    PublicTemplate(
        "DeepSeek R1", DEEPSEEK_TOKENS, "<｜Assistant｜>", ["<｜end▁of▁sentence｜>"],
        "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ["<think>", "</think>"], file="deepseek_r1_distill",
    ),
    PublicTemplate(
        "gpt-oss", GPT_OSS_TOKENS, "<|start|>assistant", ["<|return|>", "<|call|>"],
        eos="<|return|>", thinking_key="thinking", file="gptoss",
    ),
    PublicTemplate(
        "GLM-4.5", GLM_TOKENS, "<|assistant|>", ["<|user|>", "<|observation|>"], added=QWEN_TOKENS,
        closing=("<|user|>", "<|observation|>"), file="glm4moe",
    ),
    PublicTemplate(
        "Command-A",
        [*COHERE_TOKENS, "<|START_RESPONSE|>", "<|END_RESPONSE|>"],
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        ["<|END_OF_TURN_TOKEN|>"],
        "<BOS_TOKEN>",
        file="cohere2",
    ),
    PublicTemplate(
        "Granite 4", ["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"],
        "<|start_of_role|>assistant<|end_of_role|>", ["<|end_of_text|>"],
        eos="<|end_of_text|>", added=["<tool_call>", "</tool_call>"], text=GRANITE,
    ),
    PublicTemplate("OLMo 2", [], "<|assistant|>\n", ["<|endoftext|>"], "<|endoftext|>", "<|endoftext|>", text=OLMO_2),
    PublicTemplate("SmolLM2", CHATML_TOKENS, CHATML_HEADER, ["<|im_end|>"], "<|im_start|>", "<|im_end|>", text=SMOLLM2),
    PublicTemplate(
        "SmolLM3", CHATML_TOKENS, CHATML_HEADER, ["<|im_end|>"], added=["<think>", "</think>"], thinking_key="", text=SMOLLM3
    ),
    PublicTemplate("Nemotron 3", CHATML_TOKENS, CHATML_HEADER, ["<|im_end|>"], added=QWEN_TOKENS, file="nemotron_3_nano"),
]  # fmt: skip
