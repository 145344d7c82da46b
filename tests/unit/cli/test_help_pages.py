"""The help pages: short ones that fit a screen, full ones that leave nothing out, and examples that work."""

from __future__ import annotations

import re
import shlex
import sys
from typing import Any

import pytest
import typer.main

from llmft_cli.cli import app, help_pages
from llmft_cli.settings.config import FIELDS, flag_of, resolve

COMMANDS = ("gpu-check", "prepare", "train", "merge", "eval", "chat")
PAGES = [[], *([command] for command in COMMANDS)]
MOST_LINES = 30
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shown(monkeypatch: pytest.MonkeyPatch, capsys: Captured, *arguments: str) -> str:
    """What a command line that asks for help prints."""
    monkeypatch.setattr(sys, "argv", ["llmft", *arguments])
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def parameters_of(command: str) -> list[Any]:
    group: Any = typer.main.get_command(app.app)
    context = group.make_context("llmft", ["--help"], resilient_parsing=True)
    return list(group.commands[command].get_params(context))


def options_of(command: str) -> set[str]:
    """All option names of a command."""
    options = [item for item in parameters_of(command) if item.param_type_name == "option"]
    return {name for item in options for name in (*item.opts, *item.secondary_opts)}


def listed(page: str) -> set[str]:
    """Options that stand in the first column of a page, `--[no-]x` as `--x` and `--no-x`."""
    names: set[str] = set()
    for start in re.findall(r"^  (-.*?)(?:  |$)", page, re.M):
        for name in re.findall(r"--?[a-z\[][a-z\[\]-]*", start):
            names |= {name.replace("[no-]", ""), name.replace("[no-]", "no-")}
    return names


def examples_on(page: str) -> list[str]:
    block = page.partition("\nExamples:\n")[2].partition("\n\n")[0]
    return [line.strip() for line in block.splitlines()]


