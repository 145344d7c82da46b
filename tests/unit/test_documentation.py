"""README and docs: command lines parse, links resolve, rows of training data are accepted, prose is wrapped."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

import llmft_cli
from llmft_cli.base import errors
from llmft_cli.base.errors import LlmftError
from llmft_cli.cli.app import app
from llmft_cli.cli.views.fit import HEADER
from llmft_cli.data.checks.findings import MEANINGS
from llmft_cli.data.forms.columns import parse_columns
from llmft_cli.data.forms.formats import PARSERS, parse
from llmft_cli.gpu.waiting import read_wanted
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings import config as settings
from llmft_cli.settings.quantities import parse_size

ROOT = Path(llmft_cli.__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
WITH_COMMANDS = [README, *DOCS, ROOT / "sample_data" / "README.md"]
PAGES = [*WITH_COMMANDS, ROOT / "sample_data" / "bad" / "README.md"]
MOST_README_LINES = 160
WIDEST_PROSE = 100

INLINE_CODE = re.compile(r"(`+)(.+?)\1")
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
BARE_LINK = re.compile(r"(?:[-*] |!)?\[[^\]]*\]\([^()\s]+\)[.,:;]?")
# A word in capitals stands for what the user puts there: RUN, DATA, FILE.jsonl.
PLACEHOLDER = re.compile(r"[A-Z]+(\.[a-z]+)?")
# Of pipx, pip and uv.
OPTIONS_OF_OTHERS = {"--pip-args", "--extra-index-url", "--torch-backend"}
CODE_PATH = re.compile(r"(?:llmft_cli|tests|benchmarks|sample_data|docs)/[\w./-]*")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=named)


def blocks(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The fenced blocks of a page: language and lines."""
    language, lines, inside = "", list[str](), False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            if inside:
                yield language, lines
            language, lines, inside = line.strip().removeprefix("```"), [], not inside
        elif inside:
            lines.append(line)
    assert not inside, f"{page} ends within a fenced block"


def prose(page: Path) -> list[tuple[int, str]]:
    """The lines outside fenced blocks, with their numbers."""
    found, inside = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside:
            found.append((number, line))
    return found


def without_code(page: Path) -> str:
    return "\n".join(INLINE_CODE.sub("", line) for _, line in prose(page))


# -- command lines


def command_lines(page: Path) -> Iterator[list[str]]:
    """The arguments of every llmft command on a page, in fenced blocks and in code that begins with `llmft `."""
    for language, lines in blocks(page):
        if language in ("console", "sh", "bash"):
            for line in "\n".join(lines).replace("\\\n", " ").splitlines():
                if language != "console" or line.startswith("$ "):
                    yield from commands_in(line.removeprefix("$ "))
    for _, line in prose(page):
        for _, code in INLINE_CODE.findall(line):
            if code.startswith("llmft "):
                # A command that is only named, as in "`llmft prepare` reads ...", is no command line.
                yield from ([name, "--help"] if not rest else [name, *rest] for name, *rest in commands_in(code))


