"""chat: a conversation with a run's model, at a terminal, with one prompt, or with piped lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from llmft_cli.base.errors import DataError
from llmft_cli.base.files import write_atomically
from llmft_cli.base.libraries import import_transformers
from llmft_cli.data.forms.formats import Message, RowError
from llmft_cli.run_dir.run import RunDir
from llmft_cli.serving.generation import BASE, TUNED, Reply, TunedModel, stream_answer
from llmft_cli.serving.room import new_tokens_for
from llmft_cli.settings.config import Config

HELP = """\
/help              show this list
/reset             clear the conversation
/system TEXT       clear the conversation and set the system message (no TEXT: the template's default)
/compare           show the base model's answers, too; again: turn it off
/save [NAME]       save the conversation in the run
/exit              exit (also Ctrl-D)"""

RESET = "/reset starts a new one"


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

    def __post_init__(self) -> None:
        import_transformers().set_seed(self.config.seed)

    def ask(self, question: str, screen: Screen) -> Reply:
        """Answer a question, and add both to the history.

        Raises:
            DataError: the chat template rejects the conversation, or there is no room for an answer.
        """
        asked = [*self.messages, {"role": "user", "content": question}]
        try:
            prompt = self.tuned.encoder.prompt(asked)
        except RowError as error:
            raise DataError(f"the conversation cannot be rendered: {error}", RESET) from error
        room = self.room_after(prompt)
        for arm in (BASE, TUNED) if self.compare else (TUNED,):
            screen.answer_begins(arm, label=self.compare)
            reply = stream_answer(self.tuned, prompt, arm, self.config, screen.text)
            screen.answer_ends(reply)
        self.messages = [*asked, {"role": "assistant", "content": reply.text}]
        if reply.tokens == room < self.config.max_new_tokens:
            screen.say(f"the conversation is full: {RESET}")
        return reply

    def room_after(self, prompt: Sequence[int]) -> int:
        """How many tokens the answer to a prompt may have.

        Raises:
            DataError: none.
        """
        longest = self.tuned.longest_conversation
        room = new_tokens_for(len(prompt), longest, self.config.max_new_tokens)
        if room:
            return room
        size = f"{len(prompt)} tokens of the {longest} that it may have leave no room for an answer"
        if any(message["role"] == "assistant" for message in self.messages):
            raise DataError(f"the conversation is full: {size}", RESET)
        raise DataError(f"the question is too long: {size}", "shorten it, or the system message")

    def reset(self) -> None:
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]

    def set_system(self, text: str) -> None:
        self.messages = [{"role": "system", "content": text}] if text else []

    def save(self, name: str) -> str:
        """Write the conversation as one row of training data; returns the file's path."""
        self.run.transcripts.mkdir(exist_ok=True)
        safe = "".join(character if character.isalnum() or character in "-_" else "-" for character in name)
        file = self.run.transcripts / f"{safe or datetime.now().strftime('%Y%m%d-%H%M%S')}.jsonl"
        write_atomically(file, json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        return str(file)


def converse(session: Session, lines: Iterable[str], screen: Screen, interactive: bool) -> None:
    """Answer line after line, until the input ends or a line is /exit.

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
        except (KeyboardInterrupt, DataError, OSError) as error:
            if not interactive or isinstance(error, BrokenPipeError):
                raise
            stopped = isinstance(error, KeyboardInterrupt)
            screen.say("\n(stopped; this question and its answer are discarded)" if stopped else f"failed: {error}")


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
        return f"saved to {session.save(argument)}" if session.messages else "nothing to save yet"
    return f"unknown command {command}; /help lists all commands"
