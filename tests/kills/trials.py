"""Trials: a command is killed, perhaps again and again, until the user who follows its hints has what he asked for."""

from __future__ import annotations

import math
import random
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from commands import Ended, Moment, run_command
from lab import EVALUATION, RUN, SETTINGS, Lab, difference_of, difference_of_trainings, leftovers_of

from llmft_cli.base.errors import LlmftError
from llmft_cli.base.files import hash_path
from llmft_cli.run_dir.run import RunDir

MOST_KILLS, MOST_COMMANDS = 4, 14
AGAIN = 0.5  # the chance of a further kill
LARGEST_TORN = 200_000
EVALUATING = ("compute held-out loss", "compute a batch")
NUMBER = re.compile(r"\d+")


@dataclass
class Tally:
    """Attributes: counts of kills, by what they hit, and of how commands and trials ended; what went wrong."""

    kills: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    commands: int = 0
    trials: int = 0
    identical: int = 0
    failures: list[str] = field(default_factory=list)


class Failure(Exception):
    pass


@dataclass
class Trial:
    """One start, the commands from there, and how many of them were killed."""

    kind: str
    folder: Path
    rng: random.Random
    tally: Tally
    log: list[str] = field(default_factory=list)
    kills: int = 0

    @property
    def run(self) -> Path:
        return self.folder / RUN

    def do(self, *command: object, profile: Ended | None = None) -> Ended:
        """Run a command; with the profile of an uninterrupted one, it is killed at a random moment.

        Raises:
            Failure: it exits with 1, with a traceback or without a hint.
        """
        moment = random_moment(profile, self.rng) if profile else None
        ended = run_command(command, self.folder, moment)
        self.tally.commands += 1
        self.log.append(f"  llmft {' '.join(map(str, command))}  # {ended.code}, {moment}, {ended.events[-1:]}")
        if ended.was_killed:
            self.kills += 1
            self.tally.kills[f"{command[0]}: {self.kind}"] += 1
            self.tally.moments[how_killed(ended, moment)] += 1
        elif ended.was_stopped and moment is not None:
            self.tally.ways[f"{command[0]}: asked to stop"] += 1
        elif ended.code not in (0, 2) or "Traceback" in ended.text:
            raise Failure(f"exit {ended.code}: {ended.text[-3000:]}")
        elif ended.code == 2:
            error = ended.text.partition("error: ")[2]
            if "hint: " not in error:
                raise Failure(f"no hint: {ended.text}")
            self.tally.refusals[NUMBER.sub("N", error.splitlines()[0])] += 1
        return ended


def random_moment(profile: Ended, rng: random.Random) -> Moment:
    """A time, an event, or a file to tear; every name of an event is as likely as any other.

    One in ten is a signal that asks to stop, which leaves other states behind than a kill.
    """
    how = rng.choice(["time", "event", "event", "torn"])
    asked = rng.choice([signal.SIGINT, signal.SIGTERM]) if rng.random() < 0.1 else None
    if how == "time" and not asked:
        return Moment(seconds=rng.uniform(0, profile.seconds))
    focus = rng.choice(["anything", "anything", "the start", "checkpoints", "evaluations"])
    name = rng.choice(names_of(profile.events, focus))
    number = rng.randint(1, profile.events.count(name))
    if asked:
        return Moment(event=name, number=number, signal=asked)
    most_bytes = int(math.exp(rng.uniform(0, math.log(LARGEST_TORN)))) if how == "torn" else None
    return Moment(event=name, number=number, most_bytes=most_bytes)


def names_of(events: list[str], focus: str) -> list[str]:
    """The names of the events that the focus is on; all if it is on none."""
    # The start is short, and what it deletes may be the only result.
    first = next((number for number, event in enumerate(events) if event.startswith("compute")), len(events))
    chosen = {
        "anything": events,
        "the start": events[:first],
        "checkpoints": [event for event in events if "checkpoint-N" in event],
        "evaluations": [event for event in events if event in EVALUATING],
    }[focus]
    return sorted(set(chosen or events))


