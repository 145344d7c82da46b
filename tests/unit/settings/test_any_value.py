"""Any value for any setting, by flag or in a file: a valid config, or an error that names it. Never a traceback."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llmft_cli.base.errors import ConfigError, LlmftError
from llmft_cli.settings import config
from llmft_cli.settings.config import FIELDS, Config, resolve

# As the command line has it: bytes that are not UTF-8 arrive as surrogates.
ODD_TEXTS = [
    "",
    " ",
    "none",
    "None",
    "null",
    "~",
    "true",
    "NO",
    "on",
    "0",
    "-1",
    "1e400",
    "-1e400",
    "nan",
    ".inf",
    "5%",
    "100%",
]
ODD_TEXTS += [
    "9" * 5000,
    "0x" + "f" * 5000,
    "1" + "0" * 400,
    "1_000",
    "010",
    "1:30",
    "2024-01-01",
    "1,2",
    ",",
    "a,,b",
    "a=b",
    "=",
]
ODD_TEXTS += [
    "\0",
    "\x1b[31m",
    "\x85",
    "\u2028",
    "caf\udce9",
    "\u0661\u0662",
    "12",
    "12GiB",
    "1e9GiB",
    "x" * 10_000,
    "{}",
    "[1",
]
ODD_TEXTS += [
    "!!python/object/apply:os.system [ls]",
    "&a [*a]",
    "*a",
    "a: b: c",
    "- 1",
    "%TAG",
    "@",
    "`",
    "\t",
    "? a",
    "|",
    ">",
]
TEXTS = st.sampled_from(ODD_TEXTS) | st.text(st.characters(), max_size=30) | st.integers().map(str) | st.floats().map(str)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.binary(max_size=20)
SCALARS |= st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)
OF_EACH_KIND = ("seed", "learning_rate", "max_vram", "packing", "model", "revision", "columns", "report_to", "weights")
NAMES = st.sampled_from(sorted(FIELDS))
YAML_TEXTS = [
    "{name}: !!python/object/apply:os.system [ls]",
    "{name}: !!bool maybe",
    "{name}: !!int ''",
    "{name}: !!float x",
    "{name}: !!timestamp x",
    "{name}: !!binary '*'",
    "{name}: !!set {{a, b}}",
    "{name}: !!omap [a: b]",
    "{name}: !!null x",
    "{name}: !unknown x",
    "{name}: &a [*a]",
    "{name}: *a",
    "{name}: [{name}, {{a: b}}]",
    "{name}: 1\n{name}: 2",
    "<<: {{{name}: 1}}",
    "<<: [1]",
    "? [{name}]\n: 1",
    "? {{a: b}}\n: 1",
    "{name}: 2024-99-99",
    "{name}: |\n  a\n  b",
    '{name}: "\\ud800"',
    '{name}: "\\0"',
    "--- {name}: 1\n--- 2",
    "%YAML 9.9\n---\n{name}: 1",
    "{name}:\n\t1",
    "{name}",
    "- {name}: 1",
    "{name}: " + "[" * 2000,
    "{name}: " + "{{a: " * 2000,
    "{name}: 1" + "0" * 5000,
    "{name}: 0x" + "f" * 5000,
    "{name}: 190:20:30.15",
    "null: 1",
    "1: 1",
    "? \n: 1",
]


def check(found: Config) -> None:
    """Every value is of its type, passes its own check, and is read back from a saved file as it is."""
    for name, item in FIELDS.items():
        value = getattr(found, name)
        assert value is None if item.optional and value is None else type(value) in (item.type, int), name
        assert config.validated(name, value, name) == value, name
    yaml.safe_load(config.dump(dataclasses.asdict(found))).items()


def resolved(**arguments: Any) -> Config | None:
    """The config, or None where the values are refused as an error in usage that fits on a screen."""
    try:
        return resolve(**arguments)
    except LlmftError as caught:
        error = caught
    assert type(error) is ConfigError
    assert error.exit_code == 2
    assert 0 < len(error.message) < 2000
    assert (error.message + error.hint).isprintable()
    return None


quick = hypothesis_settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(flags=st.dictionaries(NAMES, TEXTS, max_size=4))
def test_any_flags(flags: dict[str, str]) -> None:
    for name, text in flags.items():
        if FIELDS[name].type is bool:  # the command line has these as switches
            flags = flags | {name: text == "true"}  # type: ignore[dict-item]
    found = resolved(flags=flags)
    if found is not None:
        check(found)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_odd_text_for_every_setting(name: str) -> None:
    for text in ODD_TEXTS:
        if FIELDS[name].type is not bool and (found := resolved(flags={name: text})) is not None:
            check(found)


@quick
@given(values=st.dictionaries(NAMES | st.text(max_size=10), VALUES, max_size=4))
@example(values={"seed": 2**4000})
def test_any_file(values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    with contextlib.suppress(yaml.YAMLError, UnicodeError):
        file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        found = resolved(flags={}, file=file)
        if found is not None:
            check(found)


@pytest.mark.parametrize("text", YAML_TEXTS, ids=range(len(YAML_TEXTS)))
def test_any_syntax_of_yaml(text: str, tmp_path: Path) -> None:
    for name in OF_EACH_KIND:
        file = tmp_path / "settings.yaml"
        file.write_text(text.format(name=name), encoding="utf-8")
        found = resolved(flags={}, file=file)
        if found is not None:
            check(found)


@quick
@given(content=st.binary(max_size=60))
@example(content=b"\xef\xbb\xbf")
@example(content=b"seed: \xed\xa0\x80")
def test_any_bytes(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    resolved(flags={}, file=file)


@quick
@given(name=NAMES, text=TEXTS.filter(lambda text: text.isprintable()))
def test_text_means_the_same_in_a_flag_and_in_a_file(name: str, text: str, tmp_path: Path) -> None:
    if FIELDS[name].type is bool or not text.isascii():
        return
    file = tmp_path / "settings.yaml"
    quoted = text.replace("'", "''")
    file.write_text(f"{name}: '{quoted}'\n", encoding="utf-8")
    assert resolved(flags={name: text}) == resolved(flags={}, file=file)
