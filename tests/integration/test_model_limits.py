"""Models with positions that run out, and adapters on embeddings and output layers, from prepare to eval."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
SHORT = ("--max-steps", 4, "--batch-size", 2, "--gradient-accumulation-steps", 1, "--lora-r", 4, "--learning-rate", 5e-3)


@pytest.fixture(scope="module")
def gpt2_run(run: Run, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that is trained on a GPT-2 of 64 positions, with the default length of rows."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    ids = {name: getattr(tiny_tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = GPT2Config(vocab_size=448, n_embd=64, n_layer=2, n_head=2, n_positions=64, **ids)
    GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(folder / "base")
    tiny_tokenizer.save_pretrained(folder / "base")
    talks = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}] for n in range(20)]
    talks.append([{"role": "user", "content": "long " * 60}, {"role": "assistant", "content": "Yes."}])
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    done = run("train", "run", "--data", "rows.jsonl", "--model", "base", "--val-size", 3, *SHORT, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "rows have up to 64 tokens (--max-seq-length), because base has no more positions" in done.stderr
    return folder


def test_rows_are_no_longer_than_the_model_takes(gpt2_run: Path) -> None:
    ledger = json.loads((gpt2_run / "run/run.json").read_text())
    assert ledger["stages"]["prepare"]["rows"]["overlength"] == 1
    assert ledger["stages"]["train"]["config"]["lora_r"] == 4


def test_more_is_refused_when_it_is_asked_for_by_flag_or_file(run: Run, gpt2_run: Path) -> None:
    flags = ("prepare", "rows.jsonl", "--model", "base", "--run", "more")
    (gpt2_run / "recipe.yaml").write_text("max_seq_length: 2048\n")
    for asked in (("--max-seq-length", 2048), ("--config", "recipe.yaml")):
        done = run(*flags, *asked, folder=gpt2_run)
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-2:] == [
            "error: --max-seq-length 2048 is more than the 64 positions of base, which cannot process longer rows",
            "hint: use --max-seq-length 64 or less",
        ]
        assert not (gpt2_run / "more").exists()


def test_eval_cuts_answers_at_the_end_and_names_the_line_of_a_prompt_that_leaves_no_room(run: Run, gpt2_run: Path) -> None:
    prompts = gpt2_run / "prompts.txt"
    prompts.write_text("Why?\n" + "and so on, " * 3 + "\n")
    done = run("eval", "run", "--prompts", "prompts.txt", "--max-new-tokens", 1000, "--json", folder=gpt2_run)
    assert done.returncode == 0, done.stderr
    prompts.write_text("Why?\n" + "and so on, " * 30 + "\n")
    done = run("eval", "run", "--prompts", "prompts.txt", "--name", "long", folder=gpt2_run)
    assert done.returncode == 4
    assert "loading" not in done.stderr
    assert "error: prompts.txt line 2: " in done.stderr
    assert "tokens of the 64 that base can have leave no room for an answer" in done.stderr


def test_a_conversation_ends_with_the_positions_and_goes_on_after_reset(run: Run, gpt2_run: Path) -> None:
    done = run("chat", "run", "--max-new-tokens", 1000, folder=gpt2_run, stdin="Why?\n/reset\n" * 4)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    done = run("chat", "run", "--max-new-tokens", 1000, folder=gpt2_run, stdin="Why?\n" * 4)
    assert done.returncode == 4
    assert "error: the conversation is full: " in done.stderr
    assert "hint: /reset starts a new one" in done.stderr


def test_a_question_without_room(run: Run, gpt2_run: Path) -> None:
    done = run("chat", "run", "--prompt", "and so on, " * 30, folder=gpt2_run)
    assert done.returncode == 4
    assert "error: the question is too long: " in done.stderr


@pytest.mark.parametrize("targets", ["embed_tokens", "q_proj,lm_head"])
def test_embeddings_and_output_layer_of_an_untied_model(targets: str, run: Run, prepared_copy: Path) -> None:
    """`embed_tokens` alone ended in "all its B matrices are zero", though it had learnt something."""
    folder = prepared_copy.parent
    done = run("train", "run", "--target-modules", targets, *SHORT, folder=folder)
    assert done.returncode == 0, done.stderr
    done = run("merge", "run", "--json", folder=folder)
    assert done.returncode == 0, done.stdout
    verification = json.loads(done.stdout)["verification"]
    assert verification["passed"]
    assert verification["mean_kl_of_base"] > 1e-4 > verification["mean_kl"]
    done = run("eval", "run", "--max-new-tokens", 2, "--json", folder=folder)
    assert done.returncode == 0, done.stdout
    arms = json.loads(done.stdout)["arms"]
    assert arms["tuned"]["loss"] < arms["base"]["loss"]


def test_modules_are_refused_before_loading_and_by_gpu_check(run: Run, prepared_copy: Path, tiny_model_dir: Path) -> None:
    for command in (("train", "run"), ("gpu-check", "--model", tiny_model_dir)):
        done = run(*command, "--target-modules", "q_proj,v_projj", folder=prepared_copy.parent)
        assert done.returncode == 2, done.stderr
        assert f"error: --target-modules v_projj matches no module of {tiny_model_dir}" in done.stderr
        assert "hint: did you mean v_proj?" in done.stderr
        assert f"loading {tiny_model_dir}" not in done.stderr


def test_patience_without_held_out_rows_is_refused_before_anything_is_prepared(
    run: Run, tiny_data: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    flags = ("--data", tiny_data / "rows.jsonl", "--model", tiny_model_dir, "--val-size", 0, "--early-stopping-patience", 2)
    done = run("train", "run", *flags, folder=tmp_path)
    assert done.returncode == 2
    assert "error: --early-stopping-patience 2 needs held-out rows, but --val-size is 0" in done.stderr
    assert not (tmp_path / "run").exists()


def test_one_step_learns(run: Run, prepared_copy: Path) -> None:
    """The default warm-up took the only step, whose rate was 0: the adapter had no effect."""
    done = run("train", "run", *SHORT, "--max-steps", 1, folder=prepared_copy.parent)
    assert done.returncode == 0, done.stderr
