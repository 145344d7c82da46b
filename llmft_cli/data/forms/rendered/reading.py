"""Texts that a chat template has rendered already, read back into messages.

Only a text that is turns of one style from beginning to end is read back: a document that quotes a
template stays what it is, and the check `rendered_text` finds the markers in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from llmft_cli.data.forms.examples import Message
from llmft_cli.data.forms.rendered.additions import THINKING, Turn
from llmft_cli.data.forms.rendered.styles import BEGINS, STYLES, Style

# What a rendered text begins with: nearly all other texts are told apart here.
OPENING = re.compile(
    BEGINS + r"(?:<\||<\uff5c|<start_of_turn>|<<SYS>>|\[INST\]|\[SYSTEM_PROMPT\]|###|(?:USER|SYSTEM|Human|User|System):"
    r"|GPT4 Correct |A chat between a curious|Below is an instruction)"
)
EOS_TOKENS = ("</s>", "<eos>", "<EOS_TOKEN>", "<|endoftext|>", "<|end_of_text|>", "<\uff5cend▁of▁sentence\uff5c>")
# What generation prompts of thinking models end with; answers without thinking begin with all of it.
THINKING_BEGIN, THINKING_END = "<think>", "</think>"
BEGUN_THINKING = re.compile(r"\s*(?:<think>\s*)?(?:</think>\s*)?")
# Between two conversations in one text; between their turns, templates write one line feed at most.
NEXT_CONVERSATION = re.compile(r"[ \t]*\n\s*(?:\n|<s>)")
NO_THINKING = re.compile(r"\A\s*<think>\s*</think>\s*")


class RenderedConversation(NamedTuple):
    """A conversation read back from its rendered text.

    Attributes:
        style: the name of the style that it is written in.
        trained: for each message whether it is supervised; None: all answers.
    """

    style: str
    messages: list[Message]
    trained: list[bool] | None = None


def read_rendered(text: str) -> RenderedConversation | None:
    """The conversation that a text is from beginning to end, or None."""
    style, turns = turns_of_text(text)
    return RenderedConversation(style.name, messages_of(turns)) if style else None


def read_rendered_pair(prompt: str, completion: str) -> RenderedConversation | None:
    """The conversation of a rendered prompt and its completion, rendered or plain; None if the prompt is not rendered.

    Answers inside the prompt are part of the question: they are not supervised.
    """
    if not OPENING.match(prompt):
        return None
    style, turns = turns_of_text(prompt + completion)
    if style is None:
        style, turns = turns_before_plain_completion(prompt, completion)
    if style is None:
        return None
    begun = [number for number, turn in enumerate(turns) if turn.start < len(prompt)]
    last = turns[begun[-1]]
    answering = last.role in ("assistant", THINKING)
    begun_answer = (prompt + completion)[last.content_start : len(prompt)] if answering else ""
    if not BEGUN_THINKING.fullmatch(begun_answer):
        return None  # the answer begins in the prompt, so what to learn of it is not clear
    if begun_answer.strip() == THINKING_BEGIN and THINKING_END not in last.content:
        turns = [turn._replace(content=turn.content.removeprefix(begun_answer)) if turn is last else turn for turn in turns]
    first_learned = last.start if answering else len(prompt)
    spoken = [turn for turn in turns if turn.role != THINKING]
    learned = [turn.role == "assistant" and turn.start >= first_learned for turn in spoken]
    asked = any(turn.role == "assistant" and not flag for turn, flag in zip(spoken, learned, strict=True))
    return RenderedConversation(style.name, messages_of(turns), learned if asked else None)


def turns_of_text(text: str) -> tuple[Style | None, list[Turn]]:
    """The style that a whole text is written in, and its turns; (None, []) if there is none."""
    if OPENING.match(text):
        for style in STYLES:
            turns = turns_in(text, style)
            if turns and is_conversation(turns, style):
                return style, turns
    return None, []


def turns_before_plain_completion(prompt: str, completion: str) -> tuple[Style | None, list[Turn]]:
    """As `turns_of_text`, for a prompt that ends with the end of a question, and a completion without markers."""
    for style in STYLES:
        question = prompt.rstrip().removesuffix(style.begun) if style.begun else prompt
        turns = turns_in(question, style) if style.ended and ends_turn(question, style) else None
        if turns and not any(pattern.search(completion) for pattern in style.markers):
            turns = [*turns, Turn("assistant", completion, len(question), len(prompt))]
            if is_conversation(turns, style):
                return style, turns
    return None, []


def ends_turn(text: str, style: Style) -> bool:
    ends = [match.end() for match in style.end.finditer(text)]
    return bool(ends) and not text[ends[-1] :].strip()


def turns_in(text: str, style: Style) -> list[Turn] | None:
    """The turns of a text in one style; None if anything in it is not part of a turn."""
    headers = list(style.header.finditer(text))
    opening = style.preamble.fullmatch(text, 0, headers[0].start()) if headers else None
    if opening is None:
        return None
    system = (opening.groupdict().get("system") or "").strip()
    turns = [Turn("system", system, 0, 0)] if system else []
    for header, following in zip(headers, [*headers[1:], None], strict=True):
        role = role_of(header, style)
        stop = following.start() if following else len(text)
        content = content_in(text[header.end() : stop], style, following)
        if role is None or content is None:
            return None
        turns.append(Turn(role, content, header.start(), header.end()))
    return style.finish(turns)


def role_of(header: re.Match[str], style: Style) -> str | None:
    return style.roles.get(header.groupdict().get("channel") or header["role"])


def content_in(body: str, style: Style, following: re.Match[str] | None) -> str | None:
    """The content of a turn, without the end of turn; None if something follows that, or it contains reserved tokens.

    Args:
        following: the header of the next turn. If another conversation seems to begin there, the result is None.
    """
    end = style.end.search(body)
    if end is None and following and style.ended:
        return None
    content, rest = (body[: end.start()], body[end.end() :]) if end else (body, "")
    if following is None:
        content, rest = content if end else without_eos(content), without_eos(rest)
    elif end and role_of(following, style) == "user" and NEXT_CONVERSATION.match(rest + following[0]):
        return None
    if rest.strip() or (style.reserved and style.reserved.search(content)):
        return None
    return content.strip() if style.trimmed else content


def without_eos(text: str) -> str:
    """A text without the end-of-text tokens and spaces at its end."""
    text = text.rstrip()
    while text.endswith(EOS_TOKENS):
        text = text[: max(text.rfind(token) for token in EOS_TOKENS)].rstrip()
    return text


def is_conversation(turns: Sequence[Turn], style: Style) -> bool:
    """Whether turns are a question and an answer each, after an optional system message.

    Markers that are words do not prove that an empty turn is one.
    """
    if any(turn.role == THINKING and after.role != "assistant" for turn, after in pairwise([*turns, turns[0]])):
        return False
    roles = [turn.role for turn in turns if turn.role != THINKING]
    spoken = roles[1:] if roles[0] == "system" else roles
    pairs = len(spoken) // 2
    if not pairs or spoken != ["user", "assistant"] * pairs:
        return False
    return not style.in_words or all(turn.content for turn in turns)


def messages_of(turns: Sequence[Turn]) -> list[Message]:
    """The messages of turns; thinking is part of the answer after it."""
    messages: list[Message] = []
    for before, turn in pairwise([None, *turns]):
        if turn is None or turn.role == THINKING:
            continue
        content = NO_THINKING.sub("", turn.content) if turn.role == "assistant" else turn.content
        messages.append({"role": turn.role, "content": content})
        if before is not None and before.role == THINKING:
            messages[-1]["reasoning_content"] = before.content
    return messages