def how_killed(ended: Ended, moment: Moment | None) -> str:
    last = ended.events[-1] if ended.events else "start"
    if moment and moment.most_bytes is not None:
        return f"file torn after: {last}"
    return f"{'after' if moment and moment.seconds is not None else 'before'}: {last}"


def pursue(
    trial: Trial,
    original: Sequence[object],
    profile: Ended,
    after_kill: Callable[[Trial], None],
    resume: Sequence[object] | None = None,
) -> None:
    """Kill a command, and then run what its hints say, which may be killed, too, until it is done.

    Raises:
        Failure: there is no way to that.
    """
    command = list(original)
    refused: list[list[object]] = []
    for _ in range(MOST_COMMANDS):
        kill = trial.kills < MOST_KILLS and (not trial.kills or trial.rng.random() < AGAIN)
        ended = trial.do(*command, profile=profile if kill else None)
        if ended.was_killed or ended.was_stopped:
            after_kill(trial)
            refused = []
            command = list(resume or original)
        elif ended.code == 0:
            way = "not killed" if not trial.kills else "resumed" if command == resume else "begun again"
            trial.tally.ways[f"{original[0]}: {way}"] += 1
            return
        else:
            refused.append(command)
            choices = [list(original), [*original, "--overwrite"], list(resume or original)]
            command = next((choice for choice in choices if choice not in refused), [])
            if not command:
                raise Failure(f"every way is refused: {ended.text}")
    raise Failure("no end")


def is_finished(run: Path, stage: str) -> bool:
    """Whether a stage is done, with unchanged inputs and outputs."""
    try:
        return bool(RunDir(run).require(stage))
    except LlmftError:
        return False


# -- train


def train_starts(lab: Lab) -> dict[str, tuple[str, list[object]]]:
    """What is trained, by a name: the run before, and the command without settings of the training."""
    trained = lab.start("trained")
    assert trained is not None
    return {
        "new": ("prepared", ["train", RUN]),
        "--overwrite": ("trained", ["train", RUN, "--overwrite"]),
        "--continue": ("trained", ["train", RUN, "--continue"]),
        "--from-adapter": ("prepared", ["train", RUN, "--from-adapter", trained]),
        "--data": ("nothing", ["train", RUN, "--data", *lab.prepare("rows.jsonl")[1:2], *lab.prepare("rows.jsonl")[4:]]),
    }


def kill_train(lab: Lab, trial: Trial) -> None:
    start, command = train_starts(lab)[trial.kind]
    name = trial.rng.choice(sorted(SETTINGS))
    original = [*command, *SETTINGS[name]]
    reference = lab.reference(start, original)
    known = {hash_path(reference.run / "adapter")}
    if before := lab.start(start):
        known.add(hash_path(before / "adapter"))

    def after_kill(trial: Trial) -> None:
        finished = is_finished(trial.run, "train")
        if finished and hash_path(trial.run / "adapter") not in known:
            raise Failure("an adapter that nobody finished counts as finished")
        if trial.rng.random() < 0.3:
            said = trial.do("chat", RUN, "--prompt", "hi", "--max-new-tokens", 2)
            if (said.code == 0) != finished:
                raise Failure(f"chat: {said.text}")

    pursue(trial, original, reference.ended, after_kill, ["train", RUN, "--resume"])
    if difference := difference_of_trainings(trial.run, reference.run):
        raise Failure(difference)


# -- merge, eval, prepare


def kill_in_trained_run(lab: Lab, trial: Trial, command: list[object], stage: str, output: str) -> None:
    """A command on a trained run, whose output is new, or replaces that of another adapter."""
    done = {"merge": "merged", "eval": "evaluated"}[str(command[0])]
    anew = trial.kind == "--overwrite"
    start = f"{done}, then trained anew" if anew else "trained"
    original = [*command, "--overwrite"] if anew else command
    reference = lab.reference(start, original)
    known = [reference.run] + ([before] if anew and (before := lab.start(start)) else [])

    def after_kill(trial: Trial) -> None:
        if (trial.run / output).exists() and all(difference_of(output, trial.run, place) for place in known):
            raise Failure(f"a half-made {output}")
        if anew and not (trial.run / output).exists():
            trial.tally.ways[f"{output} was away for a moment"] += 1
        if not is_finished(trial.run, "train"):
            raise Failure("the adapter is no longer usable")

    pursue(trial, original, reference.ended, after_kill)
    if difference := difference_of(output, trial.run, reference.run):
        raise Failure(difference)
    entry = RunDir(trial.run).entry(stage)
    if entry is None or entry["status"] != "done" or RunDir(trial.run).lost_output(entry):
        raise Failure(f"{stage} does not count as finished: {entry}")