def commands_in(line: str) -> Iterator[list[str]]:
    """The arguments of the llmft commands in a line of shell, also of those in `$(...)` and within quotes."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    for start, word in enumerate(words):
        if word == "llmft":
            rest = words[start + 1 :]
            end = next((index for index, other in enumerate(rest) if set(other) <= set("();<>|&")), len(rest))
            yield rest[:end]
        elif "llmft " in word:
            yield from commands_in(word)


def check(arguments: list[str]) -> None:
    """Parse a command line with the real parser and check the values that it gives; nothing is executed."""
    root: Any = typer.main.get_command(app)
    name, *rest = arguments
    parser = root if name.startswith("-") else root.commands[name]
    with suppress(typer.Exit):  # of --help and the like
        context = parser.make_context(name, arguments if parser is root else rest)
        check_values(context.params)


def check_values(given: dict[str, Any]) -> None:
    values = {name: value for name, value in given.items() if not (isinstance(value, str) and PLACEHOLDER.fullmatch(value))}
    chosen = settings.resolve({name: value for name, value in values.items() if name in settings.FIELDS})
    if chosen.columns:
        parse_columns(chosen.columns)
    if values.get("vram"):
        parse_size(values["vram"])
    read_wanted(*(values.get(name) for name in ("wait", "min_free", "max_load", "gpus")))


LINES = [(page, arguments) for page in WITH_COMMANDS for arguments in command_lines(page)]


@pytest.mark.parametrize(("page", "arguments"), LINES, ids=[f"{named(page)}: {' '.join(line)}" for page, line in LINES])
def test_every_command_line_parses(page: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    check(arguments)


def test_the_search_for_command_lines_sees_them() -> None:
    line = "gpu=$(llmft gpu-check --wait 10m) && X=1 llmft train runs/a --seed 1 | tee log # llmft eval"
    assert list(commands_in(line)) == [["gpu-check", "--wait", "10m"], ["train", "runs/a", "--seed", "1"]]
    assert list(commands_in("sbatch --wrap 'llmft train RUN'")) == [["train", "RUN"]]
    assert {arguments[0] for page, arguments in LINES if page == README} >= {
        "gpu-check",
        "prepare",
        "train",
        "eval",
        "merge",
        "chat",
    }


@pytest.mark.parametrize(
    "line",
    [
        "tune RUN",
        "train RUN --learning-speed 1",
        "train RUN --learning-rate 5",
        "train RUN --batch-size two",
        "prepare",
        "prepare a.jsonl --format csv",
        "prepare a.jsonl --columns prompts=a",
        "gpu-check --vram 8",
        "gpu-check --wait soon",
    ],
)
def test_a_wrong_command_line_is_noticed(line: str) -> None:
    with pytest.raises((KeyError, ValueError, typer.TyperException, LlmftError)):
        check(line.split())


def test_every_option_that_is_named_exists() -> None:
    root: Any = typer.main.get_command(app)
    known = {option for command in (root, *root.commands.values()) for item in command.params for option in item.opts}
    known |= {option for command in root.commands.values() for item in command.params for option in item.secondary_opts}
    known |= {"--help", "--help-all", "--install-completion", "--show-completion"} | OPTIONS_OF_OTHERS
    for page in WITH_COMMANDS:
        for number, line in prose(page):
            for _, code in INLINE_CODE.findall(line):
                if code.startswith("--"):
                    assert code.split()[0].split("=")[0] in known, f"{named(page)} line {number}: {code}"


# -- links


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    found: set[str] = set()
    for _, line in prose(page):
        if match := re.fullmatch(r"#{1,6} (.+)", line):
            anchor, count = slug(match[1]), 1
            while anchor in found:
                anchor, count = f"{slug(match[1])}-{count}", count + 1
            found.add(anchor)
    return found


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=named)
def test_every_link_resolves(page: Path) -> None:
    for target in LINK.findall(without_code(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} is not there"
        assert file.is_relative_to(ROOT), f"{target} leaves the repository"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


@each_page
def test_every_path_of_code_that_is_named_exists(page: Path) -> None:
    for number, line in prose(page):
        for _, code in INLINE_CODE.findall(line):
            if CODE_PATH.fullmatch(code):
                assert (ROOT / code).exists(), f"{named(page)} line {number}: {code}"


def test_every_name_of_code_that_contributing_tells_exists() -> None:
    folders = ("llmft_cli", "tests", "benchmarks")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py") if file != Path(__file__)]
    words = {word for file in files for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))}
    modules = {file.name for file in files}
    for _, line in prose(ROOT / "docs" / "contributing.md"):
        for _, code in INLINE_CODE.findall(line):
            if re.fullmatch(r"\w+\.py", code):
                assert code in modules, code
            elif re.fullmatch(r"[\w.]*(_|[A-Z])\w*", code):
                assert set(code.split(".")) <= words, code


def test_every_page_is_linked_from_readme() -> None:
    linked = {target.partition("#")[0] for target in LINK.findall(without_code(README))}
    assert {named(page) for page in DOCS} <= linked


# -- size and width


def test_readme_is_short() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_README_LINES
    wide = [line for line in lines if len(line) > WIDEST_PROSE and not line.startswith(("|", "$ "))]
    assert wide == []


@each_page
def test_prose_is_wrapped(page: Path) -> None:
    for number, line in prose(page):
        if not line.startswith("|") and not BARE_LINK.fullmatch(line.strip()):
            assert len(line) <= WIDEST_PROSE, f"{named(page)} line {number} has {len(line)} columns"


# -- facts that the code knows


def rows_of(page: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of training data on a page, each with its form."""
    lines = [line for language, lines in blocks(page) if language == "jsonl" for line in lines]
    return [(parse(json.loads(line))[0], json.loads(line)) for line in lines]


def test_readme_shows_a_row_of_each_form() -> None:
    assert {form for form, _ in rows_of(README)} == set(PARSERS)


def test_every_row_of_the_docs_is_accepted() -> None:
    forms = {form for page in DOCS for form, _ in rows_of(page)}
    assert forms == set(PARSERS)


def kinds_of_errors(base: type[LlmftError] = LlmftError) -> Iterator[type[LlmftError]]:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, base):
            yield kind


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "scripting-and-slurm.md"], ids=named)
def test_every_exit_code_is_told(page: Path) -> None:
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", page.read_text(encoding="utf-8"), re.MULTILINE)}
    assert told == {0} | {kind.exit_code for kind in kinds_of_errors()}


def test_every_kind_of_error_is_told() -> None:
    text = (ROOT / "docs" / "scripting-and-slurm.md").read_text(encoding="utf-8")
    for kind in kinds_of_errors():
        assert re.search(rf"^\| {kind.exit_code} \|.*`{kind.kind}`", text, re.MULTILINE), kind.kind


def test_every_check_is_told() -> None:
    text = (ROOT / "docs" / "data-formats.md").read_text(encoding="utf-8")
    for check, (level, _) in MEANINGS.items():
        assert f"| `{check}` | {level} |" in text


def test_every_column_of_the_plans_is_told() -> None:
    text = (ROOT / "docs" / "memory-planning.md").read_text(encoding="utf-8")
    for column in filter(None, HEADER):
        assert f"\n| {column} |" in text, column


def test_every_part_of_a_run_is_told() -> None:
    text = (ROOT / "docs" / "run-directory.md").read_text(encoding="utf-8")
    run = RunDir(Path("run"))
    parts = [value for name in dir(RunDir) if isinstance(value := getattr(run, name), Path) and value != run.path]
    assert len(parts) > 5
    for part in parts:
        assert part.name in text


def test_every_room_of_the_package_is_on_the_map() -> None:
    text = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    package = ROOT / "llmft_cli"
    for folder in sorted(file.parent for file in package.rglob("__init__.py") if file.parent != package):
        assert f"`{folder.relative_to(package)}/`" in text
