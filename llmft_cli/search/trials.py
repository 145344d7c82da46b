"""The trials of a search, and their record on disk, `search.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from llmft_cli.base.errors import StageError
from llmft_cli.base.files import write_atomically
from llmft_cli.recipe.choices import Choice
from llmft_cli.run_dir.checkpoints import Identity
from llmft_cli.run_dir.run import RunDir
from llmft_cli.run_dir.training_files import TrainingFiles
from llmft_cli.search.candidates import VARIED
from llmft_cli.settings.config import Config

STATE_FILE = "search.json"
EVAL_LOSS, EXACT_MATCH = "eval_loss", "exact_match"
METRICS = (EVAL_LOSS, EXACT_MATCH)
AUTOMATIC = 1  # the number of the trial of the automatic recipe


@dataclass(frozen=True)
class Asked:
    """What the user asked for: how many recipes, and what they are compared by."""

    recipes: int
    metric: str = EVAL_LOSS


@dataclass(frozen=True)
class Result:
    """What a trial had reached at a rung.

    Attributes:
        share: of the trial's own steps; 1 at the last rung.
        step: the step after which it was measured.
        eval_loss: the lowest held-out loss so far; at the end, that of the adapter that is kept.
        exact_match: share of the held-out answers that were right; None if the recipes are not compared by it.
        ended: whether its training has ended, at its last step or by early stopping.
    """

    share: float
    step: int
    eval_loss: float
    exact_match: float | None = None
    ended: bool = False

    def standing(self, metric: str) -> tuple[float, ...]:
        """Sorts results, the best first."""
        return (self.eval_loss,) if metric == EVAL_LOSS else (-(self.exact_match or 0.0), self.eval_loss)


@dataclass(frozen=True)
class Trial:
    """A recipe, and how far its training has come.

    Attributes:
        recipe: values and reasons of the settings that nobody gave, by name.
        steps: of its whole schedule.
        results: one for each rung that it has reached.
        failure: what ended its training too early; None if nothing did.
        seconds: of training.
    """

    number: int
    recipe: Mapping[str, Choice]
    training: Identity
    plan: Mapping[str, Any]
    steps: int
    results: tuple[Result, ...] = ()
    failure: str | None = None
    seconds: float = 0.0
    tokens_per_second: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The values of the recipe."""
        return {name: choice.value for name, choice in self.recipe.items()}

    @property
    def varied(self) -> dict[str, Any]:
        """The values that differ between the trials."""
        return {name: value for name, value in self.settings.items() if name in VARIED}

    def config(self, config: Config) -> Config:
        return replace(config, **self.settings)


@dataclass
class Search:
    """A search and its trials, by number."""

    run: RunDir
    metric: str
    shares: Sequence[float]
    trials: dict[int, Trial] = field(default_factory=dict)

    def files_of(self, trial: Trial) -> TrainingFiles:
        return TrainingFiles(self.run.search / f"{trial.number:02}")

    def update(self, trial: Trial) -> None:
        """Replace the trial of this number, on disk too."""
        self.trials[trial.number] = trial
        self.save()

    def save(self) -> None:
        self.run.search.mkdir(exist_ok=True)
        trials = [
            {**asdict(trial), "recipe": {name: choice._asdict() for name, choice in trial.recipe.items()}}
            for trial in self.trials.values()
        ]
        content = {"metric": self.metric, "shares": list(self.shares), "trials": trials}
        write_atomically(self.run.search / STATE_FILE, json.dumps(content, indent=2) + "\n")


def read(run: RunDir, training: Identity) -> Search:
    """The search that this training is.

    Raises:
        StageError: its file is missing, damaged, or of another search.
    """
    file = run.search / STATE_FILE
    again = f"start over with: llmft train {run.path} --overwrite --search N"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        trials = [trial_of(item) for item in content["trials"]]
        found = Search(run, content["metric"], content["shares"], {trial.number: trial for trial in trials})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StageError(f"{file} is missing or damaged, so the search cannot be resumed", again) from error
    if any(trial.training["id"] != training["id"] for trial in trials):
        raise StageError(f"{file} is of another search than the one to resume", again)
    return found


def trial_of(item: Mapping[str, Any]) -> Trial:
    recipe = {name: Choice(**choice) for name, choice in item["recipe"].items()}
    return Trial(**{**item, "recipe": recipe, "results": tuple(Result(**result) for result in item["results"])})
