"""What the trials start from and what they are compared with: runs that nothing interrupted."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_model
from commands import Ended, run_command, run_function

from llmft_cli.base.files import hash_path
from llmft_cli.run_dir.run import RunDir

RUN = "run"
EVERY_TWO = ("--eval-steps", 2, "--max-steps", 10, "--lora-dropout", 0.1, "--learning-rate", 5e-3, "--lora-r", 4)
ROWS = ("--batch-size", 2, "--gradient-accumulation-steps", 2, "--no-packing")
# Dropout, so that a resumed training needs the random numbers that were next.
SETTINGS: dict[str, tuple[object, ...]] = {
    "best of all checkpoints": (*EVERY_TWO, *ROWS),
    "the last step": (*EVERY_TWO, *ROWS, "--no-load-best-model-at-end", "--save-total-limit", 1),
    "batches by tokens": (*EVERY_TWO, "--tokens-per-batch", 200, "--no-packing", "--save-total-limit", 20),
    # The held-out loss falls, and then rises.
    "early stopping": (*("--eval-steps", 1, "--max-steps", 30, "--lora-r", 4, "--learning-rate", 0.2, "--lora-dropout", 0.1),
                       *("--lr-scheduler", "constant", "--max-grad-norm", 0, "--early-stopping-patience", 2), *ROWS),
}  # fmt: skip
FIRST = ("--max-steps", 4, "--eval-steps", 2, "--lora-r", 4, "--learning-rate", 3e-3, *ROWS)
EVALUATION = ("--max-new-tokens", 4)
# Of a line of metrics.jsonl: what depends on the clock.
MEASURED = ("tokens_per_second", "peak_memory_bytes")
FIGURES = ("steps", "train_loss", "eval_loss", "best_step")


@dataclass(frozen=True)
class Reference:
    """What a command leaves and how it got there, uninterrupted.

    Attributes:
        run: the run afterwards.
    """

    run: Path
    ended: Ended


class Lab:
    """A folder with a tiny model, rows, and runs, made when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._references: dict[str, Reference] = {}
        run_function(lambda: tiny_model.write(folder / "tiny"))
        write_rows(folder / "rows.jsonl", "It is")
        write_rows(folder / "other.jsonl", "That makes")

    def prepare(self, rows: str) -> list[object]:
        flags = ("--max-seq-length", 64, "--val-size", 4)
        return ["prepare", self.folder / rows, "--run", RUN, "--model", self.folder / "tiny", *flags]

    def start(self, name: str) -> Path | None:
        """The run that a trial starts with."""
        if name == "nothing":
            return None
        command: Sequence[object]
        before, command = {
            "prepared": ("nothing", self.prepare("rows.jsonl")),
            "trained": ("prepared", ["train", RUN, *FIRST]),
            "merged": ("trained", ["merge", RUN]),
            "evaluated": ("trained", ["eval", RUN, *EVALUATION]),
            "merged, then trained anew": ("merged", ["train", RUN, "--overwrite", *EVERY_TWO, *ROWS]),
            "evaluated, then trained anew": ("evaluated", ["train", RUN, "--overwrite", *EVERY_TWO, *ROWS]),
        }[name]
        return self.reference(before, command).run

    def reference(self, start: str, command: Sequence[object]) -> Reference:
        """What an uninterrupted command leaves that starts with the run of this name."""
        key = " ".join(map(str, [start, *command]))
        if key not in self._references:
            folder = self.folder / f"reference-{len(self._references)}"
            self._references[key] = Reference(folder, Ended(0, "", [], 0))  # takes the number
            folder.mkdir()
            if before := self.start(start):
                shutil.copytree(before, folder / RUN)
            ended = run_command(command, folder)
            assert ended.code == 0, ended.text
            self._references[key] = Reference(folder / RUN, ended)
        return self._references[key]


def write_rows(file: Path, words: str) -> None:
    rows = ((f"What is {number} and {number}?", f"{words} {2 * number}.") for number in range(40))
    conversations = ([{"role": "user", "content": one}, {"role": "assistant", "content": two}] for one, two in rows)
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))


# -- comparisons; each returns what differs


def difference_of_trainings(run: Path, expected: Path) -> str:
    """Adapter bit for bit, the figures at every step, those of the result, and what was set aside."""
    if hash_path(run / "adapter") != hash_path(expected / "adapter"):
        return "another adapter"
    if (one := steps_of(run)) != (other := steps_of(expected)):
        return f"other figures: {one} instead of {other}"
    results = [figures_of(place) for place in (run, expected)]
    if results[0] != results[1]:
        return f"another result: {results[0]} instead of {results[1]}"
    if hash_path(run / "earlier") != hash_path(expected / "earlier"):
        return f"set aside: {sorted((run / 'earlier').rglob('*'))}"
    stages = [sorted(RunDir(place).ledger()["stages"]) for place in (run, expected)]
    return "" if stages[0] == stages[1] else f"other stages in the ledger: {stages[0]}"


def steps_of(run: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


def figures_of(run: Path) -> list[float | None]:
    headline = RunDir(run).require("train")["headline"]
    return [value if value is None else round(value, 12) for value in map(headline.get, FIGURES)]


def difference_of(name: str, run: Path, expected: Path) -> str:
    """Whether a directory of a run is as expected, but for what depends on the clock."""
    return "" if hash_path(run / name) == hash_path(expected / name) else f"another {name}"


def leftovers_of(run: Path) -> list[str]:
    """What no command should leave in a run: temporary files, and incomplete checkpoints."""
    hidden = [path for path in run.rglob(".*") if path.name != ".lock"]
    unsealed = [path for path in run.glob("checkpoints/*") if not (path / "llmft_seal.json").exists()]
    return [str(path.relative_to(run)) for path in (*hidden, *unsealed)]
