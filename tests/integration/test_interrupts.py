"""Commands that are stopped halfway: 130, a line or two, nothing half-written, and the same command works afterwards."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llmft_cli.run_dir.checkpoints import SEAL_FILE
from llmft_cli.run_dir.run import RunDir

from .conftest import LLMFT, TRAIN_FLAGS, Run, Started, files_in

Start = Callable[..., Started]
INTERRUPTED = ["error: interrupted", "hint: finished work is saved"]
INTERRUPTED_JSON = {
    "ok": False,
    "error": {"kind": "interrupted", "message": "interrupted", "hint": "finished work is saved"},
}
MEASURED = ("tokens_per_second", "peak_memory_bytes")


def status(run: Path, stage: str) -> str:
    entry = RunDir(run).entry(stage)
    assert entry is not None
    return entry["status"]


def stopped(command: Started, number: signal.Signals = signal.SIGINT) -> subprocess.CompletedProcess[str]:
    command.interrupt(number)
    done = command.finish()
    assert "Traceback" not in done.stderr
    return done


def halted(start: Start, *arguments: object, folder: Path, at: str) -> Started:
    """A command that has stopped right after it wrote the text `at` to stderr."""
    command = start(*arguments, folder=folder, halt_at=at)
    command.wait_for_halt()
    return command


def halted_training(start: Start, run: Path, at: str) -> Started:
    return halted(start, "train", run.name, *TRAIN_FLAGS, folder=run.parent, at=at)


def resume(run_command: Run, run: Path) -> None:
    done = run_command("train", run.name, "--resume", folder=run.parent)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "Trained run"), done.stderr
    assert status(run, "train") == "done"


def check_same_training(run: Path, other: Path) -> None:
    """Bit for bit the same adapter, and the same figures at every step."""
    weights = "adapter/adapter_model.safetensors"
    assert (run / weights).read_bytes() == (other / weights).read_bytes()
    by_step = {row["step"]: row for row in metrics(run) if "loss" in row}
    assert [*by_step.values()] == [row for row in metrics(other) if "loss" in row]
    results = [RunDir(place).require("train")["headline"] for place in (run, other)]
    for name in ("steps", "train_loss", "eval_loss", "best_step"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-12), name


def metrics(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


# -- train


def test_train_while_the_model_is_loaded(prepared_copy: Path, run: Run) -> None:
    """The installed command itself, which spends seconds on imports here."""
    before = files_in(prepared_copy)
    command = [str(LLMFT), "train", "run", *map(str, TRAIN_FLAGS)]
    with subprocess.Popen(
        command, cwd=prepared_copy.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr.readline().startswith("loading ")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err.splitlines()) == (130, "", INTERRUPTED)
    assert files_in(prepared_copy) == before
    assert status(prepared_copy, "train") == "interrupted"
    refused = run("train", "run", "--resume", folder=prepared_copy.parent)
    lines = ["error: run has no checkpoint to resume from", "hint: start with: llmft train run"]
    assert (refused.returncode, refused.stderr.splitlines()) == (2, lines)
    assert run("train", "run", *TRAIN_FLAGS, folder=prepared_copy.parent).returncode == 0


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "training 1/"),
        (signal.SIGINT, "step 10:"),
        (signal.SIGTERM, "training 23/"),
        (signal.SIGHUP, "training 12/"),
    ],
)
def test_train_between_steps(
    number: signal.Signals, moment: str, prepared_copy: Path, trained_run: Path, start: Start, run: Run
) -> None:
    command = halted_training(start, prepared_copy, at=moment)
    done = stopped(command, number)
    checkpoint = max((prepared_copy / "checkpoints").iterdir(), key=lambda folder: int(folder.name.partition("-")[2]))
    step = int(checkpoint.name.partition("-")[2])
    assert 1 <= step < 40
    lines = [f"error: stopped after step {step} of 40", "hint: resume with: llmft train run --resume"]
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-2:]) == (130, "", lines)
    assert "warning: stopping after this step" in done.stderr
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == step
    assert metrics(prepared_copy)[-1]["step"] == step
    assert status(prepared_copy, "train") == "interrupted"
    assert not (prepared_copy / "adapter").exists()

    refused = run("train", "run", folder=prepared_copy.parent)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: run: an earlier training run stopped at step {step}\n"
        "hint: resume with: llmft train run --resume, or start over with --overwrite\n"
    )
    resume(run, prepared_copy)
    check_same_training(prepared_copy, trained_run)


def test_train_stopped_twice_and_resumed_elsewhere(
    prepared_copy: Path, trained_run: Path, start: Start, run: Run, tmp_path: Path
) -> None:
    command = start("train", "run", *TRAIN_FLAGS, "--json", folder=prepared_copy.parent)
    command.wait_until((prepared_copy / "checkpoints/checkpoint-10/trainer_state.json").exists)
    done = stopped(command)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["kind"], done.stderr.count("\n")) == (130, "interrupted", 1)
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(prepared_copy, moved)
    shutil.rmtree(prepared_copy)
    command = halted(start, "train", "run", "--resume", folder=moved.parent, at="step 30:")
    done = stopped(command, signal.SIGTERM)
    assert done.returncode == 130
    assert str(prepared_copy) not in (moved / "run.json").read_text()
    resume(run, moved)
    check_same_training(moved, trained_run)


def test_a_second_ctrl_c_ends_training_at_once(prepared_copy: Path, start: Start) -> None:
    command = start("train", "run", *TRAIN_FLAGS, "--gradient-accumulation-steps", 500, folder=prepared_copy.parent)
    command.wait_for("training 1/")
    command.interrupt()
    command.wait_for("stopping after this step")
    done = stopped(command)
    assert (done.returncode, done.stderr.splitlines()[-2:]) == (130, INTERRUPTED)
    assert status(prepared_copy, "train") == "interrupted"
    assert not list((prepared_copy / "checkpoints").glob("*"))


def test_a_closed_terminal_leaves_a_checkpoint(prepared_copy: Path, trained_run: Path, start: Start, run: Run) -> None:
    """It sends SIGHUP several times, from the shell and from the system: the later ones are no second Ctrl-C."""
    command = halted_training(start, prepared_copy, at="training 7/")
    for _ in range(3):
        command.interrupt(signal.SIGHUP)
    done = command.finish()
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "hint: resume with: llmft train run --resume"
    resume(run, prepared_copy)
    check_same_training(prepared_copy, trained_run)


def test_a_killed_training_resumes_from_its_last_complete_checkpoint(
    prepared_copy: Path, trained_run: Path, start: Start, run: Run
) -> None:
    command = halted_training(start, prepared_copy, at="training 15/")
    done = stopped(command, signal.SIGKILL)
    assert (done.returncode, status(prepared_copy, "train")) == (-9, "running")
    # As if it had been killed while it wrote a later one.
    torn = prepared_copy / "checkpoints/checkpoint-39"
    shutil.copytree(prepared_copy / "checkpoints/checkpoint-10", torn)
    (torn / "trainer_state.json").unlink()
    (torn / SEAL_FILE).unlink()

    refused = run("merge", "run", folder=prepared_copy.parent)
    hint = "hint: run first: llmft train run --resume"
    assert (refused.returncode, refused.stderr.splitlines()) == (
        2,
        ["error: run: the stage train has not finished (killed)", hint],
    )
    refused = run("train", "run", folder=prepared_copy.parent)
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (2, "error: run: an earlier training run stopped at step 10")
    resume(run, prepared_copy)
    assert not torn.exists()
    check_same_training(prepared_copy, trained_run)


def test_a_training_that_was_killed_early_starts_anew(prepared_copy: Path, trained_run: Path, start: Start, run: Run) -> None:
    command = halted_training(start, prepared_copy, at="training 2/")
    stopped(command, signal.SIGKILL)
    refused = run("chat", "run", "--prompt", "hi", folder=prepared_copy.parent)
    lines = ["error: run: the stage train has not finished (killed)", "hint: run first: llmft train run"]
    assert (refused.returncode, refused.stderr.splitlines()) == (2, lines)
    assert run("train", "run", *TRAIN_FLAGS, folder=prepared_copy.parent).returncode == 0
    check_same_training(prepared_copy, trained_run)


def test_two_writers(prepared_copy: Path, tiny_data: Path, tiny_model_dir: Path, start: Start, run: Run) -> None:
    rows = tiny_data / "rows.jsonl"
    command = halted_training(start, prepared_copy, at="training 1/")
    for arguments in (
        ["train", "run"],
        ["train", "run", "--overwrite"],
        ["prepare", rows, "--run", "run", "--model", tiny_model_dir, "--overwrite"],
    ):
        refused = run(*arguments, folder=prepared_copy.parent)
        lines = ["error: another llmft is writing to run", "hint: wait for it to finish, or stop it"]
        assert (refused.returncode, refused.stdout, refused.stderr.splitlines()) == (2, "", lines)
    refused = run("chat", "run", "--prompt", "hi", folder=prepared_copy.parent)
    lines = ["error: run: the stage train is still running", "hint: wait for it to finish"]
    assert (refused.returncode, refused.stdout, refused.stderr.splitlines()) == (2, "", lines)
    command.interrupt(signal.SIGCONT)
    assert command.finish().returncode == 0


# -- merge, eval, chat


@pytest.mark.parametrize(
    ("arguments", "moment", "number"),
    [
        ("merge run", "loading ", signal.SIGINT),
        ("merge run", "comparing ", signal.SIGINT),
        ("merge run", "comparing ", signal.SIGHUP),
        ("eval run --max-new-tokens 400", "loading ", signal.SIGINT),
        ("eval run --max-new-tokens 400", "answering ", signal.SIGINT),
        ("eval run --max-new-tokens 400", "answering ", signal.SIGTERM),
    ],
)
def test_merge_and_eval(
    arguments: str, moment: str, number: signal.Signals, trained_copy: Path, start: Start, run: Run
) -> None:
    before, trained = files_in(trained_copy), RunDir(trained_copy).entry("train")
    command = halted(start, *arguments.split(), folder=trained_copy.parent, at=moment)
    done = stopped(command, number)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-2:]) == (130, "", INTERRUPTED)
    assert files_in(trained_copy) - before <= {"eval"}
    assert not list((trained_copy / "eval").glob("*"))
    assert RunDir(trained_copy).require("train") == trained
    stage = "merge" if arguments.startswith("merge") else "eval/held-out"
    assert status(trained_copy, stage) == "interrupted"
    again = run(*arguments.split(), folder=trained_copy.parent)
    assert again.returncode == 0, again.stderr
    assert status(trained_copy, stage) == "done"


def test_merge_as_json(trained_copy: Path, start: Start) -> None:
    command = start("merge", "run", "--json", folder=trained_copy.parent)
    command.wait_until(lambda: bool(list(trained_copy.glob(".merged.tmp-*"))))
    done = stopped(command)
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (130, INTERRUPTED_JSON, "")
    assert not list(trained_copy.glob(".*.tmp-*"))


def test_an_interrupted_second_evaluation_leaves_the_first(trained_copy: Path, start: Start, run: Run) -> None:
    assert run("eval", "run", "--max-new-tokens", 4, folder=trained_copy.parent).returncode == 0
    before = RunDir(trained_copy).entry("eval/held-out")
    command = start("eval", "run", "--overwrite", "--max-new-tokens", 400, folder=trained_copy.parent)
    command.wait_for("answering ")
    assert stopped(command).returncode == 130
    assert RunDir(trained_copy).entry("eval/held-out") == before
    assert {path.name for path in (trained_copy / "eval").iterdir()} == {"held-out"}


@pytest.mark.parametrize("piped", [False, True])
def test_chat(piped: bool, trained_copy: Path, start: Start) -> None:
    """The base model, asked first with --compare, knows no end."""
    asked = [] if piped else ["--prompt", "hi"]
    flags = ["--compare", "--max-new-tokens", 450]
    command = start("chat", "run", *asked, *flags, folder=trained_copy.parent, stdin="hi\nand then?\n")
    before = files_in(trained_copy)
    command.wait_for("base: ")
    done = stopped(command)
    assert (done.returncode, done.stderr.splitlines()[-2:]) == (130, INTERRUPTED)
    assert "tuned: " not in done.stdout
    assert files_in(trained_copy) == before


def test_chat_as_json(trained_copy: Path, start: Start) -> None:
    command = start("chat", "run", "--prompt", "hi", "--compare", "--max-new-tokens", 450, "--json", folder=trained_copy.parent)
    command.wait_for_threads()
    done = stopped(command)
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (130, INTERRUPTED_JSON, "")
