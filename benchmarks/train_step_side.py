"""One measurement of `train_step.py`, which starts it: median time and peak memory of a side's training step.

    python benchmarks/train_step_side.py MEASUREMENT

MEASUREMENT is `train_step_cases.Measurement` as JSON; the last line of the output is the result as JSON. A step is a
forward and a backward pass, AdamW, and clearing the gradients, with LoRA of rank 16 on all linear layers of an NF4
base in bf16 (fp16 for `llmft-fp16`). All sides train on the same token ids, all supervised, with the same base.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from train_step_cases import Measurement, token_rows

os.environ.update(HF_HUB_OFFLINE="1", UNSLOTH_DISABLE_STATISTICS="1", WANDB_DISABLED="true")
WANTED = Measurement(**json.loads(sys.argv[1]))
if WANTED.side.startswith("unsloth"):
    import unsloth  # noqa: F401 - before the libraries that it patches

from llmft_cli.base.libraries import configure_libraries, hardware, version_of, versions  # noqa: E402

configure_libraries()  # every side gets the allocator that `llmft train` and Unsloth set up

import torch  # noqa: E402
import train_step_peers as peers  # noqa: E402

from llmft_cli.base.cpu_memory import keep_freed_memory  # noqa: E402
from llmft_cli.base.reporter import Silent  # noqa: E402
from llmft_cli.data.forms.examples import IGNORED  # noqa: E402
from llmft_cli.data.packing import pack  # noqa: E402
from llmft_cli.models import loading, model_source  # noqa: E402
from llmft_cli.settings import compute_types  # noqa: E402
from llmft_cli.settings.config import Config, resolve  # noqa: E402
from llmft_cli.training.batches.collate import collate, to_device  # noqa: E402
from llmft_cli.training.device_memory import CONTEXT_BYTES, available_bytes, hold_to  # noqa: E402
from llmft_cli.training.fast.cuda_graphs import recorded_passes  # noqa: E402
from llmft_cli.training.loop.loss_scale import LossScale  # noqa: E402
from llmft_cli.training.plan import Plan, given_plan  # noqa: E402
from llmft_cli.training.planning import decide  # noqa: E402
from llmft_cli.training.profiling.measuring import make_optimizer  # noqa: E402
from llmft_cli.training.step.loss import loss_and_gradients  # noqa: E402
from llmft_cli.training.step.tuned_model import apply_plan, make_trainable  # noqa: E402

GIBIBYTE = 2**30
# Of warm-up and counted, with some batches in each. What a library compiles for a shape it may compile again, for any
# length, at the second.
PASSES, PASSES_OF_SHORT_ROWS = (1, 2), (2, 3)
LEARNING_RATE = 2e-4
OPTIM = "adamw_torch_fused"
PEER_PACKAGES = ("unsloth", "unsloth_zoo", "trl", "xformers", "triton")
OUT_OF_MEMORY = "out of memory"


@dataclass
class Side:
    """A model that can be trained, and how.

    Attributes:
        batches: of so many rows or sequences a micro-batch, on the device, with their tokens that are no padding.
        step: forward and backward of a batch; gives its loss.
    """

    model: Any
    batches: Callable[[int], list[tuple[Any, int]]]
    step: Callable[[Any], torch.Tensor]
    sizes: Sequence[int]
    plan: Plan
    loss_scale: LossScale | None = None

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step; in fp16 through the scaler, as accelerate takes it."""
        if self.loss_scale is None:
            optimizer.step()
            return
        self.loss_scale.unscale(optimizer)
        self.loss_scale.scaler.step(optimizer)
        self.loss_scale.scaler.update()


def on_gpu() -> bool:
    return WANTED.device != "cpu"


def device() -> torch.device:
    return torch.device("cuda", 0) if on_gpu() else torch.device("cpu")


def hold() -> None:
    """Keep to the budget, and let every library see a card of that size when it asks what is free."""
    limit = int(WANTED.budget_gibibytes * GIBIBYTE)
    if not limit or not on_gpu():
        return
    hold_to(limit, device())
    ask = torch.cuda.mem_get_info

    def mem_get_info(*arguments: Any, **options: Any) -> tuple[int, int]:
        free, total = ask(*arguments, **options)
        return min(free, max(0, limit - CONTEXT_BYTES - torch.cuda.memory_reserved())), total

    torch.cuda.mem_get_info = torch.cuda.memory.mem_get_info = mem_get_info