@pytest.mark.parametrize("arguments", PAGES, ids=["llmft", *COMMANDS])
def test_a_short_page_fits_a_screen(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    lines = shown(monkeypatch, capsys, *arguments, "--help").splitlines()
    assert lines[0].startswith(" ".join(["Usage: llmft", *arguments, "["]))
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= 80
    assert not any("..." in line or "\u2026" in line for line in lines[1:])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_page_leaves_nothing_out(command: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    page = shown(monkeypatch, capsys, command, "--help-all")
    assert max(map(len, page.splitlines())) <= 80
    assert listed(page) == options_of(command)
    words = " ".join(page.split())
    for name, item in FIELDS.items():
        if command in item.setting.commands:
            assert help_pages.full_text(item) in words, name
    for item in parameters_of(command):
        if item.param_type_name == "argument":
            assert f"  {item.metavar} " in page


@pytest.mark.parametrize("command", COMMANDS)
def test_a_short_page_shows_primary_options_and_counts_the_others(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    page = shown(monkeypatch, capsys, command, "--help")
    on_page = listed(page)
    assert on_page <= options_of(command)
    primary = {flag_of(name) for name, item in FIELDS.items() if command in item.setting.primary}
    assert primary <= on_page
    assert not {flag_of(name) for name, item in FIELDS.items()} - primary & on_page
    last = page.splitlines()[-1]
    assert last.startswith("General: --config, --json, --quiet, --debug. --help-all shows ")
    general = {"--config", "--json", "--quiet", "--debug", "--help", "--help-all"}
    options = [item for item in parameters_of(command) if item.param_type_name == "option"]
    others = [item for item in options if not {*item.opts} & (on_page | general)]
    assert re.findall(r"shows (\d+) more option", last) == [str(len(others))]


def test_a_primary_setting_is_one_of_its_command() -> None:
    for name, item in FIELDS.items():
        assert {*item.setting.primary, *item.setting.only_with} <= {*item.setting.commands}, name


def test_what_train_uses_only_with_data_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    page = shown(monkeypatch, capsys, "train", "--help-all")
    (data,) = re.findall(r"^Data \(only with --data\):\n(.*?)\n\n", page, re.M | re.S)
    (model,) = re.findall(r"^Model \(only with --data\):\n(.*?)\n\n", page, re.M | re.S)
    # A prepared run refuses other values of these; the seed may differ.
    of_prepare = {flag_of(name) for name, item in FIELDS.items() if {"prepare", "train"} <= {*item.setting.commands}}
    assert of_prepare - {"--seed"} <= listed(data) | listed(model)
    assert listed(model) == {"--model", "--revision", "--trust-remote-code"}
    short = shown(monkeypatch, capsys, "train", "--help")
    assert (listed(data) | listed(model)) & listed(short) == {"--model"}
    assert re.search(r"^  --model <name> +Base model. Only with --data.$", short, re.M)


def test_what_gpu_check_uses_only_with_a_run_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    page = shown(monkeypatch, capsys, "gpu-check", "--help-all")
    (group,) = re.findall(r"^Training \(only with --run\):\n(.*?)\n\n", page, re.M | re.S)
    assert listed(group) == {"--num-epochs", "--max-steps", "--packing", "--no-packing"}


@pytest.mark.parametrize("arguments", PAGES, ids=["llmft", *COMMANDS])
def test_examples_work(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    examples = examples_on(shown(monkeypatch, capsys, *arguments, "--help"))
    assert 2 <= len(examples) <= 3
    group: Any = typer.main.get_command(app.app)
    for line in examples:
        program, command, *others = shlex.split(line, comments=True)
        assert program == "llmft"
        assert [command] == (arguments or [command])
        assert re.search(r"\S  +# \S", line), line
        context = group.commands[command].make_context(command, others)  # a wrong option or argument raises
        resolve({name: value for name, value in context.params.items() if name in FIELDS})


def test_the_own_help_all_shows_every_command_in_full(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    page = shown(monkeypatch, capsys, "--help-all")
    assert page.startswith(shown(monkeypatch, capsys, "--help"))
    for command in COMMANDS:
        assert f"\n\n{shown(monkeypatch, capsys, command, '--help-all')}" in page


def test_the_own_page_has_the_commands_and_the_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    page = shown(monkeypatch, capsys, "--help")
    for command in COMMANDS:
        assert re.search(rf"^  {command} +[A-Z].*\.$", page, re.M), command
    codes = page.partition("\nExit codes: ")[2].split(", ")
    assert [int(code.split()[0]) for code in codes] == [0, 1, 2, 3, 4, 5, 6, 130]
    assert len(page.partition("\nExit codes: ")[2].splitlines()) <= 2


def test_pages_are_plain_text(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = shown(monkeypatch, capsys, "train", "--help")
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(monkeypatch, capsys, "train", "--help") == coloured
    assert "\x1b" not in coloured


@pytest.mark.parametrize("columns", [40, 60, 200])
def test_names_are_whole_at_any_width(columns: int, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert listed(shown(monkeypatch, capsys, "train", "--help-all")) == options_of("train")


@pytest.mark.parametrize(
    ("name", "full", "short"),
    [
        (
            "device",
            "Where to compute. One of auto, cuda, cpu. [default: auto]",
            "Where to compute: auto, cuda, cpu. [default: auto]",
        ),
        ("use_dora", FIELDS["use_dora"].setting.help, FIELDS["use_dora"].setting.help),
        (
            "learning_rate",
            "Peak learning rate. By default, it falls with the model's width. [default: auto]",
            "Peak learning rate. [default: auto]",
        ),
        ("lora_alpha", "LoRA scaling is alpha / rank. [default: 32]", "LoRA scaling is alpha / rank. [default: 32]"),
        ("max_vram", "GPU memory limit, as in 12GiB. No effect on training on a CPU.", "GPU memory limit, as in 12GiB."),
    ],
)
def test_texts_have_choices_and_defaults(name: str, full: str, short: str) -> None:
    assert help_pages.full_text(FIELDS[name]) == full
    assert help_pages.short_text(FIELDS[name], "train") == short


def test_a_switch_that_is_on_says_so() -> None:
    assert help_pages.full_text(FIELDS["packing"]).endswith(" [default: on]")
    assert help_pages.full_text(FIELDS["max_steps"]) == FIELDS["max_steps"].setting.help
