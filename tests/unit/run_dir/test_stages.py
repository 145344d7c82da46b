"""The run directory: atomic writes, a truthful ledger, and one writer at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.base import files
from llmft_cli.base.errors import Interrupted, MachineError, StageError
from llmft_cli.base.files import hash_path, replacing_directory, write_atomically
from llmft_cli.base.reporter import Silent
from llmft_cli.run_dir import checkpoints, ledger, stages
from llmft_cli.run_dir.run import RunDir, newest
from llmft_cli.run_dir.stages import stage as run_stage

USE_AS_IT_IS = "; or use it as it is: train, merge, eval and chat take --allow-stale"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "runs" / "x")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    return file


def do(run: RunDir, stage: str, output: str, inputs: dict[str, str] | None = None, **options: Any) -> None:
    """Run a stage that writes one directory."""
    with run_stage(run, stage, options.pop("settings", {"seed": 1}), inputs or {}, options.pop("overwrite", False)) as record:
        with replacing_directory(run.path / output) as folder:
            (folder / "file.txt").write_text(options.get("content", stage))
        record.outputs.append(output)


def prepare(run: RunDir, source: Path) -> None:
    do(run, "prepare", "data", {str(source): hash_path(source)})


def train(run: RunDir) -> None:
    do(run, "train", "adapter", {"data": hash_path(run.data)})


def complaint_of(action: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(StageError) as caught:
        action()
    return caught.value.message, caught.value.hint


def entries_of(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def set_status(run: RunDir, stage: str, status: str) -> None:
    ledger = run.ledger()
    ledger["stages"][stage]["status"] = status
    run.ledger_file.write_text(json.dumps(ledger))


# -- files that appear complete or not at all


def test_write_atomically_replaces_the_content(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    write_atomically(file, "old")
    write_atomically(file, "new \u00e9")
    assert file.read_text(encoding="utf-8") == "new \u00e9"
    assert entries_of(tmp_path) == ["run.json"]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.json"
    write_atomically(file, "old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert entries_of(tmp_path) == ["run.json"]


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "data"
    with replacing_directory(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    with replacing_directory(target) as folder:
        (folder / "b").write_text("2")
        assert entries_of(target) == ["a"]
    assert entries_of(target) == ["b"]
    assert entries_of(target.parent) == ["data"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_directory_stays_as_it_was_when_filling_fails(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "data"
    with replacing_directory(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(error), replacing_directory(target) as folder:  # noqa: PT012
        (folder / "b").write_text("2")
        raise error
    assert entries_of(tmp_path) == ["data"]
    assert entries_of(target) == ["a"]


def test_the_old_directory_comes_back_when_the_new_one_cannot_be_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "data"
    with replacing_directory(target) as folder:
        (folder / "a").write_text("1")
    rename = Path.rename

    def fail_for_the_new_one(self: Path, to: Path) -> Path:
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="No space left"), replacing_directory(target) as folder:
        (folder / "b").write_text("2")
    assert entries_of(tmp_path) == ["data"]
    assert entries_of(target) == ["a"]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from llmft_cli.base.files import replacing_directory\n"
        "with replacing_directory(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'part').write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    target = tmp_path / "merged[1]"
    (tmp_path / ".merged1.tmp-other").mkdir()
    assert subprocess.run([sys.executable, "-c", code, str(target)]).returncode == -9
    assert len(entries_of(tmp_path)) == 2
    with replacing_directory(target) as folder:
        (folder / "whole").write_text("1")
    assert entries_of(tmp_path) == [".merged1.tmp-other", "merged[1]"]


def test_the_hash_of_a_directory_covers_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_text("1")
    first = hash_path(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert hash_path(tmp_path / "b") == first
    (tmp_path / "b" / "one").rename(tmp_path / "b" / "two")
    assert hash_path(tmp_path / "b") != first
    (tmp_path / "a" / "one").write_text("2")
    assert hash_path(tmp_path / "a") != first


# -- the ledger during a stage


def test_a_stage_that_ends_well_is_done(run: RunDir, source: Path) -> None:
    with run_stage(run, "prepare", {"seed": 3, "model": "m"}, {str(source): "f00"}, overwrite=False) as record:
        running = run.entry("prepare")
        assert running is not None
        assert running["status"] == "running"
        run.data.mkdir()
        record.outputs.append("data")
        record.facts["rows"] = {"read": 2}
    entry = run.entry("prepare")
    assert entry is not None
    assert {key: entry[key] for key in ("status", "config", "inputs", "rows")} == {
        "status": "done",
        "config": {"seed": 3, "model": "m"},
        "inputs": {str(source): "f00"},
        "rows": {"read": 2},
    }
    assert entry["outputs"] == {"data": hash_path(run.data)}
    assert entry["started"] <= entry["finished"]
    assert run.ledger()["schema_version"] == ledger.SCHEMA_VERSION
    assert run.config_file.read_text() == "seed: 3\nmodel: m\n"
    assert run.saved_settings("prepare", "train") == {"seed": 3, "model": "m"}


def test_facts_that_were_saved_outlast_a_kill(run: RunDir, source: Path) -> None:
    """A killed training records no end, so what it needs to resume must already be in the ledger."""
    with run_stage(run, "prepare", {"seed": 1}, {str(source): "f00"}, overwrite=False) as record:
        record.facts["plan"] = {"batch_size": 2}
        assert "plan" not in (run.entry("prepare") or {})
        record.save_facts()
        entry = run.entry("prepare") or {}
        assert (entry["status"], entry["plan"]) == ("running", {"batch_size": 2})


def test_later_stages_win_among_saved_settings(run: RunDir) -> None:
    do(run, "prepare", "data", settings={"seed": 1, "format": "auto"})
    do(run, "train", "adapter", settings={"seed": 2})
    assert run.saved_settings("prepare", "train") == {"seed": 2, "format": "auto"}
    assert run.saved_settings("prepare") == {"seed": 1, "format": "auto"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), "failed"),
        (MachineError("disk"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (Interrupted("stopped"), "interrupted"),
    ],
)
def test_a_stage_that_breaks_off_says_how(run: RunDir, source: Path, error: BaseException, status: str) -> None:
    prepare(run, source)
    with pytest.raises(type(error)), run_stage(run, "train", {"seed": 1}, {}, overwrite=False) as record:  # noqa: PT012
        record.facts["model"] = {"name": "m"}
        raise error
    entry = run.entry("train")
    assert entry is not None
    assert (entry["status"], entry["model"]) == (status, {"name": "m"})
    assert run.is_done("prepare")


def test_a_new_run_that_came_to_nothing_leaves_nothing(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), run_stage(run, "prepare", {}, {}, overwrite=False):
        raise ValueError("x")
    assert entries_of(tmp_path) == []


def test_a_new_run_beside_others_leaves_them(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "y").mkdir()
    with pytest.raises(ValueError, match="x"), run_stage(run, "prepare", {}, {}, overwrite=False):
        raise ValueError("x")
    assert entries_of(tmp_path / "runs") == ["y"]


def test_a_directory_that_was_there_is_kept(run: RunDir) -> None:
    run.path.mkdir(parents=True)
    (run.path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="x"), run_stage(run, "prepare", {}, {}, overwrite=False):
        raise ValueError("x")
    assert (run.path / "notes.txt").read_text() == "mine"


def test_a_finished_stage_is_not_done_again_unasked(run: RunDir, source: Path) -> None:
    prepare(run, source)
    before = run.ledger_file.read_text()
    assert complaint_of(lambda: prepare(run, source)) == (
        f"{run.path}: prepare is already done",
        "to redo it, add --overwrite",
    )
    assert run.ledger_file.read_text() == before
    do(run, "prepare", "data", overwrite=True, content="again")
    assert (run.data / "file.txt").read_text() == "again"


def test_a_failed_overwrite_keeps_the_old_result_where_it_is_untouched(run: RunDir, source: Path) -> None:
    prepare(run, source)
    before = run.entry("prepare")
    with pytest.raises(ValueError, match="x"), run_stage(run, "prepare", {"seed": 9}, {}, overwrite=True):
        raise ValueError("x")
    assert run.entry("prepare") == before
    assert run.require("prepare") == before


@pytest.mark.parametrize("harm", ["change", "remove"])
def test_a_failed_overwrite_that_touched_the_old_result_has_failed(run: RunDir, source: Path, harm: str) -> None:
    prepare(run, source)
    with pytest.raises(ValueError, match="x"), run_stage(run, "prepare", {"seed": 9}, {}, overwrite=True):  # noqa: PT012
        if harm == "change":
            (run.data / "file.txt").write_text("half")
        else:
            shutil.rmtree(run.data)
        raise ValueError("x")
    entry = run.entry("prepare")
    assert entry is not None
    assert entry["status"] == "failed"


def test_an_interrupted_overwrite_that_has_begun_is_interrupted(run: RunDir, source: Path) -> None:
    prepare(run, source)
    train(run)
    with pytest.raises(Interrupted), run_stage(run, "train", {}, {}, overwrite=True) as record:  # noqa: PT012
        record.begin()
        raise Interrupted("stopped")
    entry = run.entry("train")
    assert entry is not None
    assert entry["status"] == "interrupted"


def test_a_failed_start_keeps_what_an_interrupted_training_can_be_resumed_from(run: RunDir, source: Path) -> None:
    """A misspelt setting with --overwrite used to cost the hours before it."""
    prepare(run, source)
    train(run)
    set_status(run, "train", "interrupted")
    before = run.entry("train")
    with pytest.raises(ValueError, match="x"), run_stage(run, "train", {"lora_r": 7}, {}, overwrite=True):
        raise ValueError("x")
    assert run.entry("train") == before


KILLED = """
import os, pathlib, signal, sys
from llmft_cli.run_dir.run import RunDir
from llmft_cli.run_dir.stages import stage
with stage(RunDir(pathlib.Path(sys.argv[1])), "train", {"seed": 9}, {}, overwrite=True) as record:
    if sys.argv[2] == "begun":
        record.begin()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_overwrite_that_was_killed_before_it_began_leaves_the_stage_done(run: RunDir, source: Path) -> None:
    prepare(run, source)
    train(run)
    before, settings = run.require("train"), run.saved_settings("train")
    subprocess.run([sys.executable, "-c", KILLED, str(run.path), "not begun"], check=False)
    assert run.ledger()["stages"]["train"]["status"] == "running"
    assert run.require("train") == before
    assert run.saved_settings("train") == settings
    assert complaint_of(lambda: train(run))[0] == f"{run.path}: train is already done"


