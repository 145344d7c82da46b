"""eval on a tiny model: what it takes for prompts, what it refuses before the model is loaded, and how it marks cut answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run

QUESTION = "What is 4 and 4?"


def prompt_file(run: Path, *rows: Any) -> Path:
    file = run.with_name("prompts.jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_cut_answers_are_counted_and_marked_wherever_scores_stand(trained_copy: Path, run: Run) -> None:
    file = prompt_file(trained_copy, {"question": QUESTION, "answer": [8, "It is 8."]}, {"query": QUESTION, "label": True})
    flags = ("--prompts", file.name, "--max-new-tokens", 2)
    done = run("eval", "run", *flags, "--json", folder=trained_copy.parent)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [scores["cut"] for scores in result["arms"].values()] == [2, 2]
    assert (result["prompts"], result["scored_prompts"], result["held_out_rows"]) == (2, 2, 4)
    told = "2 of the base model's and 2 of the tuned model's answers were cut at --max-new-tokens 2"
    assert told in result["headline"]
    folder = trained_copy / "eval/prompts"
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["cut"] for row in predictions] == [{"base": True, "tuned": True}] * 2
    assert [row["expected"] for row in predictions] == [["8", "It is 8."], "true"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["arms"] == result["arms"]
    assert told in summary["headline"]
    text = (folder / "report.md").read_text()
    assert "| answers cut at --max-new-tokens | 2 | 2 |" in text
    assert text.count("** (cut, ") == 4
    assert (folder / "report.html").read_text().count('<span class="mark">cut</span>') == 4

    shown = run("eval", "run", *flags, "--overwrite", folder=trained_copy.parent)
    assert told in shown.stdout
    assert shown.stdout.splitlines()[1].split()[-1] == "cut"


def test_chat_tells_that_an_answer_was_cut(trained_copy: Path, run: Run) -> None:
    for limit, cut in ((2, True), (60, False)):
        flags = ("--prompt", QUESTION, "--max-new-tokens", limit)
        done = run("chat", "run", *flags, "--json", folder=trained_copy.parent)
        assert json.loads(done.stdout)["cut"] is cut
        shown = run("chat", "run", *flags, folder=trained_copy.parent)
        assert shown.stderr.splitlines()[-1].endswith("; cut at --max-new-tokens") is cut


def test_prompts_that_the_template_refuses_are_told_before_the_model_is_loaded(trained_copy: Path, run: Run) -> None:
    template = trained_copy / "tokenizer/chat_template.jinja"
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    system = {"prompt": QUESTION, "system": "Be brief."}
    file = prompt_file(trained_copy, {"prompt": QUESTION}, system, {"prompt": QUESTION}, system, system)
    done = run("eval", "run", "--prompts", file.name, "--allow-stale", folder=trained_copy.parent)
    assert (done.returncode, done.stdout) == (4, "")
    first, hint = done.stderr.splitlines()[-2:]
    assert first == (
        "error: prompts.jsonl line 2 cannot be rendered: "
        "the chat template rejects this conversation: no system messages (and 2 more)"
    )
    assert hint == "hint: correct or remove them, or give other prompts: llmft eval --prompts FILE"
    assert "loading" not in done.stderr
    assert not (trained_copy / "eval").exists()


@pytest.mark.parametrize("line", ["[" * 100_000, '{"prompt": "a", "expected": 1' + "0" * 5000 + "}", '{"prompt": "a"'])
def test_a_row_that_is_no_json_is_an_error_of_the_data(line: str, trained_copy: Path, run: Run) -> None:
    (trained_copy.parent / "p.jsonl").write_text('{"prompt": "a"}\n' + line + "\n")
    done = run("eval", "run", "--prompts", "p.jsonl", folder=trained_copy.parent)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.splitlines()[-2].startswith("error: p.jsonl line 2: ")
