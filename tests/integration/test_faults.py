"""Every file that a command reads, damaged in every way: one error with a documented exit code, and nothing of value lost.

The files are those of a finished run, of a model, and of what is given to commands. By default each file has some of the
faults, each before another command; with LLMFT_ALL_FAULTS=1 all of them before every command, which takes hours:

    LLMFT_ALL_FAULTS=1 python -m pytest tests/integration/test_faults.py
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

from llmft_cli.run_dir.artifacts import NOT_RECREATED, WRITTEN_BY

from .conftest import Run
from .faults import FAULTS, check_outcome, contents, flipped, replaced_by, unreadable

pytestmark = pytest.mark.slow
EVERY = 3  # of the faults, a file of a run has one in so many
ALL = os.environ.get("LLMFT_ALL_FAULTS") == "1"
FEW_STEPS = [
    "--batch-size",
    1,
    "--gradient-accumulation-steps",
    2,
    "--max-steps",
    4,
    "--eval-steps",
    2,
    "--save-total-limit",
    1,
]
PREPARE = ["prepare", "rows.jsonl", "--run", "run", "--model", "model", "--max-seq-length", 64, "--val-size", 4]
SHORT = ["--max-new-tokens", 4]
COMMANDS = {
    "prepare": [*PREPARE, "--preview", 2],
    "prepare anew": [*PREPARE, "--overwrite"],
    "train": ["train", "run", *FEW_STEPS, "--overwrite"],
    "merge": ["merge", "run", "--overwrite"],
    "eval": ["eval", "run", "--overwrite", *SHORT],
    "chat": ["chat", "run", "--prompt", "hi", *SHORT],
    "gpu-check": ["gpu-check", "--run", "run", "--vram", "8GiB"],
}
COMMANDS |= {f"{name}, stale": [*COMMANDS[name], "--allow-stale"] for name in ("train", "merge", "eval", "chat")}
# What a command may take away before it succeeds, in a run: the results of an earlier training are forgotten at its start.
FORGOTTEN = {"train": ["checkpoints", "metrics.jsonl", "loss.svg"]}
LEDGER = ["run.json", "config.yaml", ".lock"]


@pytest.fixture(scope="session")
def finished(run: Run, tiny_data: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, prompts, a model, and a run `run` through all commands."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_model_dir, folder / "model")
    shutil.copy(tiny_data / "rows.jsonl", folder)
    commands = [PREPARE, [*COMMANDS["train"], "--learning-rate", 3e-3], ["merge", "run"], ["eval", "run", *SHORT]]
    for command in commands:
        done = run(*command, folder=folder)
        assert done.returncode == 0, done.stderr
    assert run("chat", "run", *SHORT, folder=folder, stdin="hi\n/save talk\n").returncode == 0
    return folder


def test_every_file_of_a_run_is_in_the_table_of_artifacts(finished: Path) -> None:
    names = {Path(name).parts[0] for name in contents(finished / "run")}
    assert names - set(WRITTEN_BY) - set(NOT_RECREATED) == {".lock"}
    assert {"data", "tokenizer", "checkpoints", "adapter", "merged", "eval", "chat", "run.json"} <= names


def check_command(
    name: str, run: Run, place: Path, original: Path, damage: Callable[[Path], None], file: str, *more: object
) -> subprocess.CompletedProcess[str]:
    """Damage a file in a copy of a folder, run a command there, and check how it ends and what it leaves."""
    replaced_by(place, original)
    damage(place / file)
    told = f"{name} with {file} {damage.__name__}"
    stage = name.partition(",")[0].partition(" ")[0]
    may_go = [*LEDGER, *FORGOTTEN.get(stage, []), Path(file).name]
    done = run(*COMMANDS[name], *more, folder=place, unprivileged=damage is unreadable)
    if damage is unreadable and (place / file).exists():
        (place / file).chmod(0o644)
    check_outcome(done, told)
    if done.returncode:
        before, after = contents(original, may_go), contents(place, may_go)
        assert {name: content for name, content in before.items() if after.get(name) != content} == {}, told
    return done


def collected(checks: Iterable[Callable[[], object]]) -> list[str]:
    """What fails of the checks."""
    failures = []
    for check in checks:
        try:
            check()
        except AssertionError as failure:
            failures.append(str(failure).partition("\nassert")[0])
    return failures


def turn_of(fault: Callable[[Path], None], commands: Iterable[str]) -> Iterator[str]:
    """The commands over and over, from another one for each fault, so that a file meets several."""
    return itertools.islice(itertools.cycle(commands), FAULTS.index(fault), None)


# -- a run's files


@pytest.mark.parametrize("command", COMMANDS if ALL else ["in turn"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_damaged_files_of_a_run(command: str, fault: Callable[[Path], None], finished: Path, run: Run, tmp_path: Path) -> None:
    turn = turn_of(fault, [command] if ALL else COMMANDS)
    files = list(contents(finished / "run", [".lock"]))
    files = files if ALL else files[FAULTS.index(fault) % EVERY :: EVERY]
    checks = [partial(check_command, next(turn), run, tmp_path / "copy", finished, fault, f"run/{file}") for file in files]
    assert (failures := collected(checks)) == [], "\n\n".join(failures)


# -- a model's files


MODEL_COMMANDS = ["prepare anew", "train", "merge", "eval", "chat", "gpu-check"]


@pytest.fixture(scope="session")
def sharded(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`finished` with its model in shards, before anything is trained on them."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("sharded") / "folder"
    shutil.copytree(finished, folder)
    (folder / "model/model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(finished / "model").save_pretrained(folder / "model", max_shard_size="100KB")
    assert len(list((folder / "model").glob("*.safetensors"))) > 1
    return folder


@pytest.mark.parametrize("command", MODEL_COMMANDS if ALL else ["in turn"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_damaged_files_of_a_model(
    command: str, fault: Callable[[Path], None], finished: Path, run: Run, tmp_path: Path
) -> None:
    turn = turn_of(fault, [command] if ALL else MODEL_COMMANDS)
    checks = [
        partial(check_command, next(turn), run, tmp_path / "copy", finished, fault, f"model/{file}")
        for file in contents(finished / "model")
    ]
    assert (failures := collected(checks)) == [], "\n\n".join(failures)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_damaged_shards(fault: Callable[[Path], None], sharded: Path, run: Run, tmp_path: Path) -> None:
    """Every fault but a flipped bit, which may be in a weight, is told by name."""
    files = [file.name for file in sorted((sharded / "model").glob("model*"))]
    for file in (files[0], files[-1]):
        done = check_command("train", run, tmp_path / "copy", sharded, fault, f"model/{file}")
        if fault is not flipped:
            assert (done.returncode, f"model/{file}" in done.stderr) == (3, True), done.stderr


# -- what is given to commands

GIVEN = {
    "rows.jsonl": ("prepare anew", []),
    "prompts.jsonl": ("eval", ["--prompts", "prompts.jsonl"]),
    "prompts.txt": ("eval", ["--prompts", "prompts.txt"]),
    "settings.yaml": ("merge", ["--config", "settings.yaml"]),
    "template.jinja": ("prepare anew", ["--chat-template", "template.jinja"]),
    "plan.yaml": ("train", ["--plan", "plan.yaml"]),
}


@pytest.fixture(scope="session")
def given(finished: Path) -> Path:
    (finished / "prompts.jsonl").write_text('{"prompt": "What is 2 and 2?", "expected": "It is 4."}\n')
    (finished / "prompts.txt").write_text("What is 2 and 2?\n")
    (finished / "settings.yaml").write_text("seed: 3\nmax_new_tokens: 4\n")
    (finished / "template.jinja").write_text((finished / "run/tokenizer/chat_template.jinja").read_text())
    (finished / "plan.yaml").write_text(
        "batch_size: 1\ngradient_accumulation_steps: 2\ncheckpointed_layers: 0\noptim: adamw_torch\n"
    )
    return finished


@pytest.mark.parametrize("file", GIVEN)
def test_damaged_files_that_are_given_to_commands(file: str, given: Path, run: Run, tmp_path: Path) -> None:
    name, flags = GIVEN[file]
    whole = check_command(name, run, tmp_path / "copy", given, lambda path: None, file, *flags)
    assert whole.returncode == 0, whole.stderr
    checks = [partial(check_command, name, run, tmp_path / "copy", given, fault, file, *flags) for fault in FAULTS]
    assert (failures := collected(checks)) == [], "\n\n".join(failures)


# -- disks


@pytest.mark.parametrize("name", ["prepare anew", "train", "merge", "eval"])
@pytest.mark.parametrize("limit", ["bytes", "files"])
def test_a_disk_that_is_full_after_any_write(
    name: str, limit: str, finished: Path, run: Run, mounted: Callable[..., Path]
) -> None:
    """With room for any number of blocks or files, the first that does not fit ends the command, and all is as it was."""
    stage = name.partition(" ")[0]
    disk = mounted("16m")
    shutil.copytree(finished, disk / "folder")
    taken = os.statvfs(disk)
    counts = itertools.count() if ALL else (0, 1, 2, 5, 11, 23, 47)
    for room in counts:
        replaced_by(disk / "folder", finished)
        used = taken.f_blocks - taken.f_bfree, taken.f_files - taken.f_ffree
        option = f"size={(used[0] + room) * taken.f_bsize}" if limit == "bytes" else f"nr_inodes={used[1] + room}"
        subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)
        done = run(*COMMANDS[name], folder=disk / "folder")
        subprocess.run(["mount", "-o", "remount,size=16m,nr_inodes=10000", str(disk)], check=True)
        check_outcome(done, f"{name} with room for {room} {limit}")
        if not done.returncode:
            break
        assert (done.returncode, "no space left on the disk" in done.stderr) == (3, True), done.stderr
        may_go = [*LEDGER, *FORGOTTEN.get(stage, [])]
        assert contents(disk / "folder", may_go) == contents(finished, may_go), f"{name} with room for {room} {limit}"
        assert json.loads((disk / "folder/run/run.json").read_text())["stages"].keys() >= {"prepare", "train", "merge"}
