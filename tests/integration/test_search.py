"""`train --search`: several recipes on one model, the best one kept; interrupted, resumed, refused."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from llmft_cli.run_dir.run import RunDir

from .conftest import Run, Started

Start = Callable[..., Started]
# Dropout, so that a training that pauses needs the random numbers that were next.
FLAGS = ("--num-epochs", 3, "--lora-dropout", 0.1)
SEARCH = (*FLAGS, "--search", 4)
MEASURED = ("tokens_per_second", "peak_memory_bytes")


def metrics(file: Path) -> list[dict]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


def trials(run: Path) -> list[dict]:
    """The trials of a search without what differs from process to process."""
    found = json.loads((run / "search/search.json").read_text())["trials"]
    return [{name: trial[name] for name in ("number", "recipe", "plan", "steps", "results", "failure")} for trial in found]


def weights(run: Path) -> bytes:
    return (run / "adapter/adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def searched(prepared_run: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run after a search, to be copied, and what `--json` printed."""
    folder = Path(shutil.copytree(prepared_run, tmp_path_factory.mktemp("searched") / "run"))
    done = run("train", "run", *SEARCH, "--json", folder=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.fixture(scope="module")
def plain(prepared_run: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, trained with the automatic recipe."""
    folder = Path(shutil.copytree(prepared_run, tmp_path_factory.mktemp("plain") / "run"))
    done = run("train", "run", *FLAGS, folder=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_best_recipe_is_kept_and_all_are_told(searched: tuple[Path, dict]) -> None:
    folder, result = searched
    found = result["search"]
    assert found["metric"] == "eval_loss"
    best, *others = found["recipes"]
    assert sorted(recipe["number"] for recipe in found["recipes"]) == [1, 2, 3, 4]
    assert (best["kept"], best["outcome"], best["steps_done"]) == (True, "kept", best["steps"])
    assert [recipe["outcome"] for recipe in others] == ["trained to the end", *["dropped after 1/2 of its steps"] * 2]
    assert 1 in [recipe["number"] for recipe in found["recipes"][:2]]
    assert best["eval_loss"] == result["eval_loss"] <= others[0]["eval_loss"]
    assert all(recipe["steps_done"] == -(-recipe["steps"] // 2) for recipe in others[1:])
    assert result["seconds"] > 0
    assert result["tokens_per_second"] > 0

    entry = RunDir(folder).require("train")
    assert entry["search"] == {"recipes": 4, "metric": "eval_loss"}
    assert entry["headline"]["search"] == found
    assert entry["recipe"]["learning_rate"]["reason"] == "the best of 4 in a search"
    assert entry["recipe"]["warmup_ratio"]["reason"] == "of the steps"
    used = {name: entry["config"][name] for name in best["settings"]}
    assert used == best["settings"]
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert {name: saved[name] for name in used} == used
    assert "search" not in saved


def test_the_automatic_recipe_gives_the_adapter_of_a_plain_training(searched: tuple[Path, dict], plain: Path) -> None:
    """Bit for bit, though it was paused, and others were trained on the same model in between."""
    folder, result = searched
    assert metrics(folder / "search/01/metrics.jsonl") == metrics(plain / "metrics.jsonl")
    assert result["search"]["recipes"][0]["number"] == 1  # it wins here
    assert weights(folder) == weights(plain)
    assert metrics(folder / "metrics.jsonl") == metrics(plain / "metrics.jsonl")
    kept, one = (RunDir(place).require("train")["headline"] for place in (folder, plain))
    for name in ("steps", "train_loss", "eval_loss", "best_step", "base_eval_loss"):
        assert kept[name] == pytest.approx(one[name], rel=1e-12), name
    assert {item.name for item in (folder / "checkpoints").iterdir()} == {
        item.name for item in (plain / "checkpoints").iterdir()
    }
    assert not list((folder / "search").rglob("checkpoint-*"))


def test_another_recipe_that_wins_is_what_its_settings_train(prepared_run: Path, run: Run, tmp_path: Path) -> None:
    folders = [shutil.copytree(prepared_run, tmp_path / name) for name in ("found", "again")]
    # With a rate that is far too low more steps are better, and the second recipe of this seed has more than twice as many.
    found = run("train", "found", "--learning-rate", 1e-4, "--seed", 11, "--search", 2, "--json", folder=tmp_path)
    assert found.returncode == 0, found.stderr
    best, automatic = json.loads(found.stdout)["search"]["recipes"]
    assert (best["number"], best["steps"], automatic["steps"]) == (2, 45, 20)
    again = run("train", "again", "--config", folders[0] / "config.yaml", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert weights(folders[0]) == weights(folders[1])
    assert RunDir(folders[0]).require("train")["config"] == RunDir(folders[1]).require("train")["config"]
    merged = run("merge", "found", "--json", folder=tmp_path)
    assert json.loads(merged.stdout)["verification"]["passed"] is True


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "recipe 1 of 4: training 3/"),
        (signal.SIGINT, "recipe 3 of 4: training 2/"),
        (signal.SIGTERM, "after 1/2 of the steps"),
        (signal.SIGKILL, "recipe 1 of 4: training 10/"),
    ],
)
def test_it_goes_on_where_it_was_interrupted(
    number: signal.Signals, moment: str, prepared_copy: Path, searched: tuple[Path, dict], start: Start, run: Run
) -> None:
    command = start("train", "run", *SEARCH, folder=prepared_copy.parent, halt_at=moment)
    command.wait_for_halt()
    command.interrupt(number)
    done = command.finish()
    assert "Traceback" not in done.stderr
    if number != signal.SIGKILL:
        assert done.returncode == 130
        assert done.stderr.splitlines()[-1].endswith("llmft train run --resume"), done.stderr

    refused = run("train", "run", *SEARCH, folder=prepared_copy.parent)
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "error: run: an earlier search has not ended",
        "hint: resume with: llmft train run --resume, or start over with --overwrite",
    ]
    resumed = run("train", "run", "--resume", folder=prepared_copy.parent)
    assert resumed.returncode == 0, resumed.stderr
    folder, result = searched
    assert trials(prepared_copy) == trials(folder)
    assert weights(prepared_copy) == weights(folder)
    assert RunDir(prepared_copy).require("train")["headline"]["search"] == result["search"]
    assert metrics(prepared_copy / "metrics.jsonl") == metrics(folder / "metrics.jsonl")
    dropped = [recipe["number"] for recipe in result["search"]["recipes"][2:]]
    if "after" in moment or "10/" in moment:  # what had reached the first rung was not trained again
        assert [number for number in dropped if f"recipe {number} of 4" in resumed.stderr] == []
    lines = [line for line in resumed.stdout.splitlines() if line.startswith(("Search", "1 (automatic)"))]
    assert lines[0] == "Search: 4 recipes, the best first"
    assert lines[1].endswith("kept")


def test_what_is_resumed_is_the_same_search(prepared_copy: Path, start: Start, run: Run) -> None:
    command = start("train", "run", *SEARCH, folder=prepared_copy.parent, halt_at="recipe 1 of 4: training 3/")
    command.wait_for_halt()
    command.interrupt()
    stopped = command.finish().stderr.splitlines()[-2]
    assert stopped in [f"error: recipe 1 stopped after step {step} of 15" for step in (3, 4)]
    entry = RunDir(prepared_copy).entry("train")
    assert entry is not None
    rate = entry["config"]["learning_rate"]
    for flags, message in (
        (("--search", 8), "--search was 4 before the interruption and is 8 now"),
        (("--search-metric", "exact_match"), "--search-metric was eval_loss before the interruption and is exact_match now"),
        (("--learning-rate", 1e-3), f"--learning-rate was {rate} before the interruption and is 0.001 now"),
    ):
        refused = run("train", "run", "--resume", *flags, folder=prepared_copy.parent)
        assert (refused.returncode, refused.stderr.splitlines()[0]) == (2, f"error: {message}")
    # Started over without a search, nothing of it is left.
    plain = run("train", "run", "--max-steps", 2, "--overwrite", folder=prepared_copy.parent)
    assert plain.returncode == 0, plain.stderr
    assert not (prepared_copy / "search").exists()
    assert "search" not in RunDir(prepared_copy).require("train")


def test_by_exact_match(prepared_copy: Path, run: Run) -> None:
    flags = ("--max-steps", 4, "--search", 2, "--search-metric", "exact_match", "--json")
    done = run("train", "run", *flags, folder=prepared_copy.parent)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["search"]
    assert found["metric"] == "exact_match"
    assert [recipe["exact_match"] for recipe in found["recipes"]] == [0.0, 0.0]  # so the loss decides
    assert found["recipes"][0]["eval_loss"] <= found["recipes"][1]["eval_loss"]


def test_where_all_recipes_diverge_there_is_no_adapter(prepared_copy: Path, run: Run) -> None:
    """Weight decay that multiplies the weights by a million at each step."""
    flags = ("--weight-decay", 2e9, "--max-grad-norm", 0, "--compute-dtype", "fp32", "--num-epochs", 2, "--search", 2)
    done = run("train", "run", *flags, folder=prepared_copy.parent)
    assert (done.returncode, done.stdout) == (6, "")
    left_out = [line for line in done.stderr.splitlines() if line.startswith("warning: recipe ")]
    assert [line[: line.index("the ")] for line in left_out] == [f"warning: recipe {number} is left out: " for number in (1, 2)]
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("error: none of the recipes could be trained: the ")
    assert hint == "hint: start over with a lower --learning-rate and --overwrite"
    assert not (prepared_copy / "adapter").exists()
    again = run("train", "run", "--max-steps", 2, folder=prepared_copy.parent)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        (
            ("--search", 1),
            ["error: Invalid value for '--search': Input should be greater than or equal to 2", "hint: see llmft train --help"],
        ),
        (
            ("--search", 4, "--profile"),
            ["error: --search and --profile cannot be combined", "hint: remove --search or --profile"],
        ),
        (
            ("--search", 4, "--from-adapter", "other"),
            ["error: --search and --from-adapter cannot be combined", "hint: remove --search or --from-adapter"],
        ),
        (
            ("--search", 4, "--search-metric", "bleu"),
            ["error: --search-metric is bleu", "hint: it must be one of eval_loss, exact_match"],
        ),
        (
            ("--search-metric", "exact_match"),
            ["error: --search-metric without --search", "hint: add --search 8, or omit --search-metric"],
        ),
        (
            ("--search", 4, "--report-to", "tensorboard"),
            [
                "error: --search does not report to trackers, and --report-to is tensorboard",
                "hint: omit --report-to; the figures of each recipe will be in RUN/search",
            ],
        ),
    ],
)
def test_what_makes_no_sense_is_refused(flags: tuple, lines: list[str], prepared_copy: Path, run: Run) -> None:
    refused = run("train", "run", *flags, folder=prepared_copy.parent)
    assert (refused.returncode, refused.stderr.splitlines()) == (2, lines)
    assert RunDir(prepared_copy).entry("train") is None


def test_without_held_out_rows_it_is_refused(tiny_data: Path, tiny_model_dir: Path, run: Run, tmp_path: Path) -> None:
    flags = ("--model", tiny_model_dir, "--max-seq-length", 64, "--val-size", 0)
    rows = tiny_data / "rows.jsonl"
    refused = run("train", "run", "--data", rows, *flags, "--search", 4, folder=tmp_path)
    lines = ["error: --search needs held-out rows, but --val-size is 0"]
    assert (refused.returncode, refused.stderr.splitlines()[:1]) == (2, lines)
    assert not (tmp_path / "run").exists()
    (tmp_path / "one.jsonl").write_text(rows.read_text().splitlines()[0] + "\n")
    # A single row; and rows none of which are to be held out, where the hint was a flag that train does not have for a run.
    for name, data, its_flags in (("one", "one.jsonl", flags[:4]), ("none", rows, flags)):
        prepared = run("prepare", data, "--run", name, *its_flags, folder=tmp_path)
        assert prepared.returncode == 0, prepared.stderr
        refused = run("train", name, "--search", 4, folder=tmp_path)
        assert (refused.returncode, refused.stderr.splitlines()) == (
            2,
            [
                f"error: {name} has no held-out rows to compare recipes on",
                f"hint: prepare it again with some: llmft prepare DATA --run {name} --val-size 10% --overwrite",
            ],
        )
