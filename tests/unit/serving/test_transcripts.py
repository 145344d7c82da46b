"""Conversations in files: one for each session, none over another, none half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.serving import transcripts
from llmft_cli.serving.transcripts import LONGEST_NAME, Transcript, row_of, stem_of, write_new


def talk(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": f"{text}!"}]


def contents(folder: Path) -> dict[str, list[Any]]:
    return {file.name: [json.loads(line) for line in file.open(encoding="utf-8")] for file in sorted(folder.iterdir())}


def test_a_session_is_one_file_with_a_row_for_each_conversation(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path / "chat")
    assert not transcript.folder.exists()
    file = transcript.keep(talk("a"))
    assert transcript.keep(talk("a") + talk("b\u2028c")) == file
    transcript.end_conversation()
    transcript.end_conversation()
    assert contents(tmp_path / "chat") == {file.name: [{"messages": talk("a") + talk("b\u2028c")}]}
    assert transcript.keep(talk("d")) == file
    assert contents(tmp_path / "chat") == {file.name: [{"messages": talk("a") + talk("b\u2028c")}, {"messages": talk("d")}]}


def test_sessions_of_the_same_second_have_files_of_their_own(tmp_path: Path) -> None:
    sessions = [Transcript(tmp_path) for _ in range(3)]
    files = {session.keep(talk(str(number))) for number, session in enumerate(sessions)}
    assert len(files) == 3
    rows = list(contents(tmp_path).values())
    assert sorted(row["messages"][0]["content"] for [row] in rows) == ["0", "1", "2"]


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    written = [write_new(tmp_path, "x", row_of(talk(str(number)))).name for number in range(3)]
    assert written == ["x.jsonl", "x-2.jsonl", "x-3.jsonl"]
    assert [rows[0]["messages"][0]["content"] for rows in contents(tmp_path).values()] == ["1", "2", "0"]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("talk", "talk"),
        ("../../etc/x", "------etc-x"),
        ("a b\u00e9\ufffd.jsonl", "a-b\u00e9--jsonl"),
        ("\u4f60" * 300, "\u4f60" * 48),
    ],
)
def test_names_are_those_of_files_in_the_folder(name: str, stem: str, tmp_path: Path) -> None:
    assert stem_of(name) == stem
    for _ in range(2):  # with a number, too
        assert write_new(tmp_path, stem_of(name), row_of(talk("a"))).parent == tmp_path
    assert len(stem) <= LONGEST_NAME


def test_what_cannot_be_written_leaves_nothing_and_comes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    transcript = Transcript(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(transcripts, "write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            transcript.keep(talk("a"))
    assert contents(tmp_path) == {}
    file = transcript.keep(talk("a") + talk("b"))
    assert contents(tmp_path) == {file.name: [{"messages": talk("a") + talk("b")}]}
