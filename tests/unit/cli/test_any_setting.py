"""Any value of any setting on any command line: a valid config reaches the command, or the exit code is 2."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

if not find_spec("torch"):
    pytest.skip("needs torch", allow_module_level=True)

from llmft_cli.base.errors import LlmftError
from llmft_cli.cli import app
from llmft_cli.settings import config
from llmft_cli.settings.config import FIELDS, Config

# Where each command works with its config.
WORK = {
    "gpu-check": "llmft_cli.cli.gpu_check.look",
    "prepare": "llmft_cli.data.prepare.prepare",
    "train": "llmft_cli.training.train.train",
    "merge": "llmft_cli.merging.merge.merge",
    "eval": "llmft_cli.evaluation.evaluate.evaluate",
    "chat": "llmft_cli.serving.generation.load_tuned",
}
ARGUMENTS = {"gpu-check": [], "prepare": ["rows.jsonl", "--run", "run"]}
TEXTS = st.sampled_from(
    ["", "none", "0", "-1", "1e400", "nan", "5%", "2.5", "12", "12GiB", "caf\udce9", "a,b", "9" * 400, "cpu", "fp32"]
)
TEXTS |= st.text(st.characters(exclude_characters="\0"), max_size=12) | st.integers(1, 99).map(str) | st.floats(0, 1).map(str)


class Reached(Exception):
    """A command works with this config."""

    def __init__(self, found: Config) -> None:
        self.found = found


@pytest.fixture(autouse=True)
def commands_stop_before_they_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(*arguments: Any, **others: Any) -> None:
        for argument in arguments:
            if isinstance(argument, Config):
                raise Reached(argument)
            if hasattr(argument, "vram"):
                raise Reached(argument.config())
        raise Reached(Config())  # gpu-check without a setting

    for place in WORK.values():
        monkeypatch.setattr(place, stop)
    monkeypatch.chdir(tmp_path)


def ended(arguments: list[str]) -> Config | int:
    """The config with which the command would have worked, or the exit code of the error."""
    try:
        return app.run_command(arguments)
    except Reached as reached:
        return reached.found
    except Exception as error:
        caught = error
    known = app.as_llmft_error(caught)
    assert isinstance(known, LlmftError), repr(caught)
    return known.exit_code


def check(outcome: Config | int) -> None:
    if isinstance(outcome, int):
        assert outcome == 2
        return
    for name in FIELDS:
        value = getattr(outcome, name)
        assert config.validated(name, value, name) == value, name


def flags_of(command: str) -> list[str]:
    return [name for name, item in FIELDS.items() if command in item.setting.commands]


@pytest.mark.parametrize("command", WORK)
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flag_of_a_command(command: str, data: st.DataObject) -> None:
    arguments = [command, *ARGUMENTS.get(command, ["run"])]
    for name in data.draw(st.lists(st.sampled_from(flags_of(command)), max_size=3)):
        flag = config.flag_of(name)
        is_switch = FIELDS[name].type is bool
        arguments += [flag] if is_switch else [f"{flag}={data.draw(TEXTS)}"]
    check(ended(arguments))


@pytest.mark.parametrize("command", WORK)
@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.sampled_from(sorted(FIELDS)), TEXTS | st.booleans() | st.none() | st.lists(TEXTS), max_size=3))
def test_any_config_file_of_a_command(command: str, values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(values))
    check(ended([command, *ARGUMENTS.get(command, ["run"]), "--config", str(file)]))


@pytest.mark.parametrize("command", WORK)
def test_files_that_cannot_be_read_are_errors_in_usage(command: str, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (".", "missing", "binary", "loop", "", "/dev/zero", "x" * 300, "binary/below", "caf\udce9"):
        assert ended([command, *ARGUMENTS.get(command, ["run"]), f"--config={path}"]) == 2, path


def test_a_config_file_may_be_a_pipe(tmp_path: Path) -> None:
    """It was read twice, and was empty the second time."""
    import os
    import threading

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("lora_r: 7\n",))
    writer.start()
    found = ended(["train", "run", "--config", str(pipe)])
    writer.join()
    assert isinstance(found, Config)
    assert found.lora_r == 7
