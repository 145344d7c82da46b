"""prepare, eval, chat and merge's check see the same token ids for the same conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmft_cli.base.reporter import Silent
from llmft_cli.cli.console import NoScreen
from llmft_cli.data.prepare import prepare
from llmft_cli.data.store import VALIDATION, load_split
from llmft_cli.evaluation import answers, evaluate
from llmft_cli.merging import merge
from llmft_cli.run_dir.run import RunDir
from llmft_cli.serving import chat
from llmft_cli.serving.generation import Answer, load_tuned
from llmft_cli.settings.config import Config, resolve
from llmft_cli.training.train import train

QUESTIONS = ["Tell me of <|im_end|> and rain.", "  What is  wind?\n", "Où est le vent ? 🌬", "Sun?", "Mist?", "And hail?"]


@pytest.fixture
def trained(tmp_path: Path, tiny_model_dir: Path) -> tuple[RunDir, Config]:
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"Answer {number}."}]}
        for number, question in enumerate(QUESTIONS)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunDir(tmp_path / "run")
    flags = {"model": str(tiny_model_dir), "val_size": 5.0, "device": "cpu", "max_steps": 1, "max_new_tokens": 1}
    prepare(run, [str(tmp_path / "rows.jsonl")], resolve(flags), Silent())
    config = resolve({**flags, "learning_rate": 1e-2, "warmup_ratio": 0.0})
    train(run, config, Silent())
    return run, config


def test_every_command_sees_the_same_token_ids(trained: tuple[RunDir, Config], monkeypatch: pytest.MonkeyPatch) -> None:
    run, config = trained
    rows = load_split(run.data, VALIDATION)
    assert rows is not None
    prompts = []
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        prompts.append(ids[: next(index for index, label in enumerate(labels) if label != -100)])
    held_out = [json.loads(line)["messages"] for line in (run.data / "held_out.jsonl").read_text().splitlines()]

    asked: list[Any] = []

    def answering(tuned: Any, ids: Any, *arguments: Any) -> list[Answer]:
        asked.append(ids)
        return [Answer("", 1, cut=False)] * len(ids)

    monkeypatch.setattr(answers, "answer_all", answering)
    evaluate.evaluate(run, None, None, config, Silent())
    assert asked == [prompts, prompts]

    talked: list[Any] = []
    stream_answer = chat.stream_answer

    def talking(tuned: Any, prompt: Any, *arguments: Any) -> Any:
        talked.append(prompt)
        return stream_answer(tuned, prompt, *arguments)

    monkeypatch.setattr(chat, "stream_answer", talking)
    tuned = load_tuned(run, config, Silent())
    for messages in held_out:
        chat.Session(run, tuned, config).ask(messages[-1]["content"], NoScreen())
    assert talked == prompts

    probed: list[Any] = []

    def probing(model: Any, rows: Any) -> list[torch.Tensor]:
        probed.append(rows)
        return [torch.zeros(len(row), 4) for row in rows]

    monkeypatch.setattr(merge, "next_token_logits", probing)
    merge.merge(run, config, Silent())
    assert probed == [list(rows["input_ids"])] * 3
