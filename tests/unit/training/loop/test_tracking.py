"""Trackers: told before loading where they are missing, and never the end of a training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmft_cli.base.errors import MachineError
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings.config import resolve
from llmft_cli.training.loop import tracking
from llmft_cli.training.loop.trackers.guard import Guard, Tracker, described
from llmft_cli.training.loop.tracking import Kind, check_installed, tracked

from ..tiny_training import Told


class Failing:
    """A callback that fails at the second log, after printing."""

    def __init__(self) -> None:
        self.logged: list[float] = []

    def on_log(self, logs: dict[str, float]) -> None:
        print("* logged")
        if self.logged:
            raise ConnectionError("lost\nhttps://user:pass@example.org")
        self.logged.append(logs["loss"])


class Trainer:
    """What tracking needs of a trainer."""

    def __init__(self) -> None:
        self.args = SimpleNamespace()
        self.callbacks: list[Any] = []

    def add_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)


def test_a_tracker_that_fails_is_left_out_with_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    told, callback, ended = Told(), Failing(), []
    guard = Guard("MLflow", Tracker(callback, ended.append), told)
    for loss in (1.0, 2.0, 3.0):
        guard.on_log(logs={"loss": loss})
    guard.end(False)
    assert callback.logged == [1.0]
    assert told.warnings == ["MLflow failed, training continues without it: ConnectionError: lost"]
    assert ended == []
    assert capsys.readouterr().out == ""


def test_ctrl_c_within_a_tracker_still_stops() -> None:
    def interrupted(failed: bool) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guard("W&B", Tracker(None, interrupted), Told()).end(False)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no key 0123456789 here", "no key *** here"),
        ("at https://me:word@host/x?y", "at https://***@host/x?y"),
        ("nothing", "nothing"),
    ],
)
def test_secrets_are_not_told(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    assert described(ValueError(f"{text}\nmore")) == f"ValueError: {shown}"


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda module: None if module == name else object())
    with pytest.raises(MachineError) as raised:
        check_installed(f"wandb,{name}")
    assert raised.value.message == f"--report-to {name}: {name} is not installed"
    assert raised.value.hint == f"pip install {name}, or omit it from --report-to"
    check_installed("wandb")
    check_installed("none")


def test_mlflow_needs_a_database_unless_it_has_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mlflow-skinny` has none."""
    monkeypatch.setattr(tracking, "find_spec", lambda module: None if module == "sqlalchemy" else object())
    with pytest.raises(MachineError, match="sqlalchemy is not installed"):
        check_installed("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    check_installed("mlflow")


@pytest.mark.parametrize("failure", [None, RuntimeError("out of luck")])
def test_a_resumed_training_continues_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception | None
) -> None:
    requests, ended, saved = [], [], []

    def begin(request: Any) -> Tracker:
        requests.append((request.id, request.name, request.done_steps))
        return Tracker(Failing(), ended.append, request.id or "new")

    def refuse(request: Any) -> Tracker:
        raise ConnectionError("no server")

    kinds = {"wandb": Kind("W&B", begin, tuple), "mlflow": Kind("MLflow", refuse, tuple)}
    monkeypatch.setattr(tracking, "KINDS", kinds | {"trackio": Kind("Trackio", refuse, tuple, lambda: True)})
    config, run, told = resolve({"report_to": "wandb,mlflow,trackio"}), RunDir(tmp_path / "mine"), Told()
    record: Any = SimpleNamespace(facts={}, save_facts=lambda: saved.append(dict(record.facts)))
    for recorded, checkpoint in (({}, None), ({"trackers": {"wandb": "old", "mlflow": "kept"}}, Path("checkpoint-7"))):
        trainer: Any = Trainer()
        try:
            with tracked(trainer, run, config, record, recorded, checkpoint, told):
                assert len(trainer.callbacks) == 1
                if failure:
                    raise failure
        except RuntimeError as error:
            assert error is failure  # noqa: PT017
    assert requests == [(None, "mine", 0), ("old", "mine", 7)]
    assert saved == [{"trackers": {"wandb": "new"}}, {"trackers": {"wandb": "old", "mlflow": "kept"}}]
    assert ended == [failure is not None] * 2
    assert told.warnings == ["MLflow could not be started, training continues without it: ConnectionError: no server"] * 2
    assert told.notes == ["Trackio is turned off by the environment"] * 2
