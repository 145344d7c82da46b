"""Time and memory of one training step on one GPU: llmft and its peers.

    python benchmarks/train_step.py --out train-step.json [--only "4x2048"] [--sides llmft,unsloth] [--rounds 3]
    python benchmarks/train_step.py --table train-step.json [MORE.json ...]

Every measurement is a process of its own (`train_step_side.py`), and rounds alternate between the sides. Models are
checkpoints with random weights in the shapes of real ones, written to a temporary folder, unless `--model` names a
directory. If a side has options (checkpointing, rows per micro-batch), the first round tries all of them and later
rounds repeat the fastest. Peers must be importable: `unsloth` and `trl`, on PYTHONPATH or installed.

The file is written after every measurement. After `--limit-seconds`, no new measurement starts; the rest can be measured
in another run, which reuses the checkpoints in `--models`, and `--table` merges the files.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from train_step_cases import CASES, SHAPES, SIDES, Case, Measurement, measurements

HERE = Path(__file__).resolve().parent
MEASUREMENT_SECONDS = 300
TRIED_ON_CPU = "tiny"
Key = tuple[str, str, str, int]


def write_model(shape: str, folder: Path) -> None:
    """A checkpoint of random weights, and a tokenizer, which Unsloth's loader asks for."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**SHAPES[shape], bos_token_id=1, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="4GB")
    write_tokenizer(config.vocab_size, folder)


def write_tokenizer(vocabulary: int, folder: Path) -> None:
    """Bytes, and ids that stand for nothing: only its size matters here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [f"piece{number}" for number in range(vocabulary - len(pieces))]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


@dataclass
class Bench:
    """Measures, and keeps what was measured in a file.

    Attributes:
        folder: where what the sides leave behind goes, and models that are not kept.
    """

    arguments: argparse.Namespace
    folder: Path
    record: dict[str, Any]
    started: float

    @property
    def results(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.record["measurements"]
        return found

    def late(self) -> bool:
        return time.monotonic() - self.started > self.arguments.limit_seconds

    def model(self, shape: str) -> str:
        """The directory of a checkpoint; one that is not there yet is made by a process that frees the GPU when it exits."""
        if self.arguments.model:
            return str(self.arguments.model.resolve())
        folder = (self.arguments.models or self.folder) / shape
        if not (folder / "tokenizer.json").exists():  # it is written last
            command = [sys.executable, __file__, "--write-model", str(folder), "--shape", shape]
            subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)
        return str(folder)

    def run(self, cases: list[Case], sides: list[str]) -> None:
        for number in range(self.arguments.rounds):
            for case in cases:
                for side in sides:
                    for wanted in self.due(case, side, number):
                        if self.late():
                            print("no time left: the rest is not measured", file=sys.stderr)
                            return
                        self.measure(wanted, number)

    def due(self, case: Case, side: str, number: int) -> Iterator[Measurement]:
        """All that a side may try in the first round, and later the fastest of it."""
        first = measurements(case, side, "", self.arguments.device)
        if number == 0:
            yield from first
            return
        fastest = best(self.results, case.name).get(side)
        if fastest is not None:
            way, size = fastest["checkpointing"], fastest["size"]
            one = next(wanted for wanted in first if wanted.checkpointing == way)
            # The sizes of a plan are those it is chosen from, and are no one's but the planner's.
            yield one if way == "planned" else replace(one, sizes=(size,))

    def measure(self, wanted: Measurement, number: int) -> None:
        shape = next(case.shape for case in CASES if case.name == wanted.case)
        result = self.in_process(replace(wanted, model=self.model(shape)))
        if "fits" in result and not self.late():
            result = self.in_process(replace(wanted, model=self.model(shape), sizes=(result["fits"],)))
        self.record.update(result.pop("environment", {}))
        known = {name: value for name, value in asdict(wanted).items() if name not in ("model", "device")}
        self.results.append(known | {"round": number} | result)
        print(line(self.results[-1]), file=sys.stderr, flush=True)
        self.arguments.out.write_text(json.dumps(self.record, indent=2) + "\n", encoding="utf-8")

    def in_process(self, wanted: Measurement) -> dict[str, Any]:
        started = time.monotonic()
        command = [sys.executable, str(HERE / "train_step_side.py"), json.dumps(asdict(wanted))]
        try:
            done = subprocess.run(
                command, env=environment(), cwd=self.folder, capture_output=True, text=True, timeout=MEASUREMENT_SECONDS
            )
            result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            result = {"error": f"not done in {MEASUREMENT_SECONDS} s"}
        except (IndexError, ValueError):
            result = {"error": (done.stderr.splitlines() or ["no output"])[-1][:300]}
        return result | {"process_seconds": round(time.monotonic() - started, 1)}


def environment() -> dict[str, str]:
    """The variables of a side's process, which runs elsewhere, so its leftovers do no harm."""
    paths = [str(HERE.parent), *map(os.path.abspath, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))]
    return dict(os.environ, PYTHONPATH=os.pathsep.join(paths), HF_HUB_OFFLINE="1")


def line(result: dict[str, Any]) -> str:
    what = f"{result['case']}: {result['side']} ({result['checkpointing']})"
    if "error" in result:
        return f"{what}: {result['error']} [{result['process_seconds']:.0f} s]"
    figures = f"{result['tokens_per_second']:,} tokens/s, {result['peak_gibibytes']:.2f} GiB"
    losses = f"loss {result['losses'][0]:.3f} to {result['losses'][-1]:.3f}"
    return f"{what}: {figures}, {losses} [{result['process_seconds']:.0f} s]"


