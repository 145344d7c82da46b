"""Conversations whose answers are learned in rows of their own: how they are counted, split and reported."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from templates import CHATML, QWEN3

from llmft_cli.base.reporter import Silent
from llmft_cli.data import store
from llmft_cli.data.prepare import prepare
from llmft_cli.data.report.summary import PrepareResult
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings import config


def conversation(number: int, thinking: bool = False) -> dict[str, Any]:
    """Three questions with their answers."""
    messages: list[dict[str, str]] = []
    for turn in range(3):
        thought = {"reasoning_content": f"Thought {turn}."} if thinking else {}
        messages.append({"role": "user", "content": f"Question {turn} about subject {number}?"})
        messages.append({"role": "assistant", "content": f"Answer {turn} about subject {number}.", **thought})
    return {"messages": messages}


@pytest.fixture
def prepared(tmp_path: Path, tokenizer_dir: Path) -> Any:
    def do(rows: list[Any], template: str = QWEN3.template, **flags: Any) -> tuple[PrepareResult, RunDir]:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "template.jinja").write_text(template)
        settings = {"model": str(tokenizer_dir), "chat_template": str(tmp_path / "template.jinja"), **flags}
        run = RunDir(tmp_path / "run")
        return prepare(run, [str(tmp_path / "rows.jsonl")], config.resolve(settings), Silent(), overwrite=True), run

    return do


def test_the_rows_of_a_conversation_count_as_one_and_stay_on_one_side(prepared: Any) -> None:
    result, run = prepared([conversation(number) for number in range(10)], val_size=0.3)
    assert result.rows == {"read": 10, "kept": 10, "rejected": 0, "duplicates": 0, "overlength": 0, "near_duplicates": 0}
    assert result.answer_rows == {"policy": "auto", "conversations": 10, "rows": 30}
    assert result.sources[0]["kept"] == 10
    assert result.splits == {"train": 21, "validation": 9}
    held_out = [json.loads(line) for line in (run.data / store.HELD_OUT_FILE).read_text().splitlines()]
    assert [row["messages"][-1]["content"][:10] for row in held_out] == ["Question 2"] * 3
    found: list[Counter[int]] = []
    for split in (store.TRAIN, store.VALIDATION):
        rows = store.load_split(run.data, split)
        assert rows is not None
        found.append(Counter(tuple(row["input_ids"][:25]) for row in rows))
    assert all(count == 3 for counts in found for count in counts.values())
    assert not found[0].keys() & found[1].keys()


def test_one_row_a_conversation_or_one_an_answer_on_request(prepared: Any) -> None:
    rows = [conversation(number) for number in range(4)]
    kept = {mode: prepared(rows, template, rows_per_answer=mode, val_size=0)[0] for mode, template in [
        ("off", QWEN3.template), ("on", CHATML.template), ("auto", CHATML.template),
    ]}  # fmt: skip
    assert {mode: result.splits["train"] for mode, result in kept.items()} == {"off": 4, "on": 12, "auto": 4}
    assert {mode: result.answer_rows["conversations"] for mode, result in kept.items()} == {"off": 0, "on": 4, "auto": 0}


def test_a_conversation_that_shares_its_beginning_with_another_is_no_duplicate(prepared: Any) -> None:
    other = conversation(0)
    other["messages"][-1]["content"] = "Something else."
    result, _ = prepared([conversation(0), other, conversation(0), conversation(1)], val_size=0)
    assert (result.rows["kept"], result.rows["duplicates"], result.answer_rows["rows"]) == (3, 1, 3 + 1 + 3)


def test_what_the_template_leaves_out_is_rejected_or_found(prepared: Any) -> None:
    rows = [conversation(0, thinking=True), *(conversation(number) for number in range(1, 4))]
    result, _ = prepared(rows, CHATML.template, max_rejected=1, val_size=0)
    assert [(item["reason"], item["count"]) for item in result.rejected_reasons] == [
        ("the chat template leaves out the reasoning_content of message 2", 1)
    ]
    result, _ = prepared(rows, CHATML.template, on_unrendered="keep", val_size=0)
    [finding] = [check for check in result.checks if check["check"] == "unrendered"]
    assert (finding["level"], finding["count"], result.rows["kept"]) == ("warning", 1, 4)
    places = ", ".join(f"the reasoning_content of message {number}" for number in (2, 4, 6))
    assert finding["examples"] == [{"source": finding["examples"][0]["source"], "line": 1, "excerpt": places}]


def test_answers_that_begin_otherwise_than_their_prompt_are_found(prepared: Any) -> None:
    """A template for reasoning models asks with the beginning of thinking, which plain answers do not have."""
    asking = "{{ '<|im_start|>assistant\n' }}"
    thinking = CHATML.template.replace(asking, "{{ '<|im_start|>assistant\n<think>\n' }}")
    assert thinking != CHATML.template
    result, _ = prepared([conversation(number) for number in range(3)], thinking, val_size=0)
    [finding] = [check for check in result.checks if check["check"] == "other_beginning"]
    assert (finding["level"], finding["count"]) == ("warning", 3)
    assert {example["excerpt"] for example in finding["examples"]} == {"<think>\n"}
    result, _ = prepared([conversation(number) for number in range(3)], CHATML.template, val_size=0)
    assert not [check for check in result.checks if check["check"] == "other_beginning"]
