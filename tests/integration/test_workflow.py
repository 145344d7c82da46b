"""The six commands on the real built-in model over one run directory: what they print, and what they leave."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from .conftest import CACHE

ARMS = {"loss", "perplexity", "exact_match", "token_f1", "rouge_l", "chrf"}


@pytest.fixture(scope="module")
def evaluated(llmft_json, workspace, trained) -> dict:
    """`eval` on prompts that are training questions, so that a tuned model must answer them."""
    rows = [json.loads(line)["messages"] for line in (workspace / "chat.jsonl").read_text().splitlines()[:12]]
    prompts = [{"prompt": question["content"], "expected": answer["content"]} for question, answer in rows]
    (workspace / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return llmft_json("eval", "runs/brindle", "--prompts", "prompts.jsonl", "--max-new-tokens", 40, folder=workspace)


def ledger(workspace: Path) -> dict:
    return json.loads((workspace / "runs/brindle/run.json").read_text())


def test_gpu_check(llmft_json, llmft, tmp_path):
    found = llmft_json("gpu-check", folder=tmp_path)
    assert found["nf4_probe"]["ok"] is True
    assert found["nf4_probe"]["max_relative_error"] == pytest.approx(0.093, abs=0.01)
    assert {"torch", "transformers", "bitsandbytes", "python"} <= found["versions"].keys()
    assert isinstance(found["gpus"], list)
    if not found["gpus"]:
        refused = llmft("gpu-check", "--require-gpu", folder=tmp_path)
        assert refused.returncode == 3
        assert refused.stdout == ""
        assert "error: no usable GPU" in refused.stderr


def test_prepare(prepared, workspace):
    assert prepared["run"] == "runs/brindle"
    counts = {"read": 30, "kept": 30, "rejected": 0, "duplicates": 0, "overlength": 0, "near_duplicates": 0}
    assert prepared["rows"] == counts
    assert prepared["splits"] == {"train": 26, "validation": 4}
    assert 0 < prepared["tokens"]["supervised"] < prepared["tokens"]["total"]
    assert 0.8 < prepared["packing"]["efficiency"] <= 1
    held_out = [json.loads(line) for line in (workspace / "runs/brindle/data/held_out.jsonl").read_text().splitlines()]
    assert len(held_out) == 4
    assert all(prompt["messages"][-1]["role"] == "user" and prompt["expected"] for prompt in held_out)
    assert ledger(workspace)["stages"]["prepare"]["status"] == "done"


def test_train(trained, workspace):
    run = workspace / "runs/brindle"
    assert trained["steps"] == len([row for row in metrics(run) if "loss" in row])
    losses = [row["loss"] for row in metrics(run) if "loss" in row]
    assert losses[-1] < 0.2 * losses[0]
    assert trained["tokens_per_second"] > 20
    assert trained["peak_memory_bytes"] > 2**28
    assert trained["plan"]["quantization"] == "nf4"
    assert trained["plan"]["fast"] is trained["plan"]["dequantized_weights"] is True
    assert trained["adapter"] == "runs/brindle/adapter"
    assert json.loads((run / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "smollm2-135m"
    assert (run / "loss.svg").read_text().count("<svg") == 1
    entry = ledger(workspace)["stages"]["train"]
    assert entry["status"] == "done"
    assert entry["config"]["learning_rate"] == 3e-3
    assert entry["model"]["name"] == "smollm2-135m"


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_eval(evaluated, workspace):
    assert evaluated["name"] == "prompts"
    base, tuned = evaluated["arms"]["base"], evaluated["arms"]["tuned"]
    assert base.keys() == tuned.keys() >= ARMS
    assert tuned["loss"] <= 0.6 * base["loss"]
    assert tuned["token_f1"] >= 2 * base["token_f1"]
    assert tuned["token_f1"] > 0.7
    assert {row["metric"] for row in evaluated["comparisons"]} == {"exact_match", "token_f1", "rouge_l", "chrf"}
    for row in evaluated["comparisons"]:
        assert row.keys() >= {"metric", "a", "b", "delta", "ci95", "p_value"}
        assert row["ci95"][0] <= row["delta"] <= row["ci95"][1]
    folder = workspace / "runs/brindle/eval/prompts"
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [set(prediction["answers"]) for prediction in predictions] == [{"base", "tuned"}] * 12
    assert json.loads((folder / "summary.json").read_text())["arms"] == evaluated["arms"]
    assert "token F1" in (folder / "report.md").read_text()
    HTMLParser().feed((workspace / evaluated["report"]).read_text())


def test_eval_on_the_held_out_rows(llmft_json, workspace, trained, evaluated):
    found = llmft_json("eval", "runs/brindle", "--max-new-tokens", 24, folder=workspace)
    assert found["name"] == "held-out"
    assert found["prompts"] == 4
    assert found["arms"]["tuned"]["loss"] == pytest.approx(trained["eval_loss"], rel=0.02)
    assert found["arms"]["base"]["loss"] == pytest.approx(evaluated["arms"]["base"]["loss"])


def test_merge(merged, workspace):
    assert merged["merged"] == "runs/brindle/merged"
    assert merged["base_choice"] == "bfloat16"
    proof = merged["verification"]
    assert proof["passed"] is True
    assert proof["top1_agreement"] > 0.95
    assert proof["mean_kl"] < 0.01 < proof["mean_kl_of_base"]
    assert merged["peak_rss_bytes"] > 2**28
    assert json.loads((workspace / "runs/brindle/merged/config.json").read_text())["model_type"] == "llama"


def test_chat_answers_one_prompt(llmft_json, llmft, workspace, trained, evaluated):
    lines = (workspace / "runs/brindle/eval/prompts/predictions.jsonl").read_text().splitlines()
    learned = [row for row in map(json.loads, lines) if row["scores"]["tuned"]["exact_match"] == 1]
    assert len(learned) >= 3
    prediction = learned[0]
    question = prediction["messages"][0]["content"]
    found = llmft_json("chat", "runs/brindle", "--prompt", question, "--max-new-tokens", 40, folder=workspace)
    assert found["reply"] == prediction["expected"]
    assert 3 < found["tokens"] <= 40
    assert found["tokens_per_second"] > 0
    plain = llmft("chat", "runs/brindle", "--prompt", question, "--max-new-tokens", 40, "--quiet", folder=workspace)
    assert (plain.returncode, plain.stdout, plain.stderr) == (0, found["reply"] + "\n", "")


def test_chat_takes_lines_and_commands_from_a_pipe(llmft, workspace, trained):
    lines = "/help\nWhat is Brindle One?\n/compare\nWho makes it?\n/nonsense\n/save talk\n/exit\nnot read any more\n"
    done = llmft("chat", "runs/brindle", "--max-new-tokens", 20, folder=workspace, stdin=lines)
    assert done.returncode == 0
    answers = done.stdout.splitlines()
    assert len(answers) == 3
    assert answers[1].startswith("base: ")
    assert answers[2].startswith("tuned: ")
    assert "unknown command /nonsense" in done.stderr
    saved = json.loads((workspace / "runs/brindle/chat/talk.jsonl").read_text())["messages"]
    assert [message["role"] for message in saved] == ["user", "assistant", "user", "assistant"]
    assert [saved[1]["content"], saved[3]["content"]] == [answers[0], answers[2].removeprefix("tuned: ")]


def test_the_newest_run_is_used_and_named(run, workspace, trained):
    done = run("chat", "--prompt", "Hello", "--max-new-tokens", 4, folder=workspace, LLMFT_CACHE=str(CACHE))
    assert done.returncode == 0
    assert "using the newest run, runs/brindle" in done.stderr


def test_finished_stages_are_not_redone(run, workspace, trained):
    done = run("train", "runs/brindle", folder=workspace)
    assert done.returncode == 2
    assert done.stdout == ""
    further = "or train its adapter further: llmft train runs/brindle --continue"
    assert done.stderr == f"error: runs/brindle: train is already done\nhint: to redo it, add --overwrite, {further}\n"


def test_changed_source_makes_the_run_stale(run, workspace, trained):
    chat = ("chat", "runs/brindle", "--prompt", "Hello", "--max-new-tokens", 4)
    source = workspace / "chat.jsonl"
    content = source.read_text()
    try:
        source.write_text(content + "\n")
        refused = run(*chat, folder=workspace)
        assert refused.returncode == 2
        assert "the stage prepare is stale" in refused.stderr
        allowed = run(*chat, "--allow-stale", folder=workspace, LLMFT_CACHE=str(CACHE))
        assert allowed.returncode == 0
    finally:
        source.write_text(content)
