"""chat: a conversation with a run's model, at a terminal, with one prompt, or with piped lines."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from llmft_cli.base.errors import (
    DataError,
    LlmftError,
    Terminated,
    first_line,
    from_library_error,
    from_os_error,
    is_interrupt,
)
from llmft_cli.base.libraries import import_transformers
from llmft_cli.data.forms.formats import Message, RowError
from llmft_cli.run_dir.run import RunDir
from llmft_cli.serving.generation import BASE, TUNED, Reply, TunedModel, stream_answer
from llmft_cli.serving.transcripts import Transcript, row_of, stem_of, write_new
from llmft_cli.settings.config import Config

HELP = """\
/help              show this list
/reset             clear the conversation
/system TEXT       clear the conversation and set the system message (no TEXT: the template's default)
/compare           show the base model's answers, too; again: turn it off
/save [NAME]       save the conversation under a name (without: where it is saved after every answer)
/exit              exit (also Ctrl-D)"""


DISCARDED = "this question and its answer are discarded"


class Screen(Protocol):
    """Where a conversation is shown. The model's output is untrusted: the screen escapes it."""

    def answer_begins(self, arm: str, label: bool) -> None: ...

    def text(self, piece: str) -> None: ...

    def answer_ends(self, reply: Reply) -> None: ...

    def say(self, message: str) -> None: ...


@dataclass
class Session:
    """A conversation so far; its history has the tuned model's answers."""

    run: RunDir
    tuned: TunedModel
    config: Config
    compare: bool = False
    messages: list[Message] = field(default_factory=list)
    transcript: Transcript = field(init=False)

    def __post_init__(self) -> None:
        import_transformers().set_seed(self.config.seed)
        self.transcript = Transcript(self.run.transcripts)

    def ask(self, question: str, screen: Screen) -> Reply:
        """Answer a question, and add both to the history.

        Raises:
            DataError: the chat template rejects the conversation.
        """
        asked = [*self.messages, {"role": "user", "content": question}]
        try:
            prompt = self.tuned.encoder.prompt(asked)
        except RowError as error:
            raise DataError(f"the conversation cannot be rendered: {error}", "/reset starts a new one") from error
        for arm in (BASE, TUNED) if self.compare else (TUNED,):
            screen.answer_begins(arm, label=self.compare)
            reply = stream_answer(self.tuned, prompt, arm, self.config, screen.text)
            screen.answer_ends(reply)
        self.messages = [*asked, {"role": "assistant", "content": reply.text}]
        return reply

    def reset(self) -> None:
        self.transcript.end_conversation()
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]

    def set_system(self, text: str) -> None:
        self.transcript.end_conversation()
        self.messages = [{"role": "system", "content": text}] if text else []

    @property
    def has_answer(self) -> bool:
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    def save(self, name: str) -> str:
        """Save the conversation under a name, or without one in the session's file; returns the message for the user."""
        if not self.has_answer:
            return "nothing to save yet"
        if not name:
            return f"saved to {self.transcript.keep(self.messages)}"
        stem = stem_of(name)
        file = write_new(self.run.transcripts, stem, row_of(self.messages))
        return f"saved to {file}" + ("" if file.stem == stem else f": there is a {stem}.jsonl already")


def converse(session: Session, lines: Iterable[str], screen: Screen, interactive: bool) -> None:
    """Answer line after line, until the input ends or a line is /exit. The conversation is saved after every answer.

    At a terminal, Ctrl-C during an answer and errors do not end the conversation.
    """
    for line in lines:
        text = line.strip()
        if text == "/exit":
            return
        try:
            if text.startswith("/"):
                screen.say(run_slash_command(session, text))
            elif text:
                session.ask(text, screen)
                keep(session, screen)
        except (Exception, KeyboardInterrupt) as error:
            if not interactive or ends_conversation(error):
                raise
            screen.say(what_failed(error) if text.startswith("/") else f"\n{what_failed(error)}; {DISCARDED}")


def keep(session: Session, screen: Screen) -> None:
    """Save the conversation; says where at first, or once why not."""
    transcript = session.transcript
    before = transcript.file
    try:
        file = transcript.keep(session.messages)
    except OSError as error:
        if not transcript.failed:
            screen.say(f"warning: the conversation is not saved: {reason(error)}")
        transcript.failed = True
    else:
        if before is None:
            screen.say(f"saved after every answer in {file}")


def ends_conversation(error: BaseException) -> bool:
    """Whether an error leaves nobody to talk with: the process must end, or the output is closed."""
    closed = isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO)
    return closed or is_interrupt(error, Terminated)


def what_failed(error: BaseException) -> str:
    return "stopped" if is_interrupt(error) else f"failed: {reason(error)}"


def reason(error: BaseException) -> str:
    if isinstance(error, LlmftError):
        return error.message + (f" ({error.hint})" if error.hint else "")
    known = from_os_error(error) if isinstance(error, OSError) else from_library_error(error)
    return known.message if known else f"{type(error).__name__}: {first_line(error)}"


def run_slash_command(session: Session, text: str) -> str:
    """Run a slash command; returns the message for the user."""
    command, _, argument = text.partition(" ")
    argument = argument.strip()
    if command == "/help":
        return HELP
    if command == "/reset":
        session.reset()
        return "conversation cleared"
    if command == "/system":
        session.set_system(argument)
        return (
            "new conversation with this system message"
            if argument
            else "new conversation with the template's default system message"
        )
    if command == "/compare":
        session.compare = not session.compare
        return "base and tuned both answer now" if session.compare else "only tuned answers now"
    if command == "/save":
        return session.save(argument)
    return f"unknown command {command}; /help lists all commands"
