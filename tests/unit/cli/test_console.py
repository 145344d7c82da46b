"""What is shown: where it goes, that it is one line, and that nothing in it is obeyed."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
from dataclasses import replace

import pytest

from llmft_cli.base.errors import LlmftError, StageError
from llmft_cli.cli.console import ChatScreen, Console, NoScreen, figures_text
from llmft_cli.cli.terminal import marked, marks, one_line, printable
from llmft_cli.cli.views.sections import Section, named
from llmft_cli.data.report.samples import Sample, Segment
from llmft_cli.serving.generation import Reply

Captured = pytest.CaptureFixture[str]
REPLY = Reply(text="hi", tokens=3, seconds=0.25)


def test_json_is_one_parsable_line_on_stdout(capsys: Captured) -> None:
    values = {"text": "a\nb\u2028c\x85d \U0001f600 \udcff", "number": 0.5, "none": None}
    Console(as_json=True).result("eval", "runs/x", values, [named("not shown", {"a": 1})])
    shown = capsys.readouterr()
    assert shown.out.endswith("\n")
    assert len(shown.out.splitlines()) == 1
    assert json.loads(shown.out) == {"ok": True, "command": "eval", "run": "runs/x", **values}
    assert shown.err == ""


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_has_no_numbers_that_json_does_not_know(number: float, capsys: Captured) -> None:
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        Console(as_json=True).result("train", None, {"loss": number}, [])
    assert capsys.readouterr().out == ""


def test_an_error_as_json(capsys: Captured) -> None:
    Console(as_json=True).error(StageError("no run", "make one"))
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"ok": False, "error": {"kind": "stage", "message": "no run", "hint": "make one"}}
    assert len(shown.out.splitlines()) == 1
    assert shown.err == ""


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (StageError("no run", "make one"), ["error: no run", "hint: make one"]),
        (StageError("no run"), ["error: no run"]),
        (LlmftError("three\nlines  of\r\ntext", "and\ntwo"), ["error: three lines of text", "hint: and two"]),
        (LlmftError("[bold]x[/bold] [/]"), ["error: [bold]x[/bold] [/]"]),
        (LlmftError("\x1b[31mred\x1b]0;title\x07 \x9b2J \u202eabc"), [r"error: \x1b[31mred\x1b]0;title\x07 \x9b2J \u202eabc"]),
        (LlmftError("x" * 300, "y" * 300), ["error: " + "x" * 300, "hint: " + "y" * 300]),
    ],
)
def test_an_error_has_one_line_and_one_for_the_hint(error: LlmftError, lines: list[str], capsys: Captured) -> None:
    Console().error(error)
    shown = capsys.readouterr()
    assert shown.err.splitlines() == lines
    assert shown.out == ""


def test_narration_goes_to_stderr_and_quiet_leaves_warnings(capsys: Captured) -> None:
    Console().note("loading [m]")
    assert capsys.readouterr() == ("", "loading [m]\n")
    quiet = Console(quiet=True)
    quiet.note("loading")
    quiet.warn("a GPU is missing")
    with quiet.track("training", total=2) as advance:
        advance(1, loss=1.0)
    assert capsys.readouterr() == ("", "warning: a GPU is missing\n")


def test_progress_without_a_terminal_is_a_line_per_figure(capsys: Captured) -> None:
    with Console().track("training", total=10, done=4) as advance:
        advance(1)
        advance(0, loss=1.23456, learning_rate=2e-4, tokens_per_second=1234.5, peak_memory_bytes=2**31)
        advance(1)
        advance(0, loss=1.2, tokens_per_second=None)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "training 5/10  loss 1.2346  lr 2.00e-04  1,234 tok/s  peak 2.00 GiB",
        "training 6/10  loss 1.2000",
    ]


def test_figures_that_are_not_known_are_left_out() -> None:
    assert figures_text({"loss": None}) == ""


def test_a_cut_answer_is_told(capsys: Captured) -> None:
    screen = ChatScreen(Console())
    screen.answer_ends(REPLY)
    screen.answer_ends(replace(REPLY, cut=True))
    assert capsys.readouterr().err.splitlines() == [
        "3 tokens, 12.0 tokens/s",
        "3 tokens, 12.0 tokens/s; cut at --max-new-tokens",
    ]


def test_a_result_is_shown_in_full_and_as_it_is(capsys: Captured) -> None:
    path = "/very-long-directory-name" * 20
    sections = [
        named("Prepared [red]x", {"disk": path, "none": None, "text": "[bold]b[/bold] \x1b[31m"}),
        Section("Scores", [("base", "1.5"), ("tuned", "12.5")], ("", "loss")),
    ]
    Console().result("prepare", "x", {}, sections)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "Prepared [red]x",
        f"disk  {path}",
        r"text  [bold]b[/bold] \x1b[31m",
        "Scores",
        "       loss",
        "base    1.5",
        "tuned  12.5",
    ]


def test_model_output_is_shown_not_obeyed(capsys: Captured) -> None:
    screen = ChatScreen(Console())
    screen.answer_begins("base", label=True)
    screen.text("a\tb\n[bold]c[/bold] \x1b]0;t\x07\r\x00 \U0001f468\u200d\U0001f469 \udc80")
    screen.answer_ends(REPLY)
    screen.say("saved")
    shown = capsys.readouterr()
    assert shown.out == (
        "base: a\tb\n[bold]c[/bold] \\x1b]0;t\\x07\\r\\x00 \U0001f468\u200d\U0001f469 \\udc80\n"
    )  # fmt: skip
    assert shown.err == "3 tokens, 12.0 tokens/s\nsaved\n"


def test_no_screen_shows_nothing(capsys: Captured) -> None:
    screen = NoScreen()
    screen.answer_begins("base", label=True)
    screen.text("a")
    screen.answer_ends(REPLY)
    screen.say("b")
    assert capsys.readouterr() == ("", "")


def test_printable_keeps_ordinary_text() -> None:
    text = "Gr\u00fc\u00dfe, \u4f60\u597d, \u0645\u0631\u062d\u0628\u0627\n\t\U0001f600"
    assert printable(text) == text
    assert one_line(" a \n b ") == "a b"


def test_piped_lines_are_taken_even_where_they_are_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\xff two\n"), encoding="utf-8"))
    assert list(Console().lines()) == ["one\n", "\ufffd two\n"]


def test_a_terminal_that_is_not_utf8_gets_escapes() -> None:
    code = "from llmft_cli.cli.console import Console; c = Console(); c.raw('\\u4f60\\n'); c.note('\\u4f60')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u4f60\n", "\\u4f60\n")


def read_terminal(code: str, answer: bytes = b"") -> tuple[str, str]:
    """What a program writes to stdout, a pipe, and to its terminal, which is its stdin and stderr."""
    main, terminal = pty.openpty()
    program = subprocess.Popen([sys.executable, "-c", code], stdin=terminal, stdout=subprocess.PIPE, stderr=terminal)
    os.close(terminal)
    os.write(main, answer)
    out, _ = program.communicate(timeout=300)
    shown = b""
    while select.select([main], [], [], 0)[0]:
        try:
            shown += os.read(main, 65536)
        except OSError:  # the other end is closed
            break
    os.close(main)
    return out.decode(), shown.decode()


def test_the_prompt_is_not_mixed_into_redirected_answers() -> None:
    code = "from llmft_cli.cli.console import Console\nfor line in Console(quiet=True).lines(): print('got', line)"
    out, shown = read_terminal(code, b"hello\n\x04")
    assert out == "got hello\n"
    assert "> " in shown


def test_progress_on_a_terminal_is_a_bar_with_figures_that_goes_away() -> None:
    code = (
        "from llmft_cli.cli.console import Console\n"
        "with Console().track('training [b]', total=2) as advance:\n"
        "    advance(1); advance(1, loss=1.5)\n"
    )
    out, shown = read_terminal(code)
    assert out == ""
    assert "training [b]" in shown
    assert "2/2" in shown
    assert "loss 1.5000" in shown


SAMPLE = Sample(
    source="rows[b].jsonl\x1b",
    line=3,
    split="train",
    tokens=1020,
    supervised=8,
    segments=[
        Segment("<s>", supervised=False, special=True, tokens=1),
        Segment("Say\t[bold]</s>[/] \x1b[31m \u27e6x", supervised=False, special=False, tokens=1010),
        Segment("No\n 2 ", supervised=True, special=False, tokens=7),
        Segment("</s>", supervised=True, special=True, tokens=1),
        Segment("\n", supervised=False, special=False, tokens=1),
    ],
)
SHOW_SAMPLE = f"""
from llmft_cli.cli.console import Console
from llmft_cli.data.report.samples import Sample, Segment
Console().samples([{SAMPLE!r}])
"""


def test_samples_in_a_pipe_have_marks_around_what_is_learned(capsys: Captured) -> None:
    Console().samples([SAMPLE, SAMPLE])
    shown = capsys.readouterr()
    one = (
        "=== rows[b].jsonl\\x1b:3 (train): 1,020 tokens, 8 supervised\n"
        "<s>Say\t[bold]\\u003c/s>[/] \\x1b[31m \\u27e6x\u27e6No\n 2 </s>\u27e7\n\n\n"
    )
    assert shown.out == one * 2
    assert shown.err == "supervised text is between \u27e6 and \u27e7\n"


def test_samples_are_not_printed_beside_json(capsys: Captured) -> None:
    Console(as_json=True).samples([SAMPLE])
    assert capsys.readouterr() == ("", "")


def test_samples_where_there_is_only_ascii() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", SHOW_SAMPLE], capture_output=True, text=True, env=environment)
    assert "x{+No\n 2 </s>+}\n" in done.stdout
    assert done.stderr == "supervised text is between {+ and +}\n"
    assert (marks("ascii"), marks("latin-1"), marks("utf-8")) == (("{+", "+}"), ("{+", "+}"), ("\u27e6", "\u27e7"))


def test_text_that_spells_a_mark_or_a_special_token_is_told_from_one() -> None:
    segments = [
        Segment("{+}<eos><eo", False, False, 1),
        Segment("<eos>", False, True, 1),
        Segment("++}", True, False, 1),
        Segment("<eos>", True, True, 1),
    ]
    sample = Sample("rows.jsonl", 1, "train", 4, 2, segments)
    assert marked(sample, "{+", "+}") == "\\u007b\\u002b}\\u003ceos><eo<eos>{++\\u002b}<eos>+}"


@pytest.mark.parametrize("colours", [True, False])
def test_samples_on_a_terminal_are_coloured_unless_colours_are_not_wanted(
    colours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    if colours:
        monkeypatch.delenv("NO_COLOR")
    shown = terminal_output(SHOW_SAMPLE).replace("\r\n", "\n")
    if colours:
        assert "\x1b[1;32mNo\x1b[0m\n\x1b[1;32m 2 \x1b[0m\x1b[1;7;32m</s>\x1b[0m\n" in shown
        assert "\x1b[2;7m<s>\x1b[0mSay" in shown
        assert "[bold]</s>[/] \\x1b[31m \u27e6x" in shown
    else:
        assert "\u27e6No\n 2 </s>\u27e7\n" in shown
        assert "32m" not in shown


def terminal_output(code: str) -> str:
    """What a program writes to a terminal, which is its stdout and stderr."""
    main, terminal = pty.openpty()
    program = subprocess.Popen([sys.executable, "-c", code], stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(main, 65536)
        except OSError:  # the other end is closed
            break
    os.close(main)
    assert program.wait(timeout=300) == 0
    return shown.decode()
