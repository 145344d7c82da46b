"""Checks for what an earlier step left in the texts: markers of a chat template, unfilled placeholders, JSON rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from llmft_cli.data.checks.rows import CheckedRow, Joined, Match
from llmft_cli.data.checks.secrets import Span

MARKER_NEEDLES = (b"<|", b"INST]", b"SYS>>", b"_of_turn>", "<\uff5c".encode(), b"</s>", b"Assistant:", b"ASSISTANT:", b"### ")
# Special tokens that templates write around turns and texts.
TOKENS = re.compile(
    r"<\|(?:im_start|im_end|im_sep|im_middle|start_header_id|end_header_id|header_start|header_end|eot_id|eot|eom_id"
    r"|begin_of_text|end_of_text|endoftext|startoftext|end_of_turn|start_of_role|end_of_role|system|user|assistant|end|start"
    r"|return|START_OF_TURN_TOKEN|END_OF_TURN_TOKEN|User|Assistant)\|>"
    r"|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|<\uff5c(?:User|Assistant|begin▁of▁sentence|end▁of▁sentence)\uff5c>"
)
# Words prove less: they are the beginning of a text, or a pair.
HEADING = re.compile(r"###\s*(?:Human|Assistant)\s*:")
PAIRS = (
    (re.compile(r"### Instruction:"), "### Response:"),
    (re.compile(r"(?<!\S)USER:"), " ASSISTANT:"),
    (re.compile(r"\A\s*(?:### )?(?:Human|User):"), "Assistant:"),
)
END_OF_TEXT, STRIKE_THROUGH = "</s>", "<s>"
# Names in double braces, also with the signs of mustache and the filters of Jinja. Not those of LaTeX and shell
# (`^{{nm}}`, `${{xy}}`), nor of one letter.
PLACEHOLDER = re.compile(r"(?<![A-Za-z0-9_\\^$}{])\{\{[#/^&>]?\s*[^\W\d][\w .|-]{0,60}\w\s*\}\}(?!\})")
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
JSON_ROW = re.compile(r'\s*\{\s*"')


def marker_candidates(texts: Joined) -> Iterator[int]:
    for needle in MARKER_NEEDLES:
        yield from texts.holding(needle)


def find_marker(text: str) -> Span | None:
    """The first marker of a chat template in a text."""
    if found := TOKENS.search(text) or HEADING.search(text):
        return found.span()
    for question, answer in PAIRS:
        if (found := question.search(text)) and text.find(answer, found.end()) >= 0:
            return found.span()
    ended = text.rstrip()
    if ended.endswith(END_OF_TEXT) and STRIKE_THROUGH not in ended.lstrip()[len(STRIKE_THROUGH) :]:
        return len(ended) - len(END_OF_TEXT), len(ended)
    return None


def placeholder_candidates(texts: Joined) -> Iterator[int]:
    yield from texts.holding(b"{{")


def find_placeholder(text: str) -> Span | None:
    """The first name in double braces outside of code, as a template has it before it is filled."""
    found = PLACEHOLDER.search(without_code(text))
    return found and found.span()


def without_code(text: str) -> str:
    """A text with spaces instead of its code in backticks."""
    return CODE.sub(lambda code: " " * len(code[0]), text) if "`" in text else text


def json_documents(rows: Sequence[CheckedRow]) -> Iterator[Match]:
    """Documents that are a JSON object, or begin with a line that is one."""
    for number, row in enumerate(rows):
        for text in () if row.answers else row.texts:
            if JSON_ROW.match(text) and (is_object(text) or is_object(text.lstrip().partition("\n")[0])):
                yield Match(number, text, 0, 0)


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
