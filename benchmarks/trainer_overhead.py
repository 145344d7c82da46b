"""Overhead of Trainer, callbacks, logging and the data loader per training step.

    python benchmarks/trainer_overhead.py rows.json --model M --out overhead.json [--steps 20] [--rounds 3]

`llmft train`'s stage and a bare loop use the same plan, the same batches in the same order and the same clock. The loop has
its batches on the device from the start, and does nothing but passes, clipping and optimizer steps. The stage is measured
with logging at every step, and at every tenth step, as is usual.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from llmft_cli.base.libraries import configure_libraries, hardware, import_transformers, versions

configure_libraries()

import torch  # noqa: E402

from llmft_cli.base.reporter import Silent  # noqa: E402
from llmft_cli.data.prepare import prepare  # noqa: E402
from llmft_cli.data.store import training_rows  # noqa: E402
from llmft_cli.models import loading, model_source  # noqa: E402
from llmft_cli.run_dir.run import RunDir  # noqa: E402
from llmft_cli.settings import compute_types  # noqa: E402
from llmft_cli.settings.config import Config, resolve  # noqa: E402
from llmft_cli.training.batches.collate import collate, to_device  # noqa: E402
from llmft_cli.training.batches.sequences import Sequences, training_sequences  # noqa: E402
from llmft_cli.training.fast.cuda_graphs import recorded_passes  # noqa: E402
from llmft_cli.training.loop import schedule  # noqa: E402
from llmft_cli.training.loop.step_clock import StepClock  # noqa: E402
from llmft_cli.training.loop.trainer import QLoRATrainer  # noqa: E402
from llmft_cli.training.planning import decide  # noqa: E402
from llmft_cli.training.profiling.measuring import make_optimizer  # noqa: E402
from llmft_cli.training.step.built_model import build  # noqa: E402
from llmft_cli.training.step.loss import loss_and_gradients  # noqa: E402
from llmft_cli.training.train import train  # noqa: E402

EVERY_STEP, USUAL = 1, 10
BARE = "bare loop"


def stage(run: RunDir, config: Config) -> float:
    """Tokens per second of the whole stage; of those that are not padding, as everywhere here."""
    speed = train(run, config, Silent(), overwrite=True).tokens_per_second
    assert speed is not None, "too few steps"
    return speed


def bare_loop(run: RunDir, config: Config) -> float:
    """Tokens per second of the same steps, with nothing around them."""
    sequences = training_sequences(training_rows(run.data), config)
    device = loading.pick_device(config.device)
    source = model_source.resolve(config.model, Silent())
    config = compute_types.settled(config, device, Silent())
    chosen = decide.decide(source, config, sequences, device, Silent())
    config = chosen.applied_to(config)
    import_transformers().set_seed(config.seed)
    base = loading.load_base(source, device, compute_types.torch_type(config.compute_dtype), config.quantization)
    loading.keep_training_layout(base)
    model = build(base, source.name, config, chosen.plan, None, Silent())
    model.train()
    steps = steps_of_batches(run, model, config, sequences)
    weights = [one for one in model.parameters() if one.requires_grad]
    work: Callable[..., torch.Tensor] = partial(loss_and_gradients, model)
    recorded = recorded_passes(model, device, work)
    optimizer = make_optimizer(model, chosen.plan.optim)
    # The stage's first pass, which is never recorded, is that of the longest batch before the first step.
    (recorded.run if recorded else work)(steps[0][0], torch.tensor(1.0, device=device))
    optimizer.zero_grad()
    clock = StepClock(device)
    for step, batches in enumerate(steps, 1):
        divisor = torch.tensor(float(sum(batch["predicting"].numel() for batch in batches)), device=device)
        for batch in batches:
            (recorded.run if recorded else work)(batch, divisor)
            clock.add_tokens(batch["token_count"])
        torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        clock.step_ended(step)
    assert clock.tokens_per_second is not None, "too few steps"
    return clock.tokens_per_second


def steps_of_batches(run: RunDir, model: Any, config: Config, sequences: Sequences) -> list[list[dict[str, Any]]]:
    """The batches of every step, on the device, as the stage's data loader gives them in one epoch after the other."""
    device = next(model.parameters()).device
    arguments = schedule.training_arguments(run.checkpoints, schedule.plan(sequences, config), config, device, evaluate=False)
    trainer = QLoRATrainer(not config.packing, model=model, args=arguments, train_dataset=sequences, data_collator=collate)
    accumulated = config.gradient_accumulation_steps
    loader = trainer.get_train_dataloader()
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    found = [to_device(batch, device) for batch in itertools.islice(batches, arguments.max_steps * accumulated)]
    return [found[start : start + accumulated] for start in range(0, len(found), accumulated)]


def released(measure: Callable[[], float]) -> float:
    """What it measures, on a device that holds nothing of the measurement before."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return measure()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--chat-template")
    parser.add_argument("--max-seq-length", type=int, default=2048)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--gradient-accumulation-steps", type=int)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    names = ("model", "max_seq_length", "chat_template", "batch_size", "gradient_accumulation_steps")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    given |= {"max_steps": arguments.steps, "eval_steps": float(arguments.steps), "on_overlength": "drop"}
    found: dict[str, list[float]] = {}
    settings = {name: value if name != "model" else Path(value).name for name, value in given.items()}
    record = {"what": __doc__.splitlines()[0], "hardware": hardware(), "versions": versions(), "settings": settings}
    record |= {"data": arguments.data.name}
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        prepare(run, [str(arguments.data)], resolve(given), Silent())
        saved = run.saved_settings("prepare")
        every, usual = (resolve(given | {"logging_steps": count}, saved=saved) for count in (EVERY_STEP, USUAL))
        sides = {
            BARE: partial(bare_loop, run, usual),
            "logging every 10 steps": partial(stage, run, usual),
            "logging every step": partial(stage, run, every),
        }
        for _ in range(arguments.rounds):
            for name, measure in sides.items():
                found.setdefault(name, []).append(released(measure))
                print(f"{name}: {found[name][-1]:,.0f} tokens/s", flush=True)
                record |= {"tokens_per_second": found, "overhead": overhead(found)}
                arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print("; ".join(f"{name}: {share:.2%} more time" for name, share in overhead(found).items()))


def overhead(found: dict[str, list[float]]) -> dict[str, float]:
    medians = {name: statistics.median(speeds) for name, speeds in found.items()}
    return {name: round(medians[BARE] / speed - 1, 4) for name, speed in medians.items() if name != BARE}


if __name__ == "__main__":
    main()
