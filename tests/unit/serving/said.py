"""A screen that keeps what a conversation says."""

from __future__ import annotations

from llmft_cli.serving.generation import Reply


class Screen:
    def __init__(self) -> None:
        self.said: list[str] = []

    def answer_begins(self, arm: str, label: bool) -> None: ...

    def text(self, piece: str) -> None: ...

    def answer_ends(self, reply: Reply) -> None: ...

    def say(self, message: str) -> None:
        self.said.append(message)