def best(results: list[dict[str, Any]], case: str) -> dict[str, dict[str, Any]]:
    """Of each side that a case was measured with, medians over the rounds of the way that is fastest."""
    ways: dict[Key, list[dict[str, Any]]] = {}
    for one in results:
        if one["case"] == case and "error" not in one:
            ways.setdefault((one["case"], one["side"], one["checkpointing"], one["size"]), []).append(one)
    found: dict[str, dict[str, Any]] = {}
    for (_, side, _, _), rounds in ways.items():
        speeds = [one["tokens_per_second"] for one in rounds]
        medians = {
            "tokens_per_second": statistics.median(speeds),
            "step_seconds": statistics.median(one["step_seconds"] for one in rounds),
            "peak_gibibytes": max(one["peak_gibibytes"] for one in rounds),
            "rounds": len(rounds),
            "range": (max(speeds) - min(speeds)) / statistics.median(speeds),
        }
        if side not in found or medians["tokens_per_second"] > found[side]["tokens_per_second"]:
            found[side] = rounds[0] | medians
    return found


def table(record: dict[str, Any]) -> str:
    """Markdown: a line for each side of each case, with how many times as fast llmft is."""
    lines = [
        f"{record['hardware']['gpu'] or 'CPU'}; " + ", ".join(f"{name} {it}" for name, it in record["versions"].items() if it),
        "",
        "| case | side | recomputed | at once | tokens/s | rounds (range) | peak GiB | llmft is |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    results = record["measurements"]
    for case in dict.fromkeys(one["case"] for one in results):
        fastest = best(results, case)
        ways = (one for side, one in fastest.items() if side.startswith("llmft"))
        ours = max(ways, key=lambda one: one["tokens_per_second"], default=None)
        for side in dict.fromkeys(one["side"] for one in results if one["case"] == case):
            if side in fastest:
                lines.append(row_of(case, side, fastest[side], ours))
            else:
                errors = {one["error"] for one in results if (one["case"], one["side"]) == (case, side)}
                lines.append(f"| {case} | {side} | | | {'; '.join(sorted(errors))} | | | |")
    return "\n".join(lines)


def row_of(case: str, side: str, figures: dict[str, Any], ours: dict[str, Any] | None) -> str:
    way = figures["checkpointing"]
    if way == "planned":
        plan = figures["plan"]
        embeddings = ", embeddings on CPU" if plan["embeddings_on_cpu"] else ""
        weights = ", weights kept" if plan["dequantized_weights"] else ""
        offloaded = ", offloaded" if plan.get("activation_offloading") else ""
        way = f"{plan['checkpointed_layers']} layers, {plan['optim']}{embeddings}{weights}{offloaded}"
    ratio = ""
    if ours is not None and not side.startswith("llmft"):
        ratio = f"{ours['tokens_per_second'] / figures['tokens_per_second']:.2f} x"
    speed, peak = f"{figures['tokens_per_second']:,.0f}", f"{figures['peak_gibibytes']:.2f}"
    rounds = f"{figures['rounds']} ({figures['range']:.1%})"
    return f"| {case} | {side} | {way} | {figures['size']} | {speed} | {rounds} | {peak} | {ratio} |"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("train-step.json"))
    parser.add_argument("--only", default="", help="only cases whose name contains this, or one of several separated by |")
    parser.add_argument("--sides", default=",".join(SIDES), help="of " + ", ".join(SIDES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit-seconds", type=float, default=float("inf"))
    parser.add_argument("--model", type=Path, help="use this model directory instead of random weights")
    parser.add_argument("--shape", choices=SHAPES, help="only cases of this shape")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu only serves to test the script")
    parser.add_argument(
        "--models", type=Path, metavar="FOLDER", help="keep checkpoints in this folder, and reuse existing ones"
    )
    parser.add_argument("--table", type=Path, nargs="+", metavar="RESULT", help="print the table of earlier results")
    parser.add_argument("--write-model", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    shapes = {arguments.shape} if arguments.shape else {case.shape for case in CASES} - {TRIED_ON_CPU}
    wanted = arguments.only.split("|")
    return [case for case in CASES if case.shape in shapes and any(part in case.name for part in wanted)]


def main() -> None:
    arguments = parsed()
    if arguments.write_model:
        write_model(arguments.shape, arguments.write_model)
        return
    if arguments.table:
        records = [json.loads(file.read_text(encoding="utf-8")) for file in arguments.table]
        print(table(records[0] | {"measurements": [one for record in records for one in record["measurements"]]}))
        return
    sides, cases = arguments.sides.split(","), chosen_cases(arguments)
    if unknown := set(sides) - set(SIDES):
        raise SystemExit(f"--sides {', '.join(unknown)}: it is none of {', '.join(SIDES)}")
    if not cases or (arguments.model and len({case.shape for case in cases}) > 1):
        raise SystemExit("--only and --shape must leave some cases, and those of one shape with --model")
    arguments.models = arguments.models and arguments.models.resolve()
    record: dict[str, Any] = {"what": __doc__.splitlines()[0], "hardware": {"gpu": None}, "versions": {}, "measurements": []}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        Bench(arguments, Path(folder), record, started).run(cases, sides)
    print(table(record))


if __name__ == "__main__":
    main()
