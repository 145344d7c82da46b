"""Conversations as files in the run's folder `chat`: rows of training data, which `prepare` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, count
from pathlib import Path

from llmft_cli.base.files import write_atomically
from llmft_cli.data.forms.formats import Message

LONGEST_NAME = 48  # characters; file names may have 255 bytes, and a temporary file's name is longer


@dataclass
class Transcript:
    """The conversations of a session, in one file that is written after every answer.

    Attributes:
        file: created for the first answer.
        failed: whether it could not be written, and the user has been told.
    """

    folder: Path
    file: Path | None = None
    failed: bool = False
    _ended: list[str] = field(default_factory=list)
    _current: str = ""

    def keep(self, messages: Sequence[Message]) -> Path:
        """Write the conversation as it is now, after those that have ended; returns the session's file."""
        self._current = row_of(messages)
        rows = "".join([*self._ended, self._current])
        if self.file is None:
            self.file = write_new(self.folder, datetime.now().strftime("%Y%m%d-%H%M%S"), rows)
        else:
            write_atomically(self.file, rows)
        return self.file

    def end_conversation(self) -> None:
        """Begin a row of its own with the next conversation."""
        if self._current:
            self._ended.append(self._current)
            self._current = ""


def stem_of(name: str) -> str:
    """The name of a file, without its suffix, for the name that the user gave a conversation."""
    return "".join(character if character.isalnum() or character in "-_" else "-" for character in name)[:LONGEST_NAME]


def write_new(folder: Path, stem: str, rows: str) -> Path:
    """Write rows to a file that did not exist: of this name, or with a number added. Returns its path."""
    folder.mkdir(exist_ok=True)
    stems = chain([stem], (f"{stem}-{number}" for number in count(2)))
    file = next(file for file in (folder / f"{one}.jsonl" for one in stems) if is_created(file))
    try:
        write_atomically(file, rows)
    except BaseException:
        file.unlink()
        raise
    return file


def is_created(file: Path) -> bool:
    """Whether an empty file could be created; not if there is one, by this or another process."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def row_of(messages: Sequence[Message]) -> str:
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