def llmft_config() -> Config:
    most = max(WANTED.sizes)
    config = resolve(
        {
            "model": WANTED.model,
            "max_seq_length": WANTED.length,
            "batch_size": most,
            "gradient_accumulation_steps": 1,
            "lora_r": peers.RANK,
            "lora_alpha": peers.ALPHA,
            "learning_rate": LEARNING_RATE,
            "compute_dtype": "fp16" if WANTED.side == "llmft-fp16" else "auto",
        }
    )
    return compute_types.settled(config, device(), Silent())


def plan_of(config: Config) -> Plan:
    """What `llmft train` would do in the budget, or what the measurement asks for."""
    from transformers import AutoConfig

    shape = AutoConfig.from_pretrained(WANTED.model)
    if WANTED.checkpointing != "planned":
        full = WANTED.checkpointing != "none"
        plan = given_plan(config, shape.num_hidden_layers, full)
        return replace(plan, dequantized_weights=not full, activation_offloading=WANTED.checkpointing == "offloaded")
    available = available_bytes(device(), int(WANTED.budget_gibibytes * GIBIBYTE) or None)
    dtype = compute_types.torch_type(config.compute_dtype)
    found = decide.predicted_options(shape, config, dtype, decide.longest_batches(config), available)
    return decide.choose_plan(found, available, config).plan


def trainable(base: Any, config: Config, plan: Plan) -> Any:
    """As `train.build` makes it."""
    model = make_trainable(base, config, config.model)
    apply_plan(model, plan)
    return model


def llmft() -> Side:
    config = llmft_config()
    plan = plan_of(config)
    hold()
    source, dtype = model_source.resolve(WANTED.model, Silent()), compute_types.torch_type(config.compute_dtype)
    base = loading.load_base(source, device(), dtype, "nf4")
    loading.keep_training_layout(base)
    model = trainable(base, config, plan)
    if not on_gpu():
        keep_freed_memory()

    def batches(size: int) -> list[tuple[Any, int]]:
        rows = token_rows(WANTED, size, model.config.vocab_size)
        packed = pack([len(row) for row in rows], WANTED.length)
        sequences = [sequence_of([rows[index] for index in indices]) for indices in packed]
        longest = max(len(sequence["input_ids"]) for sequence in sequences)  # as the trainer has them padded to recorded sizes
        made = [collate(sequences[start : start + size], longest) for start in range(0, len(sequences), size)]
        return [(to_device(batch, device()), batch["token_count"]) for batch in made]

    work = partial(loss_and_gradients, model)
    recorded = recorded_passes(model, device(), work)

    loss_scale = LossScale(device()) if dtype == torch.float16 else None

    def step(batch: Any) -> torch.Tensor:
        divisor = torch.tensor(float(len(batch["predicting"])), device=device())
        run = recorded.run if recorded else work
        if loss_scale is None:
            return run(batch, divisor)
        scale = loss_scale.now()
        return run(batch, divisor / scale) / scale

    return Side(model, batches, step, (plan.batch_size,), plan, loss_scale)


def sequence_of(rows: list[list[int]]) -> dict[str, list[int]]:
    """Rows one after the other as `data/store.py` writes them: nothing predicts the first token of each."""
    return {
        "input_ids": [token for row in rows for token in row],
        "labels": [token for row in rows for token in (IGNORED, *row[1:])],
        "row_lengths": [len(row) for row in rows],
    }