def test_an_overwrite_that_was_killed_after_it_began_is_killed(run: RunDir, source: Path) -> None:
    prepare(run, source)
    train(run)
    subprocess.run([sys.executable, "-c", KILLED, str(run.path), "begun"], check=False)
    assert complaint_of(lambda: run.require("train"))[0] == f"{run.path}: the stage train has not finished (killed)"


KILLED_WITH_NEW_OUTPUTS = """
import os, pathlib, signal, sys
from llmft_cli.run_dir import stages
from llmft_cli.run_dir.run import RunDir
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
with stages.stage(RunDir(pathlib.Path(sys.argv[1])), "prepare", {"seed": 9}, {}, overwrite=True) as record:
    with record.replacing("data") as data, record.replacing("tokenizer") as tokenizer:
        (data / "file.txt").write_text("new")
        (tokenizer / "file.txt").write_text("new")
    if sys.argv[2] == "before the ledger":
        kill()
    stages.remove_leftovers = lambda folder: kill()
"""


def prepare_both(run: RunDir, source: Path) -> dict[str, Any]:
    """A stage with two outputs."""
    with run_stage(run, "prepare", {"seed": 1}, {str(source): hash_path(source)}, overwrite=False) as record:
        for output in ("data", "tokenizer"):
            with record.replacing(output) as folder:
                (folder / "file.txt").write_text("old")
    return run.require("prepare")


