"""Generation speed on a CPU: llmft's chat against transformers' `generate` with the same base's fp32 weights.

    python benchmarks/answers.py RUN --out answers.json [--tokens 48] [--rounds 5]

RUN is a trained run. Both sides answer the same prompt in turn, in one process, with the same number of tokens; the time
includes processing the prompt. `tuned` is llmft with the run's adapter, `base` without it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from llmft_cli.base.libraries import configure_libraries, hardware, import_transformers, versions

configure_libraries()

import torch  # noqa: E402

from llmft_cli.base.reporter import Silent  # noqa: E402
from llmft_cli.models import loading, model_source  # noqa: E402
from llmft_cli.run_dir.run import RunDir  # noqa: E402
from llmft_cli.serving.generation import BASE, TUNED, generation_config, load_tuned  # noqa: E402
from llmft_cli.settings.config import resolve  # noqa: E402

QUESTION = "My station blinks amber. What is it telling me?"
PEER = "transformers, fp32 weights"


def speed(model: Any, prompt: list[int], settings: Any, tokens: int) -> float:
    """Tokens per second of one answer of so many tokens."""
    ids = torch.tensor([prompt])
    settings.min_new_tokens = tokens
    started = time.perf_counter()
    with torch.inference_mode():
        written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    assert written.shape[1] == len(prompt) + tokens
    return tokens / (time.perf_counter() - started)


def measured(run: RunDir, tokens: int, rounds: int) -> dict[str, list[float]]:
    tuned = load_tuned(run, resolve({"device": "cpu"}, saved=run.saved_settings("prepare", "train")), Silent())
    source = model_source.resolve_recorded(run.require("train")["model"], Silent())
    peer = loading.load_base(source, torch.device("cpu"), torch.float32)
    prompt = tuned.encoder.prompt([{"role": "user", "content": QUESTION}])
    found: dict[str, list[float]] = {BASE: [], TUNED: [], PEER: []}
    for number in range(rounds + 1):
        for side, values in found.items():
            settings = generation_config(tuned, tokens)
            if side == PEER:
                value = speed(peer, prompt, settings, tokens)
            else:
                with tuned.arm(side) as model:
                    value = speed(model, prompt, settings, tokens)
            if number > 0:  # the first warms up
                values.append(round(value, 2))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    import_transformers()
    found = measured(RunDir(arguments.run), arguments.tokens, arguments.rounds)
    medians = {side: statistics.median(values) for side, values in found.items()}
    record = {
        "what": "Tokens per second of one answer on a CPU.",
        "hardware": hardware(),
        "versions": versions(),
        "tokens": arguments.tokens,
        "rounds": found,
        "medians": medians,
        "times_transformers": {side: round(medians[side] / medians[PEER], 2) for side in (BASE, TUNED)},
    }
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: record[name] for name in ("medians", "times_transformers")}))


if __name__ == "__main__":
    main()
