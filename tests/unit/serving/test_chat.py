"""A conversation goes on after whatever fails in it, and is in the run's folder after every answer."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

if not find_spec("torch"):
    pytest.skip("needs torch", allow_module_level=True)

from llmft_cli.base.errors import DataError, OutOfMemory, Terminated
from llmft_cli.data.forms.formats import RowError
from llmft_cli.run_dir.run import RunDir
from llmft_cli.serving import chat
from llmft_cli.serving.generation import Reply
from llmft_cli.settings.config import Config

from .said import Screen

Talk = Callable[..., list[str]]


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Have a conversation; questions in `failing` end in that error. Returns what was said besides the answers."""

    def answer(tuned: Any, prompt: list[str], arm: str, config: Config, on_text: Any) -> Reply:
        if (error := failing.get(prompt[-1])) is not None:
            raise error
        return Reply(f"{prompt[-1]}!", 1, 1.0)

    def render(messages: list[dict[str, str]]) -> list[str]:
        if messages[-1]["content"] == "unrenderable":
            raise RowError("no such role")
        return [message["content"] for message in messages]

    failing: dict[str, BaseException] = {}
    monkeypatch.setattr(chat, "stream_answer", answer)
    tuned: Any = SimpleNamespace(encoder=SimpleNamespace(prompt=render), longest_conversation=None)

    def converse(lines: Iterable[str], interactive: bool = True, **errors: BaseException) -> list[str]:
        failing.update(errors)
        screen = Screen()
        session = chat.Session(RunDir(tmp_path), tuned, Config())
        chat.converse(session, lines, screen, interactive)
        return [line.replace(str(tmp_path), "RUN") for line in screen.said]

    return converse


def saved(run: Path) -> dict[str, list[Any]]:
    files = sorted((run / "chat").iterdir()) if (run / "chat").is_dir() else []
    return {file.name: [json.loads(line) for line in file.read_text().splitlines()] for file in files}


def row(*questions: str, system: str = "") -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    for question in questions:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": f"{question}!"}]
    return {"messages": messages}


def test_the_conversation_is_saved_after_every_answer(talk: Talk, tmp_path: Path) -> None:
    seen = []

    def lines() -> Iterable[str]:
        for line in ("a", "b", "/reset", "/system be kind", "c", "/exit"):
            yield line
            seen.append(list(saved(tmp_path).values()))

    said = talk(lines())
    assert seen == [
        [[row("a")]],
        [[row("a", "b")]],
        [[row("a", "b")]],
        [[row("a", "b")]],
        [[row("a", "b"), row("c", system="be kind")]],
    ]
    assert list(saved(tmp_path)) == [Path(said[0].removeprefix("saved after every answer in ")).name]


def test_nothing_is_left_of_a_session_without_an_answer(talk: Talk, tmp_path: Path) -> None:
    assert talk(["", "/system be kind", "/save", "/save x"])[-2:] == ["nothing to save yet"] * 2
    assert not (tmp_path / "chat").exists()


def test_save_does_not_replace_an_earlier_conversation(talk: Talk, tmp_path: Path) -> None:
    """`/save x` wrote over x.jsonl without a word, also over one of another day."""
    talk(["earlier", "/save x"])
    said = talk(["a", "/save x", "/save y z", "/save"])
    assert said[1:3] == ["saved to RUN/chat/x-2.jsonl: there is a x.jsonl already", "saved to RUN/chat/y-z.jsonl"]
    assert said[3] == said[0].replace("after every answer in", "to")
    files = saved(tmp_path)
    assert (files["x.jsonl"], files["x-2.jsonl"], files["y-z.jsonl"]) == ([row("earlier")], [row("a")], [row("a")])
    assert len(files) == 5


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("CUDA error: device-side assert\nmore"), "failed: RuntimeError: CUDA error: device-side assert"),
        (KeyError("x"), "failed: KeyError: 'x'"),
        (ValueError(), "failed: ValueError: ValueError"),
        (OutOfMemory("out of memory", "use less"), "failed: out of memory (use less)"),
        (MemoryError(), "failed: out of memory"),
        (OSError(errno.ENOSPC, "No space left"), "failed: no space left on the disk"),
        (AssertionError("\udcff"), "failed: AssertionError: \udcff"),
        (KeyboardInterrupt(), "stopped"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_fails_at_a_terminal_is_said_and_the_conversation_goes_on(
    error: BaseException, said: str, talk: Talk, tmp_path: Path
) -> None:
    shown = talk(["a", "bad", "unrenderable", "c"], bad=error)
    assert shown[1:] == [
        f"\n{said}; this question and its answer are discarded",
        "\nfailed: the conversation cannot be rendered: no such role (/reset starts a new one); "
        "this question and its answer are discarded",
    ]
    assert list(saved(tmp_path).values()) == [[row("a", "c")]]


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, ""), OSError(errno.EIO, ""), Terminated()])
def test_a_conversation_without_anyone_to_talk_with_ends(error: BaseException, talk: Talk, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        talk(["a", "bad", "c"], bad=error)
    assert list(saved(tmp_path).values()) == [[row("a")]]


def test_piped_lines_end_at_the_first_error_with_the_answers_before_it_saved(talk: Talk, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be rendered"):
        talk(["a", "unrenderable", "c"], interactive=False)
    with pytest.raises(RuntimeError):
        talk(["b", "bad", "c"], interactive=False, bad=RuntimeError("x"))
    assert sorted(str(rows) for rows in saved(tmp_path).values()) == [str([row("a")]), str([row("b")])]


def test_a_folder_that_cannot_be_written_is_said_once_and_ends_nothing(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "chat").write_text("a file where the folder should be")
    for interactive in (True, False):
        said = talk(["a", "b"], interactive=interactive)
        assert len(said) == 1
        assert said[0].startswith("warning: the conversation is not saved: something is in the way")