def contents(run: RunDir) -> list[str]:
    return [(folder / "file.txt").read_text() for folder in (run.data, run.tokenizer)]


@pytest.mark.parametrize("next_command", ["reads", "writes"])
def test_what_a_killed_overwrite_replaced_before_its_end_was_recorded_is_put_back(
    run: RunDir, source: Path, next_command: str
) -> None:
    """Data of one prepare with the tokenizer or the ledger entry of another made a trained run useless."""
    before = prepare_both(run, source)
    train(run)
    code = [sys.executable, "-c", KILLED_WITH_NEW_OUTPUTS, str(run.path), "before the ledger"]
    assert subprocess.run(code, check=False).returncode == -9
    assert contents(run) == ["new", "new"]
    if next_command == "writes":
        do(run, "merge", "merged")
        assert [name for name in entries_of(run.path) if name.startswith(".")] == [".lock"]
        assert run.ledger()["stages"]["prepare"] == before
    assert run.require("train")
    assert run.require("prepare") == before
    assert contents(run) == ["old", "old"]


def test_killed_after_its_end_was_recorded_an_overwrite_is_done(run: RunDir, source: Path) -> None:
    prepare_both(run, source)
    code = [sys.executable, "-c", KILLED_WITH_NEW_OUTPUTS, str(run.path), "after the ledger"]
    assert subprocess.run(code, check=False).returncode == -9
    assert run.require("prepare")["config"] == {"seed": 9}
    do(run, "merge", "merged")
    assert contents(run) == ["new", "new"]
    assert [name for name in entries_of(run.path) if name.startswith(".")] == [".lock"]


