"""What a tracker is begun with and what it gives, and a guard that passes events to it until it fails."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import first_line
from llmft_cli.base.reporter import Reporter
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    from transformers import TrainingArguments

SECRET_NAMES = re.compile("TOKEN|KEY|PASSWORD|SECRET|CREDENTIAL")
SHORTEST_SECRET = 6


@dataclass
class Tracker:
    """A tracker that was begun.

    Attributes:
        callback: transformers' callback, which logs to it.
        end: ends its run; its argument is whether the training failed.
        id: by which a resumed training finds the run.
    """

    callback: Any
    end: Callable[[bool], None]
    id: str | None = None


@dataclass(frozen=True)
class Request:
    """What a tracker is begun with.

    Attributes:
        folder: the run directory.
        name: of the run.
        id: of the tracker's run that is continued; None for a new one.
        done_steps: optimizer steps before.
        arguments: Trainer's, where Trackio's callback finds its names.
    """

    folder: Path
    name: str
    config: Config
    id: str | None
    done_steps: int
    arguments: TrainingArguments
    reporter: Reporter


class Guard:
    """Passes a trainer's events to a tracker's callback until that fails; what it prints does not reach our output."""

    def __init__(self, label: str, tracker: Tracker, reporter: Reporter) -> None:
        self.tracker = tracker
        self._label = label
        self._reporter = reporter
        self._has_failed = False

    def __getattr__(self, event: str) -> Any:
        if not event.startswith("on_"):
            raise AttributeError(event)
        return lambda *arguments, **others: self._try(getattr(self.tracker.callback, event), *arguments, **others)

    def end(self, failed: bool) -> None:
        self._try(self.tracker.end, failed)

    def _try(self, action: Callable[..., Any], *arguments: Any, **others: Any) -> None:
        if self._has_failed:
            return
        try:
            with redirect_stdout(io.StringIO()):
                action(*arguments, **others)
        except Exception as error:
            self._has_failed = True
            self._reporter.warn(f"{self._label} failed, training continues without it: {described(error)}")


def described(error: Exception) -> str:
    """An error's kind and first line, without the secrets of the environment and without passwords in addresses."""
    text = f"{type(error).__name__}: {first_line(error)}"
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name.upper()) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "***")
    return re.sub(r"//[^/@\s]+@", "//***@", text)
