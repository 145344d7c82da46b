"""What of a conversation a chat template leaves out of the rendered text."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llmft_cli.data.encoding.answers_by_prompt import AnswersByPrompt
from llmft_cli.data.encoding.marks import Marks
from llmft_cli.data.encoding.template_skeleton import PLACEHOLDERS
from llmft_cli.data.forms.examples import Conversation, RowError

# Templates put texts into JSON, and trim or join them.
IRRELEVANT = re.compile(r"[\s\\\"']+")
TOOLS = "the tools"
PART_OF = "or changes a part of "


def left_out(answers: AnswersByPrompt, rows: Mapping[int, str], spans: Mapping[int, str]) -> list[str]:
    """What is in none of the rows of a conversation, in words.

    Each text is replaced by a placeholder of its own, which must appear; so short texts are not taken for found.
    An answer that is not learned may lose its thinking, as it does when the model is used.

    Args:
        rows: the rendered rows by the number of their messages.
        spans: what is learned, by the number of the message, which must be whole there.
    """
    conversation, renderer = answers.conversation, answers.renderer
    marks = Marks(answers.learned)
    messages = [marks.message(message, number) for number, message in enumerate(conversation.messages)]
    marked = Conversation(messages, conversation.tools)
    squeezed = [IRRELEVANT.sub("", text) for text in rows.values()]
    own = {number: [IRRELEVANT.sub("", text)] for number, text in spans.items()}
    whole = [
        any(IRRELEVANT.sub("", text) in place for place in own.get(number, squeezed))
        for number, text in zip(marks.numbers, marks.texts, strict=True)
    ]
    seen: set[int] = set()
    for count, text in rows.items():
        try:
            if text == answers.whole(count):
                row = renderer.whole(messages[:count], conversation.tools)
            else:  # no rendering of these messages, but the last answer after its own prompt
                row = AnswersByPrompt(marked, answers.learned, renderer).text(count)
            seen |= {int(number) for number in PLACEHOLDERS.findall(row)}
        except RowError:  # the template checks what the messages say
            seen |= {number for number, is_there in enumerate(whole) if is_there}
    missing = [
        name if number not in seen else PART_OF + name
        for number, name in enumerate(marks.names)
        if number not in seen or not whole[number]
    ]
    tools = conversation.tools and ignores_tools(answers)
    return [*([TOOLS] if tools else []), *dict.fromkeys(missing)]


def ignores_tools(answers: AnswersByPrompt) -> bool:
    messages = answers.conversation.messages
    try:
        return answers.renderer.whole(messages, None) == answers.whole(len(messages))
    except RowError:  # the template rejects the calls without the tools, so it does read them
        return False