def test_what_a_failed_overwrite_has_replaced_is_put_back(run: RunDir, source: Path) -> None:
    before = prepare_both(run, source)
    with pytest.raises(KeyboardInterrupt), run_stage(run, "prepare", {"seed": 9}, {}, overwrite=True) as record:  # noqa: PT012
        with record.replacing("data") as data:
            (data / "file.txt").write_text("new")
        raise KeyboardInterrupt
    assert run.require("prepare") == before
    assert contents(run) == ["old", "old"]


def test_files_that_killed_commands_left_half_written_are_deleted_by_the_next(run: RunDir, source: Path) -> None:
    prepare(run, source)
    (run.path / "eval").mkdir()
    for name in (".run.json.tmp-abc", ".metrics.jsonl.tmp-abc", "eval/.held-out.tmp-abc", ".mine"):
        (run.path / name).write_text("half")
    train(run)
    assert [name for name in entries_of(run.path) if name.startswith(".")] == [".lock", ".mine"]
    assert entries_of(run.path / "eval") == []


def test_resuming_keeps_what_the_ledger_knows_until_it_is_known_again(run: RunDir, source: Path) -> None:
    prepare(run, source)
    train(run)
    set_status(run, "train", "interrupted")
    ledger = run.ledger()
    ledger["stages"]["train"]["training"] = {"id": "a"}
    run.ledger_file.write_text(json.dumps(ledger))
    with run_stage(run, "train", {"seed": 5}, {}, overwrite=False, resume=True):
        entry = run.ledger()["stages"]["train"]
        assert (entry["status"], entry["training"], entry["config"]) == ("running", {"id": "a"}, {"seed": 5})


# -- errors for a command that needs a stage


def test_require_of_what_is_no_run(run: RunDir, tmp_path: Path) -> None:
    hint = "create one with: llmft prepare DATA --run RUN"
    assert complaint_of(lambda: run.require("prepare")) == (f"{run.path} is not a run (it has no run.json)", hint)
    file = tmp_path / "file"
    file.write_text("")
    assert complaint_of(lambda: RunDir(file).require("prepare")) == (f"{file} is not a run (it has no run.json)", hint)