def peer() -> Side:
    hold()
    unslothed = WANTED.side.startswith("unsloth")
    dtype = compute_types.torch_type(compute_types.best_type(device()))
    model = peers.load_unsloth(WANTED) if unslothed else peers.load_transformers(WANTED, device(), dtype)
    # What Unsloth's trainer does unless it is told otherwise; TRL and Trainer pad.
    join = peers.padding_free(model) if unslothed and WANTED.short_rows else peers.padded

    def batches(size: int) -> list[tuple[Any, int]]:
        rows = token_rows(WANTED, size, model.config.vocab_size)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return [(to_device(join(part), device()), sum(map(len, part))) for part in parts]

    loss = peers.trl_loss if WANTED.side == "trl" else peers.own_loss

    def step(batch: Any) -> torch.Tensor:
        with torch.autocast(device().type, dtype, enabled=dtype != torch.float32):
            found = loss(model, batch)
        found.backward()
        return found

    return Side(model, batches, step, sorted(WANTED.sizes, reverse=True), Plan(0, 1, 0, OPTIM))


def measured() -> dict[str, Any]:
    """The result for the largest size, or which size fits after all: nothing is timed once memory has run out."""
    started = time.perf_counter()
    side = llmft() if WANTED.side.startswith("llmft") else peer()
    side.model.train()
    side.model.config.use_cache = False
    loading_seconds = time.perf_counter() - started
    for size in side.sizes:
        try:
            figures = timed(side, size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            if size < side.sizes[0]:
                return {"error": OUT_OF_MEMORY, "fits": size}
            more = {"plan": asdict(side.plan)} if WANTED.side.startswith("llmft") else {}
            return {"size": size, **figures, "loading_seconds": round(loading_seconds, 1), **more}
        side.model.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
    return {"error": OUT_OF_MEMORY}


def timed(side: Side, size: int) -> dict[str, Any]:
    """Train with every batch in turn, several times over; the last times count.

    Returns:
        Median seconds of a step, tokens a second of those that are no padding, and GiB at the peak.
    """
    batches = side.batches(size)
    optimizer = optimizer_of(side)
    warmup, counted = (count * len(batches) for count in (PASSES_OF_SHORT_ROWS if WANTED.short_rows else PASSES))
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    seconds: list[list[float]] = [[] for _ in batches]
    losses = []
    for step in range(-warmup, counted):
        batch, _ = batches[step % len(batches)]
        synchronize()
        started = time.perf_counter()
        loss = side.step(batch)
        side.update(optimizer)
        optimizer.zero_grad(set_to_none=True)
        synchronize()
        if step >= 0:
            seconds[step % len(batches)].append(time.perf_counter() - started)
        losses.append(round(loss.item(), 4))
    tokens = sum(count for _, count in batches)
    # Full rows make batches that are all alike, so that one median does for all.
    passes = sum(map(statistics.median, seconds if WANTED.short_rows else [flat(seconds)] * len(batches)))
    peaks = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if on_gpu() else (0, 0)
    return {
        "step_seconds": round(statistics.median(flat(seconds)), 5),
        "tokens_per_second": round(tokens / passes),
        "peak_gibibytes": round(peaks[0] / GIBIBYTE, 3),
        "reserved_gibibytes": round(peaks[1] / GIBIBYTE, 3),
        "losses": losses,
    }


def optimizer_of(side: Side) -> torch.optim.Optimizer:
    """llmft's by its plan, and for the others what is its usual one, made without Trainer, which Unsloth patches."""
    if not WANTED.side.startswith("llmft"):
        trained = [weights for weights in side.model.parameters() if weights.requires_grad]
        return torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    optimizer = make_optimizer(side.model, side.plan.optim)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    return optimizer


def flat(lists: Iterable[list[float]]) -> list[float]:
    return [item for items in lists for item in items]


def synchronize() -> None:
    if on_gpu():
        torch.cuda.synchronize()


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch's allocator, CUDA or a library says so; not all of them raise torch's own error."""
    return isinstance(error, torch.OutOfMemoryError) or OUT_OF_MEMORY in str(error).lower()


def main() -> None:
    try:
        result = measured()
    except Exception as error:
        text = OUT_OF_MEMORY if is_out_of_memory(error) else f"{type(error).__name__}: {str(error)[:300]}"
        result = {"error": text}
    packages = {name: version_of(name) for name in PEER_PACKAGES}
    environment = {"hardware": hardware(), "versions": versions() | {"torch_cuda": torch.version.cuda} | packages}
    print(json.dumps(result | {"environment": environment}))


if __name__ == "__main__":
    main()