def kill_merge(lab: Lab, trial: Trial) -> None:
    kill_in_trained_run(lab, trial, ["merge", RUN], "merge", "merged")


def kill_eval(lab: Lab, trial: Trial) -> None:
    kill_in_trained_run(lab, trial, ["eval", RUN, *EVALUATION], "eval/held-out", "eval/held-out")


def kill_prepare(lab: Lab, trial: Trial) -> None:
    """New, or over a trained run, which is usable afterwards if its data is, and that says so otherwise."""
    start = "nothing" if trial.kind == "new" else "trained"
    rows = "other.jsonl" if trial.kind == "other rows --overwrite" else "rows.jsonl"
    original = [*lab.prepare(rows), *(() if start == "nothing" else ["--overwrite"])]
    reference = lab.reference(start, original)
    before = lab.start(start)

    def after_kill(trial: Trial) -> None:
        if before is None:
            if is_finished(trial.run, "prepare") and data_of(trial.run) != data_of(reference.run):
                raise Failure("half-made data counts as finished")
            return
        said = trial.do("chat", RUN, "--prompt", "hi", "--max-new-tokens", 2)
        if data_of(trial.run) == data_of(before) and said.code != 0:
            raise Failure(f"the trained run is not usable: {said.text}")
        if data_of(trial.run) not in (data_of(before), data_of(reference.run)):
            raise Failure("data of two prepares")
        if said.code == 2 and not is_finished(trial.run, "prepare"):
            raise Failure(f"neither the old data nor the new: {said.text}")

    pursue(trial, original, reference.ended, after_kill)
    if data_of(trial.run) != data_of(reference.run):
        raise Failure("other data")


def data_of(run: Path) -> tuple[str, str]:
    return hash_path(run / "data"), hash_path(run / "tokenizer")


KINDS: dict[str, tuple[Callable[[Lab, Trial], None], tuple[str, ...]]] = {
    "train": (kill_train, ("new", "--overwrite", "--continue", "--from-adapter", "--data")),
    "merge": (kill_merge, ("new", "--overwrite")),
    "eval": (kill_eval, ("new", "--overwrite")),
    "prepare": (kill_prepare, ("new", "same rows --overwrite", "other rows --overwrite")),
}


def attempt(lab: Lab, command: str, number: int, seed: int, tally: Tally) -> int:
    """One trial; returns the number of kills."""
    function, kinds = KINDS[command]
    kind = kinds[number % len(kinds)]
    trial = Trial(kind, lab.folder / "trial", random.Random(f"{seed}:{command}:{number}"), tally)
    start = {
        "train": lambda: train_starts(lab)[kind][0],
        "merge": lambda: "trained" if kind == "new" else "merged, then trained anew",
        "eval": lambda: "trained" if kind == "new" else "evaluated, then trained anew",
        "prepare": lambda: "nothing" if kind == "new" else "trained",
    }[command]()
    trial.folder.mkdir()
    if before := lab.start(start):
        shutil.copytree(before, trial.run)
    try:
        function(lab, trial)
        if left := leftovers_of(trial.run):
            raise Failure(f"left over: {left}")
        tally.identical += 1
    except Failure as failure:
        tally.failures.append("\n".join([f"{command} {kind} (trial {number}): {failure}", *trial.log]))
        print(f"FAILED {tally.failures[-1]}\n", flush=True)
    tally.trials += 1
    shutil.rmtree(trial.folder)
    return trial.kills
