"""All six commands on one model, each timed as a whole process, as a table and as JSON.

    python benchmarks/workflow.py /tmp/llama-2-7b-shape --chat-template benchmarks/llama-2.jinja --out results.json

Shows whether a model of that size completes the whole workflow on this machine, and what each stage costs.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

SAMPLE_DATA = Path(__file__).parent.parent / "sample_data"
FIGURES = {
    "gpu-check": ("nf4_probe", "gpus"),
    "prepare": ("rows", "tokens", "packing"),
    "train": ("steps", "train_loss", "eval_loss", "tokens_per_second", "peak_memory_bytes", "plan"),
    "eval": ("headline", "arms"),
    "merge": ("verification", "peak_rss_bytes", "seconds"),
    "chat": ("reply", "tokens", "tokens_per_second"),
}


def run(arguments: list[str]) -> dict:
    """One command with --json; returns its object and its wall time in seconds."""
    print("$ llmft " + " ".join(arguments), flush=True)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "llmft_cli", *arguments, "--json"], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    result = json.loads(done.stdout)
    shown = {name: result[name] for name in FIGURES[arguments[0]]}
    print(f"  {seconds:.1f} s  {json.dumps(shown)[:600]}\n", flush=True)
    return {"command": arguments, "wall_seconds": round(seconds, 2), "result": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--chat-template", type=Path)
    parser.add_argument("--run", default="runs/workflow")
    parser.add_argument("--steps", default="20")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    template = ["--chat-template", str(arguments.chat_template)] if arguments.chat_template else []
    prompts = ["--prompts", str(SAMPLE_DATA / "prompts.jsonl"), "--max-new-tokens", "16", "--eval-batch-size", "32"]
    stages = [
        run(["gpu-check"]),
        run(["prepare", str(SAMPLE_DATA / "chat.jsonl"), "--run", arguments.run, "--model", arguments.model, *template]),
        run(
            ["train", arguments.run, "--max-steps", arguments.steps, "--batch-size", "4", "--gradient-accumulation-steps", "1"]
        ),
        run(["eval", arguments.run, *prompts]),
        run(["merge", arguments.run]),
        run(["chat", arguments.run, "--prompt", "What does Brindle One cost?", "--max-new-tokens", "32"]),
    ]
    if arguments.out:
        arguments.out.write_text(json.dumps(stages, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
