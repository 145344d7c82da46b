"""Time to prepare data: llmft, TRL, and the tokenizer alone, on the same rows.

    python benchmarks/prepare.py --seed-rows rows.json --trl trl-site --out benchmarks/results/prepare.json

The rows are real ones (`--seed-rows`: alpaca or chat rows) with half of their longer words replaced, so that
all rows differ. Every measurement is a process of its own, which imports everything and prepares a few rows
before its clock starts. Rounds alternate between the candidates, and the medians are compared. The lower bound
is the time of `tokenizers.Tokenizer.encode_batch` alone, on the rendered texts.

`--trl` names a folder with TRL installed (`pip install --target trl-site --no-deps trl`); without it, TRL is skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

LENGTH = 1024
WARM_UP_ROWS = 50
EXCHANGED = 0.5


def make_rows(seed_rows: Path, count: int, file: Path) -> None:
    """Chat rows as JSON lines, all different."""
    text = seed_rows.read_text(encoding="utf-8")
    seeds = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    pairs = [pair_of(row) for row in seeds]
    words = sorted({word for _, answer in pairs for word in answer.split() if len(word) > 3 and word.isalpha()})
    chooser = random.Random(0)

    def varied(sentence: str) -> str:
        changed = (
            chooser.choice(words) if len(word) > 3 and word.isalpha() and chooser.random() < EXCHANGED else word
            for word in sentence.split(" ")
        )
        return " ".join(changed)

    with file.open("w", encoding="utf-8") as out:
        for number, (question, answer) in zip(range(count), cycle(pairs), strict=False):
            turns = [
                {"role": "user", "content": f"{varied(question)} ({number})"},
                {"role": "assistant", "content": varied(answer)},
            ]
            out.write(json.dumps({"messages": turns}) + "\n")


def pair_of(row: dict[str, Any]) -> tuple[str, str]:
    if "messages" in row:
        turns = [turn["content"] for turn in row["messages"] if turn["role"] != "system"]
        return turns[0], turns[1]
    return "\n\n".join(filter(None, [row["instruction"], row.get("input")])), row["output"]


def messages_of(file: Path) -> list[list[dict[str, str]]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line)["messages"] for line in lines]


def head_of(file: Path) -> Path:
    """The first few rows, to warm up with."""
    head = file.with_suffix(".head.jsonl")
    with file.open(encoding="utf-8") as lines:
        head.write_text("".join(line for line, _ in zip(lines, range(WARM_UP_ROWS), strict=False)), encoding="utf-8")
    return head


def model_directory() -> Path:
    from llmft_cli.base.reporter import Silent
    from llmft_cli.models import model_source

    return model_source.resolve("smollm2-135m", Silent(), weights=False).path


def floor(file: Path) -> Callable[[], dict[str, Any]]:
    from llmft_cli.models import loading

    tokenizer = loading.load_tokenizer(model_directory())
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in messages_of(file)]
    backend = tokenizer.backend_tokenizer
    backend.encode_batch(texts[:WARM_UP_ROWS], add_special_tokens=False)

    def measured() -> dict[str, Any]:
        return {"tokens": sum(map(len, backend.encode_batch(texts, add_special_tokens=False)))}

    return measured


def llmft(file: Path, near_duplicates: bool) -> Callable[[], dict[str, Any]]:
    from llmft_cli.base.reporter import Silent
    from llmft_cli.data.prepare import prepare
    from llmft_cli.run_dir.run import RunDir
    from llmft_cli.settings.config import resolve

    config = resolve({"model": "smollm2-135m", "max_seq_length": LENGTH, "near_duplicates": near_duplicates})
    folder = tempfile.TemporaryDirectory()
    prepare(RunDir(Path(folder.name) / "warm-up"), [str(head_of(file))], config, Silent())

    def measured() -> dict[str, Any]:
        result = prepare(RunDir(Path(folder.name) / "run"), [str(file)], config, Silent())
        folder.cleanup()
        return {"rows": result.rows, "tokens": result.tokens["total"], "packing": result.packing}

    return measured


def trl(file: Path, processes: int) -> Callable[[], dict[str, Any]]:
    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model_directory())
    tiny = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    folder = tempfile.TemporaryDirectory()
    settings = SFTConfig(
        output_dir=folder.name,
        max_length=LENGTH,
        packing=True,
        dataset_num_proc=processes,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )

    def prepared(rows: list[list[dict[str, str]]]) -> Any:
        data = datasets.Dataset.from_list([{"prompt": row[:1], "completion": row[1:]} for row in rows])
        return SFTTrainer(LlamaForCausalLM(tiny), settings, train_dataset=data, processing_class=tokenizer).train_dataset

    prepared(messages_of(head_of(file)))

    def measured() -> dict[str, Any]:
        found = prepared(messages_of(file))
        return {"tokens": sum(map(len, found["input_ids"])), "packing": {"rows": len(found)}}

    return measured


CANDIDATES: dict[str, Callable[[Path], Callable[[], dict[str, Any]]]] = {
    "floor": floor,
    "llmft": lambda file: llmft(file, near_duplicates=False),
    "llmft, near-duplicates": lambda file: llmft(file, near_duplicates=True),
    "TRL, 1 process": lambda file: trl(file, 1),
    "TRL, 2 processes": lambda file: trl(file, 2),
}


def measure(name: str, file: Path) -> None:
    """Print what one candidate takes as a line of JSON."""
    started = time.perf_counter()
    run = CANDIDATES[name](file)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ready = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - ready
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {
        "seconds": seconds,
        "start_seconds": ready - started,
        "start_rss_bytes": before * 1024,
        "peak_rss_bytes": peak * 1024,
    }
    print(json.dumps(figures | result))


def rounds(names: list[str], file: Path, count: int, trl_site: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measurements in turn, each in a process of its own."""
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    if trl_site:
        environment["PYTHONPATH"] = trl_site
    for _ in range(count):
        for name in names:
            command = [sys.executable, __file__, "--measure", name, "--rows-file", str(file)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            yield name, json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed-rows", type=Path, default=Path(__file__).parents[1] / "sample_data/chat.jsonl")
    parser.add_argument("--count", type=int, default=52_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trl", help="folder with TRL installed")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=CANDIDATES)
    parser.add_argument("--rows-file", type=Path)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.rows_file)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        make_rows(arguments.seed_rows, arguments.count, file)
        names = [name for name in CANDIDATES if arguments.trl or not name.startswith("TRL")]
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for name, figures in rounds(names, file, arguments.rounds, arguments.trl):
            found[name].append(figures)
            print(f"{name:24} {figures['seconds']:6.1f} s", file=sys.stderr)
        report(found, arguments, file.stat().st_size)


def report(found: dict[str, list[dict[str, Any]]], arguments: argparse.Namespace, size: int) -> None:
    medians = {name: statistics.median(item["seconds"] for item in items) for name, items in found.items()}
    print(f"{'':24} {'seconds':>8} {'x floor':>8} {'peak RSS MiB':>13}")
    for name, seconds in medians.items():
        peak = max(item["peak_rss_bytes"] for item in found[name]) / 2**20
        print(f"{name:24} {seconds:8.1f} {seconds / medians['floor']:8.2f} {peak:13.0f}")
    if arguments.out:
        packages = ["tokenizers", "transformers", "datasets", "pyarrow", "rensa"]
        content = {
            "rows": arguments.count,
            "bytes": size,
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in packages},
            "median_seconds": medians,
            "times_floor": {name: seconds / medians["floor"] for name, seconds in medians.items()},
            "runs": found,
        }
        arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
