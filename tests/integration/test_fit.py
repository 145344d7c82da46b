"""gpu-check --model through the installed command line, on a machine without the card it is asked about."""

import json
import os


def test_a_model_that_fits_a_card_that_is_not_here(run, tmp_path):
    done = run(
        "gpu-check",
        "--model",
        "meta-llama/Llama-2-7b-chat-hf",
        "--vram",
        "12GiB",
        "--json",
        "--batch-size",
        "1",
        folder=tmp_path,
    )
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert {"gpus", "nf4_probe", "versions", "fit"} <= set(answer)
    fit = answer["fit"]
    assert fit["fits"] is True
    assert fit["available_bytes"] == 12 * 2**30
    assert fit["breakdown"]["quantized_weights"] == 3_341_254_656  # 4 bits a weight, a byte a block, and tables
    assert sum(fit["breakdown"].values()) == fit["predicted_peak_bytes"] < fit["required_bytes"] <= 12 * 2**30
    assert fit["plan"]["batch_size"] * fit["plan"]["gradient_accumulation_steps"] == 4
    assert fit["tokens_per_second"] is None
    assert fit["footprint"]["parameters"] == 6_738_415_616


def test_a_model_that_does_not_fit_ends_in_5_and_says_what_would(run, tmp_path):
    done = run(
        "gpu-check",
        "--model",
        "meta-llama/Llama-2-7b-chat-hf",
        "--vram",
        "5.25GiB",
        "--gradient-accumulation-steps",
        "1",
        folder=tmp_path,
    )
    assert done.returncode == 5
    assert "no, not even with the most frugal plan" in done.stdout
    assert "error: meta-llama/Llama-2-7b-chat-hf does not fit: the most frugal plan needs" in done.stderr
    assert "--max-seq-length 1024 fits; or use a smaller --lora-r or --model" in done.stderr
    done = run(
        "gpu-check", "--model", "meta-llama/Llama-2-13b-hf", "--vram", "5GiB", "--json", "--batch-size", "1", folder=tmp_path
    )
    assert done.returncode == 5
    answer = json.loads(done.stdout)
    assert answer["ok"] is False
    assert answer["error"]["kind"] == "memory"
    assert answer["fit"]["fits"] is False


def test_without_a_card_it_is_told_what_would_be_needed(run, tmp_path):
    done = run("gpu-check", "--model", "smollm2-135m", "--max-seq-length", "128", "--json", folder=tmp_path)
    assert done.returncode == 0
    fit = json.loads(done.stdout)["fit"]
    assert fit["fits"] is None
    assert fit["card"] is None
    assert fit["required_bytes"] > fit["predicted_peak_bytes"] > 0


def test_bad_values_are_refused_before_anything_is_looked_at(run, tmp_path):
    for arguments, code, words in (
        (["--model", "smollm2-135m", "--vram", "8"], 2, "--vram: '8' has no unit"),
        (["--model", "smollm2-135m", "--max-vram", "lots"], 2, "--max-vram: 'lots' is not a size such as"),
        (
            ["--wait", "1s", "--model", "smollm2-135m", "--vram", "8GiB"],
            2,
            "cannot be combined with --vram",
        ),
        (["--model", "smollm2-135m", "--vram", "8GiB", "--measure"], 2, "--measure cannot be combined with --vram"),
        (["--model", "nobody/knows-this", "--vram", "8GiB"], 3, "nobody/knows-this is not on this machine"),
    ):
        done = run("gpu-check", *arguments, folder=tmp_path)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert done.stdout == ""


def test_waiting_for_a_card_that_a_model_fits_prints_the_index_alone(run, tmp_path):
    """The memory to wait for comes from the prediction, and no output of the libraries is shown."""
    smi = tmp_path / "nvidia-smi"
    card = (
        "0, GPU-7f0d2c2e-94b2-6f8a-1c39-5be6a1d2f0aa, 2, 12288, 4096, 8192, 580.86.15, A card, 1650223, Disabled, Disabled, 41"
    )
    smi.write_text(f'#!/bin/sh\ncase "$*" in *-x*) exit 1;; *) echo "{card}";; esac\n')
    smi.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    model = ["--model", "meta-llama/Llama-2-7b-chat-hf"]
    done = run("gpu-check", "--wait", "1s", *model, folder=tmp_path, PATH=path)
    assert (done.returncode, done.stdout) == (0, "0\n")
    told = done.stderr.splitlines()
    assert [
        line
        for line in told
        if not line.startswith(
            ("warning: the model meta-llama", "assuming rows of 2,048 tokens", "simulating training steps of")
        )
    ] == []
    done = run("gpu-check", "--wait", "1s", *model, "--max-seq-length", "65536", folder=tmp_path, PATH=path)
    assert done.returncode == 5
    assert "1 GPU with " in done.stderr
    assert "the largest GPU has 12 GiB" in done.stderr