def test_require_of_a_stage_that_was_not_run(run: RunDir, source: Path) -> None:
    prepare(run, source)
    message = f"{run.path}: the stage train has not been run"
    assert complaint_of(lambda: run.require("train")) == (message, f"run first: llmft train {run.path}")


def test_hints_can_be_pasted_into_a_shell(tmp_path: Path, source: Path) -> None:
    run = RunDir(tmp_path / "my run")
    prepare(run, source)
    assert complaint_of(lambda: run.require("train"))[1] == f"run first: llmft train '{run.path}'"


@pytest.mark.parametrize(("status", "word"), [("failed", "failed"), ("interrupted", "interrupted"), ("running", "killed")])
def test_require_of_a_stage_that_broke_off(run: RunDir, source: Path, status: str, word: str) -> None:
    prepare(run, source)
    train(run)
    set_status(run, "train", status)
    message = f"{run.path}: the stage train has not finished ({word})"
    assert complaint_of(lambda: run.require("train")) == (message, f"run first: llmft train {run.path}")
    (run.checkpoints / "checkpoint-4").mkdir(parents=True)
    checkpoints.seal(run.checkpoints / "checkpoint-4", {"id": "another"}, None)
    assert complaint_of(lambda: run.require("train")) == (message, f"run first: llmft train {run.path}")
    checkpoints.seal(run.checkpoints / "checkpoint-4", {"id": "this"}, None)
    ledger = run.ledger()
    ledger["stages"]["train"]["training"] = {"id": "this"}
    run.ledger_file.write_text(json.dumps(ledger))
    assert complaint_of(lambda: run.require("train")) == (message, f"run first: llmft train {run.path} --resume")
    set_status(run, "prepare", status)
    assert complaint_of(lambda: run.require("prepare"))[1] == f"run first: llmft prepare DATA --run {run.path}"


def test_require_of_a_stage_that_is_being_run(run: RunDir, source: Path) -> None:
    prepare(run, source)
    with run_stage(run, "train", {}, {}, overwrite=False):
        assert complaint_of(lambda: run.require("train")) == (
            f"{run.path}: the stage train is still running",
            "wait for it to finish",
        )


def test_require_of_outputs_that_are_gone(run: RunDir, source: Path) -> None:
    prepare(run, source)
    shutil.rmtree(run.data)
    assert complaint_of(lambda: run.require("prepare")) == (
        f"{run.data} is missing",
        f"recreate it: llmft prepare DATA --run {run.path} --overwrite",
    )


def test_require_of_outputs_that_changed(run: RunDir, source: Path) -> None:
    prepare(run, source)
    train(run)
    (run.adapter / "file.txt").write_text("other")
    again = f"recreate it: llmft train {run.path} --overwrite" + USE_AS_IT_IS
    assert complaint_of(lambda: run.require("train")) == (
        f"{run.path}: the stage train is stale: adapter has changed since",
        again,
    )
    assert run.require("train", allow_stale=True)["status"] == "done"


def test_require_of_a_stage_whose_source_changed(run: RunDir, source: Path) -> None:
    prepare(run, source)
    train(run)
    source.write_text("{}\n{}\n")
    again = f"recreate it: llmft prepare DATA --run {run.path} --overwrite" + USE_AS_IT_IS
    stale = (f"{run.path}: the stage prepare is stale: {source} has changed since", again)
    assert complaint_of(lambda: run.require("prepare")) == stale
    assert complaint_of(lambda: run.require("train")) == stale
    assert run.require("train", allow_stale=True)["status"] == "done"


def test_require_of_a_stage_whose_stage_before_was_done_again(run: RunDir, source: Path) -> None:
    prepare(run, source)
    train(run)
    do(run, "prepare", "data", overwrite=True, content="other rows")
    assert complaint_of(lambda: run.require("train"))[0] == f"{run.path}: the stage train is stale: data has changed since"


