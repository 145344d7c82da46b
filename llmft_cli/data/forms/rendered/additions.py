"""What chat templates add by themselves inside turns, or place elsewhere: it is left out, or put where messages have it."""

from __future__ import annotations

import re
from typing import NamedTuple

INPUT = "input"  # Alpaca's second part of a question
THINKING = "thinking"
DATES = re.compile(r"(?:Cutting Knowledge Date: .*\n)?Today Date: .*\n*")
SYSTEM_MARK = re.compile(r"<</?SYS>>")


class Turn(NamedTuple):
    """One turn of a rendered text.

    Attributes:
        role: a role of messages, or `INPUT` or `THINKING`.
        start, content_start: where its marker and its content begin in the text.
    """

    role: str
    content: str
    start: int
    content_start: int


def unchanged(turns: list[Turn]) -> list[Turn] | None:
    return turns


def without_dates(turns: list[Turn]) -> list[Turn]:
    """Llama 3.1's template writes dates into the system message, which it adds if there is none."""
    first, *others = turns
    dates = DATES.match(first.content) if first.role == "system" else None
    if not dates:
        return turns
    content = first.content[dates.end() :]
    return [first._replace(content=content), *others] if content else others


def with_system_apart(turns: list[Turn]) -> list[Turn] | None:
    """Llama 2 has the system message inside the first question."""
    first, *others = turns
    if any(SYSTEM_MARK.search(turn.content) for turn in others):
        return None
    match SYSTEM_MARK.split(first.content):
        case [_]:
            return turns
        case ["", system, question]:
            parts = (("system", system), ("user", question))
            return [*(first._replace(role=role, content=content.strip()) for role, content in parts), *others]
    return None


def with_inputs(turns: list[Turn]) -> list[Turn] | None:
    """Alpaca's input goes after its instruction, as in a row with both keys."""
    joined: list[Turn] = []
    for turn in turns:
        if turn.role != INPUT:
            joined.append(turn)
        elif joined and joined[-1].role == "user":
            joined[-1] = joined[-1]._replace(content=f"{joined[-1].content}\n\n{turn.content}".strip())
        else:
            return None
    *others, last = joined
    return [*others, last._replace(content=last.content.removesuffix("### End").rstrip())]


def without_opened_thinking(turns: list[Turn]) -> list[Turn]:
    """DeepSeek's template begins an answer without thinking with the end of it."""
    return [turn._replace(content=turn.content.removeprefix("</think>")) for turn in turns]


def without_preamble(turns: list[Turn]) -> list[Turn]:
    """Command's template puts its own preambles before the system message, after a line about that message."""
    first, *others = turns
    if first.role != "system" or not first.content.startswith("# System Preamble\n"):
        return turns
    _, _, instructions = first.content.partition("\n# Developer Preamble\n")
    _, _, system = instructions.partition("\n")
    return [first._replace(content=system), *others] if system else others


def without_metadata(turns: list[Turn]) -> list[Turn]:
    """SmolLM3's template, a kind of ChatML, puts dates before the system message."""
    first, *others = turns
    if first.role != "system" or not first.content.startswith("## Metadata\n\nKnowledge Cutoff Date:"):
        return turns
    _, _, system = first.content.partition("\n## Custom Instructions\n\n")
    return [first._replace(content=system.strip()), *others] if system.strip() else others


def without_harmony_settings(turns: list[Turn]) -> list[Turn] | None:
    """gpt-oss's own system message is the template's; instructions are in the developer's."""
    kept = []
    for turn in turns:
        if turn.role == "system" and "# Valid channels" in turn.content:
            continue
        if turn.role == "developer":
            if "# Tools" in turn.content:
                return None
            turn = turn._replace(role="system", content=turn.content.removeprefix("# Instructions").strip())
        kept.append(turn)
    return kept
