"""Exact match of the answers to held-out rows, by the model in training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmft_cli.base.errors import StageError
from llmft_cli.base.reporter import Silent
from llmft_cli.models import loading, model_source
from llmft_cli.models.adapters import add_adapter
from llmft_cli.run_dir.run import RunDir
from llmft_cli.search import answers
from llmft_cli.search.answers import Questions, exact_match, held_out_questions
from llmft_cli.serving.generation import Answer
from llmft_cli.settings.config import resolve

ROW = '{"messages": [{"role": "user", "content": "%s?"}, {"role": "assistant", "content": "%s"}]}\n'


@pytest.fixture
def run(tiny_model_dir: Path, tmp_path: Path) -> RunDir:
    """A run with four held-out rows, and the tokenizer of the tiny model."""
    run = RunDir(tmp_path / "run")
    run.data.mkdir(parents=True)
    loading.load_tokenizer(tiny_model_dir).save_pretrained(run.tokenizer)
    (run.data / "held_out.jsonl").write_text("".join(ROW % (word, word) for word in ("rain", "snow", "hail", "fog")))
    return run


def questions_of(run: RunDir, tiny_model_dir: Path) -> Questions:
    source = model_source.resolve(str(tiny_model_dir), Silent())
    return held_out_questions(run, source, resolve({}), Silent())


def test_the_share_of_right_answers(run: RunDir, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = questions_of(run, tiny_model_dir)
    assert [prompt.expected for prompt in questions.prompts] == [["rain"], ["snow"], ["hail"], ["fog"]]
    base = loading.load_base(model_source.resolve(str(tiny_model_dir), Silent()), torch.device("cpu"), torch.float32)
    own_attention = base.config._attn_implementation
    model = add_adapter(base, resolve({}), "tiny").train()
    model.get_base_model().set_attn_implementation("eager")  # as training may have another one
    seen = []

    def answered(tuned, prompts, arm, *_):
        seen.append((tuned.model.training, base.config._attn_implementation, prompts, arm))
        return [Answer(text, 1, False) for text in ("Rain.", "sun", "hail", "mist")]

    monkeypatch.setattr(answers, "answer_all", answered)
    assert exact_match(model, own_attention, questions, "tiny", resolve({}), Silent()) == 0.5
    assert seen == [(False, own_attention, questions.ids, "tuned")]
    assert (model.training, base.config._attn_implementation) == (True, "eager")


def test_rows_without_an_answer_are_no_questions(run: RunDir, tiny_model_dir: Path) -> None:
    (run.data / "held_out.jsonl").write_text("")
    with pytest.raises(StageError, match="no held-out answers to compare recipes by"):
        questions_of(run, tiny_model_dir)
