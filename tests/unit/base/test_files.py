"""What a killed or interrupted process leaves beside a directory that it was replacing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmft_cli.base.errors import StageError
from llmft_cli.base.files import check_place, put_back, replacing_directory, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a" * 300, "File name too long"), ("file/run", ".* is a file")],
)
def test_a_run_directory_that_cannot_be_made_is_refused_before_any_work(name: str, reason: str, tmp_path: Path) -> None:
    """A name that is too long ended in "a bug of llmft"."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StageError, match=f"cannot be a run directory: {reason}"):
        check_place(tmp_path / name)


def test_leftovers_of_any_kind_are_cleared_by_the_next_replacement(tmp_path: Path) -> None:
    """A file or a link of that name ended in "a bug of llmft"."""
    (tmp_path / ".data.tmp-killed" / "new").mkdir(parents=True)
    (tmp_path / ".data.tmp-killed" / "new" / "train.arrow").write_text("half")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("")
    (tmp_path / ".data.tmp-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".data.tmp-file").write_text("")
    with replacing_directory(tmp_path / "data") as fresh:
        (fresh / "train.arrow").write_text("whole")
    assert names(tmp_path / "data") == ["train.arrow"]
    assert ".data.tmp-killed" not in names(tmp_path)
    assert names(tmp_path / "elsewhere") == ["kept"]


KILLED_AT_THE_SECOND_RENAME = """
import os, pathlib, sys
from llmft_cli.base.files import replacing_directory

rename = pathlib.Path.rename
pathlib.Path.rename = lambda path, to: os.kill(os.getpid(), 9) if path.name == "new" else rename(path, to)
with replacing_directory(pathlib.Path(sys.argv[1])) as fresh:
    (fresh / "train.arrow").write_text("new")
"""


def test_a_replacement_that_is_undone_leaves_nothing(tmp_path: Path) -> None:
    """The new directory stayed beside the old one, and took the room of the disk that had been full."""
    target = tmp_path / "data"
    target.mkdir()
    (target / "train.arrow").write_text("old")
    with replacing_directory(target, keep_old=True) as new:
        (new / "train.arrow").write_text("new")
    put_back(target)
    assert (target / "train.arrow").read_text() == "old"
    assert names(tmp_path) == ["data"]


def test_killed_between_the_two_renames_the_old_directory_is_put_back(tmp_path: Path) -> None:
    """It was deleted with the leftovers, and if the next attempt failed, nothing was left."""
    target = tmp_path / "data"
    target.mkdir()
    (target / "train.arrow").write_text("old")
    assert subprocess.run([sys.executable, "-c", KILLED_AT_THE_SECOND_RENAME, str(target)]).returncode == -9
    assert not target.exists()
    with pytest.raises(ValueError, match="bad rows"), replacing_directory(target):
        raise ValueError("bad rows")
    assert (target / "train.arrow").read_text() == "old"
    assert names(tmp_path) == ["data"]


def test_an_interrupt_right_after_something_was_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A merge on a busy machine was stopped between making its directory and the first line that could delete it.
    def interrupted(make: Callable[..., object]) -> Callable[..., object]:
        def made(*arguments: object, **options: object) -> None:
            make(*arguments, **options)
            raise KeyboardInterrupt

        return made

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(os, "mkdir", interrupted(os.mkdir))
    monkeypatch.setattr(Path, "open", interrupted(Path.open))
    with pytest.raises(KeyboardInterrupt), replacing_directory(tmp_path / "run" / "merged"):
        pass
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "run" / "metrics.json", "{}")
    assert list((tmp_path / "run").iterdir()) == []
