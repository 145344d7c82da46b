"""Batches of so many tokens, through the installed command line."""

import json


def test_a_training_on_batches_of_tokens(run, prepared_copy):
    """36 rows of up to 64 tokens, 180 tokens at once."""
    flags = ("--tokens-per-batch", 180, "--gradient-accumulation-steps", 2, "--num-epochs", 1, "--no-packing", "--json")
    done = run("train", "run", *flags, folder=prepared_copy.parent)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["plan"]["tokens_per_batch"] == 180
    longest = 180 // result["plan"]["batch_size"]
    assert 36 / (2 * (180 // 8)) <= result["steps"] <= -(-36 // (2 * (180 // longest)))
    settings = (prepared_copy / "config.yaml").read_text()
    assert "tokens_per_batch: 180" in settings
    # Which can be given again.
    again = run("train", "run", "--config", "run/config.yaml", "--overwrite", "--json", folder=prepared_copy.parent)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["train_loss"] == result["train_loss"]


def test_what_does_not_go_together_is_a_usage_error(run, prepared_copy):
    both = ("--batch-size", 2, "--tokens-per-batch", 180)
    for flags, message in (
        (both, "--batch-size (2) and --tokens-per-batch (180) "),
        (("--tokens-per-batch", 8), "--tokens-per-batch 8 is less than the longest sequence "),
    ):
        done = run("train", "run", *flags, folder=prepared_copy.parent)
        assert done.returncode == 2
        assert done.stderr.splitlines()[0 if flags == both else -2].startswith(f"error: {message}")


def test_whether_a_batch_of_tokens_fits(run, tmp_path):
    flags = ("--model", "meta-llama/Llama-2-7b-chat-hf", "--vram", "24GiB", "--tokens-per-batch", 8192, "--json")
    done = run("gpu-check", *flags, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    fit = json.loads(done.stdout)["fit"]
    assert fit["tokens_per_batch"] == 8192
    assert {(option["plan"]["batch_size"], option["plan"]["gradient_accumulation_steps"]) for option in fit["options"]} == {
        (4, 4)
    }