def test_a_run_that_was_moved_without_its_sources_is_not_stale(run: RunDir, source: Path, tmp_path: Path) -> None:
    prepare(run, source)
    train(run)
    source.unlink()
    moved = RunDir(tmp_path / "elsewhere")
    run.path.rename(moved.path)
    assert moved.require("train")["status"] == "done"


# -- damaged and foreign ledgers


@pytest.mark.parametrize("text", ["", "{", "\ufeff{}", '{"stages": '])
def test_a_damaged_ledger(run: RunDir, text: str) -> None:
    run.path.mkdir(parents=True)
    run.ledger_file.write_text(text)
    message, hint = complaint_of(run.ledger)
    assert message.startswith(f"{run.ledger_file} cannot be read: ")
    assert hint == "restore it from a backup, or create a new run"


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema_version": 1, "stages": []}', '{"schema_version": "1", "stages": {}}'])
def test_a_ledger_of_something_else(run: RunDir, text: str) -> None:
    run.path.mkdir(parents=True)
    run.ledger_file.write_text(text)
    assert complaint_of(run.ledger) == (
        f"{run.ledger_file} is not an llmft ledger",
        "restore it from a backup, or create a new run",
    )


DONE = {"status": "done", "config": {"seed": 1}, "inputs": {}, "outputs": {"data": "f00"}}
ENTRIES = [
    ([], "[] is not an object"),
    ({}, "`status` is missing or of the wrong type"),
    ({**DONE, "status": "finished"}, "`status` is 'finished'"),
    ({**DONE, "config": ["seed"]}, "`config` is missing or of the wrong type"),
    ({**DONE, "inputs": None}, "`inputs` is missing or of the wrong type"),
    ({**DONE, "inputs": {"a": 1}}, "`inputs` must hold hashes"),
    ({"status": "done", "config": {}, "inputs": {}}, "`outputs` is missing or of the wrong type"),
    ({"status": "failed", "config": {}, "inputs": {}, "outputs": []}, "in `outputs`, [] is not an object"),
    ({**DONE, "model": {"name": 1, "revision": None}}, "in `model`, `name` is missing or of the wrong type"),
    ({**DONE, "plan": "fast"}, "in `plan`, 'fast' is not an object"),
    ({**DONE, "previous": {"status": "done"}}, "in `previous`, `config` is missing or of the wrong type"),
    ({**DONE, "config": {"seed": "one"}}, "in `config`, seed is 'one'"),
    ({**DONE, "config": {"learning_rate": -1.0}}, "in `config`, learning_rate is -1.0"),
    ({**DONE, "config": {"lora_r": True}}, "in `config`, lora_r is True"),
    ({**DONE, "config": {"model": None}}, "in `config`, model is None"),
]


@pytest.mark.parametrize(("entry", "fault"), ENTRIES)
def test_a_ledger_with_a_damaged_entry(run: RunDir, entry: Any, fault: str) -> None:
    run.path.mkdir(parents=True)
    run.ledger_file.write_text(json.dumps({"schema_version": 1, "stages": {"prepare": entry}}))
    told = f"{run.ledger_file} is damaged: in the entry of prepare, {fault}"
    assert complaint_of(run.ledger) == (told, "restore it from a backup, or create a new run")


@pytest.mark.parametrize(
    "more", [{}, {"config": {"setting_of_another_version": [1]}}, {"config": {"val_size": 1, "revision": None}}]
)
def test_a_ledger_with_what_other_versions_write(run: RunDir, more: dict[str, Any]) -> None:
    run.path.mkdir(parents=True)
    run.ledger_file.write_text(json.dumps({"schema_version": 1, "stages": {"prepare": {**DONE, "new": 1, **more}}}))
    assert run.is_done("prepare")


def test_a_ledger_nested_too_deeply_and_one_without_a_time(run: RunDir) -> None:
    run.path.mkdir(parents=True)
    run.ledger_file.write_text("[" * 100_000)
    assert complaint_of(run.ledger)[0].startswith(f"{run.ledger_file} cannot be read: ")
    run.ledger_file.write_text('{"schema_version": 1, "stages": {}, "updated": 1}')
    assert complaint_of(run.ledger)[0] == f"{run.ledger_file} is damaged: `updated` is not a time"


