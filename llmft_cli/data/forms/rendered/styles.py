"""How the chat templates of well-known models write their turns: a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llmft_cli.data.forms.rendered.additions import (
    INPUT,
    THINKING,
    Turn,
    unchanged,
    with_inputs,
    with_system_apart,
    without_dates,
    without_harmony_settings,
    without_metadata,
    without_opened_thinking,
    without_preamble,
)

SPEAKERS = {"system": "system", "user": "user", "assistant": "assistant"}
# The tokens that may come before the first turn.
BEGINS = (
    r"\s*(?:(?:<s>|<bos>|<BOS_TOKEN>|\[gMASK\]<sop>|<\|(?:begin_of_text|endoftext|startoftext)\|>"
    r"|<\uff5cbegin▁of▁sentence\uff5c>)\s*)*"
)
ALPACA_PREAMBLE = BEGINS + r"(?:Below is an instruction that describes a task\b[^#]*)?"
VICUNA_PREAMBLE = (
    BEGINS + r"(?P<system>A chat between a curious (?:user|human) and an artificial intelligence assistant\b[^\n]{0,1000}\s*)?"
)


@dataclass(frozen=True)
class Style:
    """How one template, or a family of them, writes a conversation.

    Attributes:
        header: what begins a turn; its group `role` is a key of `roles`.
        end: the tokens after a turn.
        ended: whether every turn but the last must have such a token.
        reserved: tokens that cannot be part of a message in this style.
        preamble: all that may come before the first turn; its group `system`, if it has one, is a system message.
        in_words: whether the markers are words, which other texts contain too.
        trimmed: whether the template adds spaces around contents.
        begun: what the generation prompt ends with, where that is only the beginning of a header.
        finish: what remains to be done to the turns; it returns None if they cannot be a conversation.
    """

    name: str
    header: re.Pattern[str]
    roles: Mapping[str, str] = field(default_factory=lambda: SPEAKERS)
    end: re.Pattern[str] = re.compile(r"</s>|<\|endoftext\|>")
    ended: bool = True
    reserved: re.Pattern[str] | None = None
    preamble: re.Pattern[str] = re.compile(BEGINS)
    in_words: bool = False
    trimmed: bool = False
    begun: str = ""
    finish: Callable[[list[Turn]], list[Turn] | None] = unchanged

    @property
    def markers(self) -> list[re.Pattern[str]]:
        return [pattern for pattern in (self.header, self.end, self.reserved) if pattern is not None]


PATTERNS = ("end", "reserved", "preamble")


def style(name: str, header: str, **others: object) -> Style:
    patterns = {key: re.compile(value) if key in PATTERNS else value for key, value in others.items()}  # type: ignore[call-overload]
    return Style(name, re.compile(header, re.MULTILINE), **patterns)  # type: ignore[arg-type]


def words(user: str, assistant: str, colon: str, **others: object) -> Style:
    """A style whose markers are words: `colon` is the pattern of a marker, with the word in its group `role`."""
    roles = {user: "user", assistant: "assistant", "System": "system", "SYSTEM": "system"}
    marker = colon.format(f"{user}|{assistant}|System|SYSTEM")
    name = " / ".join(colon_name(marker, word) for word in (user, assistant))
    return style(name, marker, **({"roles": roles, "ended": False, "in_words": True, "trimmed": True} | others))


def colon_name(marker: str, word: str) -> str:
    return f"### {word}:" if "###" in marker else f"{word}:"


# At the start of a line, or after a token such as `</s>`.
LINE_START = r"(?:^[ \t]*|(?<=s>)|(?<=\|>))"
HEADING = LINE_START + r"###\s*(?P<role>{})\s*:"
LINE = LINE_START + r"(?P<role>{}):"
ALPACA = {"Instruction": "user", "Input": INPUT, "Response": "assistant", "System": "system"}

# The first that a text is wholly written in is used.
STYLES = (
    style(
        "Phi-4",
        r"<\|im_start\|>(?P<role>\w+)<\|im_sep\|>\n?",
        end=r"<\|im_end\|>",
        reserved=r"<\|im_(?:start|sep|end)\|>",
    ),
    style(
        "ChatML",
        r"<\|im_start\|>(?P<role>\w+)[\n ]",
        end=r"<\|im_end\|>",
        reserved=r"<\|im_(?:start|sep|end)\|>",
        finish=without_metadata,
    ),
    style(
        "Llama 3",
        r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n{0,2}",
        end=r"<\|eot_id\|>",
        reserved=r"<\|(?:start_header_id|end_header_id|eot_id|eom_id|python_tag|begin_of_text)\|>",
        finish=without_dates,
    ),
    style(
        "Llama 4",
        r"<\|header_start\|>(?P<role>\w+)<\|header_end\|>\n{0,2}",
        end=r"<\|eot\|>",
        reserved=r"<\|(?:header_start|header_end|eot|eom|python_start|begin_of_text)\|>",
        finish=without_dates,
    ),
    style(
        "Gemma",
        r"<start_of_turn>(?P<role>\w+)\n?",
        roles=SPEAKERS | {"model": "assistant"},
        end=r"<end_of_turn>",
        reserved=r"<(?:start|end)_of_turn>",
    ),
    style(
        "Mistral or Llama 2",
        r"(?:<s>\s*)?(?P<role>\[/?INST\]|\[SYSTEM_PROMPT\])",
        roles={"[INST]": "user", "[/INST]": "assistant", "[SYSTEM_PROMPT]": "system"},
        end=r"</s>|\[/SYSTEM_PROMPT\]",
        ended=False,
        reserved=r"</?s>|\[/?SYSTEM_PROMPT\]|\[(?:TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\]",
        trimmed=True,
        finish=with_system_apart,
    ),
    style(
        "gpt-oss",
        r"<\|start\|>(?P<role>system|developer|user|assistant)(?:<\|channel\|>(?P<channel>analysis|final))?<\|message\|>",
        roles=SPEAKERS | {"developer": "developer", "analysis": THINKING, "final": "assistant"},
        end=r"<\|(?:end|return)\|>",
        reserved=r"<\|(?:start|end|return|channel|message|call|constrain)\|>",
        begun="<|start|>assistant",
        finish=without_harmony_settings,
    ),
    style(
        "DeepSeek",
        r"<[\uff5c|](?P<role>User|Assistant)[\uff5c|]>",
        roles={"User": "user", "Assistant": "assistant"},
        end=r"<[\uff5c|]end[▁_]of[▁_]sentence[\uff5c|]>",
        ended=False,
        reserved=r"<[\uff5c|][A-Za-z▁_]+[\uff5c|]>",
        preamble=r"\s*<\uff5cbegin▁of▁sentence\uff5c>(?P<system>[^<]*)",
        finish=without_opened_thinking,
    ),
    style(
        "Granite",
        r"<\|start_of_role\|>(?P<role>\w+)<\|end_of_role\|>",
        end=r"<\|end_of_text\|>",
        reserved=r"<\|(?:start_of_role|end_of_role|end_of_text|tool_call)\|>",
    ),
    style(
        "Command",
        r"<\|START_OF_TURN_TOKEN\|><\|(?P<role>SYSTEM|USER|CHATBOT)_TOKEN\|>(?:<\|START_RESPONSE\|>)?",
        roles={"SYSTEM": "system", "USER": "user", "CHATBOT": "assistant"},
        end=r"(?:<\|END_RESPONSE\|>)?<\|END_OF_TURN_TOKEN\|>",
        reserved=r"<\|[A-Z_]+\|>",
        finish=without_preamble,
    ),
    style(
        "OpenChat",
        r"GPT4 Correct (?P<role>User|Assistant): ?",
        roles={"User": "user", "Assistant": "assistant"},
        end=r"<\|end_of_turn\|>",
        reserved=r"<\|end_of_turn\|>",
    ),
    style("Phi-3", r"<\|(?P<role>system|user|assistant)\|>\n?", end=r"<\|end\|>", reserved=r"<\|(?:end|endoftext)\|>"),
    style("Zephyr", r"<\|(?P<role>system|user|assistant)\|>\n?", end=r"</s>", reserved=r"</?s>|<\|end\|>"),
    style(
        "Tulu or GLM",
        r"\n?<\|(?P<role>system|user|assistant)\|>\n?",
        end=r"<\|(?:endoftext|eot)\|>|</s>",
        ended=False,
        reserved=r"<\|(?:end|endoftext|eot|observation)\|>|</?s>",
    ),
    # Guanaco's turns follow each other on one line.
    words("Human", "Assistant", r"###\s*(?P<role>{})\s*:", preamble=VICUNA_PREAMBLE),
    words(
        "Instruction",
        "Response",
        HEADING.format("Instruction|Input|Response|System"),
        roles=ALPACA,
        preamble=ALPACA_PREAMBLE,
        finish=with_inputs,
    ),
    words("User", "Assistant", HEADING),
    words("User", "Response", HEADING),
    words("USER", "ASSISTANT", r"(?:^|(?<=\s)|(?<=s>)|(?<=\|>))(?P<role>{}):", preamble=VICUNA_PREAMBLE),
    words("Human", "Assistant", LINE),
    words("User", "Assistant", LINE),
)
