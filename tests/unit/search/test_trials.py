"""search.json: written whole, and read back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmft_cli.base.errors import StageError
from llmft_cli.recipe.choices import Choice
from llmft_cli.run_dir.run import RunDir
from llmft_cli.search.trials import Result, Search, Trial, read
from llmft_cli.settings.config import resolve

RECIPE = {"rows_per_step": Choice(8, "for few tokens"), "warmup_ratio": Choice(0.05, "of the steps")}
TRIAL = Trial(1, RECIPE, {"id": "one", "settings": "a"}, {"batch_size": 8}, 40)


def saved(folder: Path) -> Search:
    found = Search(RunDir(folder), "eval_loss", [0.5, 1.0], {1: TRIAL})
    found.save()
    return found


def test_a_search_is_read_as_it_was_saved(tmp_path: Path) -> None:
    found = saved(tmp_path)
    later = Trial(1, RECIPE, TRIAL.training, TRIAL.plan, 40, (Result(0.5, 20, 1.25, ended=True),), seconds=3.5)
    found.update(later)
    again = read(RunDir(tmp_path), {"id": "one"})
    assert again == found
    assert again.trials[1] == later
    assert again.files_of(later).checkpoints == tmp_path / "search/01/checkpoints"


def test_values_that_differ_and_the_settings_of_a_trial() -> None:
    assert TRIAL.varied == {"rows_per_step": 8}
    config = TRIAL.config(resolve({"learning_rate": 1e-3}))
    assert (config.rows_per_step, config.warmup_ratio, config.learning_rate) == (8, 0.05, 1e-3)


def test_a_damaged_file_or_one_of_another_search_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(StageError, match="of another search") as raised:
        read(RunDir(tmp_path), {"id": "other"})
    assert raised.value.hint == f"start over with: llmft train {tmp_path} --overwrite --search N"
    (tmp_path / "search/search.json").write_text('{"metric": "eval_loss"')
    with pytest.raises(StageError, match="missing or damaged"):
        read(RunDir(tmp_path), {"id": "one"})