def test_a_ledger_of_a_newer_version(run: RunDir) -> None:
    run.path.mkdir(parents=True)
    run.ledger_file.write_text('{"schema_version": 2, "stages": {}}')
    message = f"{run.ledger_file} was written by a newer llmft (schema 2)"
    assert complaint_of(run.ledger) == (message, "upgrade llmft")


def test_a_file_in_the_place_of_the_run(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "below"):
        message = f"{path} cannot be a run directory: {file} is a file"
        assert complaint_of(lambda path=path: do(RunDir(path), "prepare", "data")) == (message, "choose another directory")  # type: ignore[misc]
    assert file.read_text() == "mine"


def test_names_that_are_not_utf8_can_be_recorded(run: RunDir, tmp_path: Path) -> None:
    file = os.fsdecode(os.fsencode(tmp_path) + b"/rows-\xff.jsonl")
    do(run, "prepare", "data", {file: "f00"})
    entry = run.entry("prepare")
    assert entry is not None
    assert entry["inputs"] == {file: "f00"}


# -- the lock

HOLDER = """
import pathlib, sys, time
from llmft_cli.run_dir.run import RunDir
from llmft_cli.run_dir.stages import stage as run_stage
with run_stage(RunDir(pathlib.Path(sys.argv[1])), "train", {}, {}, overwrite=False):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_writer_at_a_time_and_a_dead_one_holds_nothing(run: RunDir, source: Path) -> None:
    prepare(run, source)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        refused = (f"another llmft is writing to {run.path}", "wait for it to finish, or stop it")
        assert complaint_of(lambda: train(run)) == refused
        assert complaint_of(lambda: run.require("train"))[0] == f"{run.path}: the stage train is still running"
    finally:
        holder.kill()
        holder.communicate()
    assert complaint_of(lambda: run.require("train"))[0] == f"{run.path}: the stage train has not finished (killed)"
    train(run)
    assert run.is_done("train")


def test_a_refused_writer_does_not_take_the_run_away(run: RunDir) -> None:
    """Two processes may start on the same new run at the same time."""
    with run_stage(run, "prepare", {}, {}, overwrite=False) as record:
        assert complaint_of(lambda: train(run))[0] == f"another llmft is writing to {run.path}"
        run.data.mkdir()
        record.outputs.append("data")
    assert run.is_done("prepare")


# -- the newest run


def test_the_newest_run_is_the_one_whose_ledger_was_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(f"2025-01-01T00:00:{second:02}.000+00:00" for second in range(60))
    monkeypatch.setattr(stages, "now", lambda: next(times))
    for name in ("b", "a", "c"):
        do(RunDir(tmp_path / name), "prepare", "data")
    (tmp_path / "no-run").mkdir()
    os.utime(tmp_path / "b" / "run.json", (4e9, 4e9))
    assert newest(tmp_path).path.name == "c"
    train(RunDir(tmp_path / "a"))
    assert newest(tmp_path).path.name == "a"


def test_a_damaged_run_is_named_and_left_out(tmp_path: Path) -> None:
    """It broke every command without RUN."""
    do(RunDir(tmp_path / "whole"), "prepare", "data")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    told: list[str] = []

    class Told(Silent):
        def warn(self, message: str) -> None:
            told.append(message)

    assert newest(tmp_path, Told()).path.name == "whole"
    assert [line.partition(" cannot be read: ")[0] for line in told] == [f"left out: {tmp_path}/broken/run.json"]
    shutil.rmtree(tmp_path / "whole")
    assert complaint_of(lambda: newest(tmp_path))[0] == f"there is no run under {tmp_path}/"


def test_no_run_at_all(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "none"):
        message = f"there is no run under {root}/"
        assert complaint_of(lambda root=root: newest(root)) == (  # type: ignore[misc]
            message,
            "name one, or create one with: llmft prepare DATA",
        )
