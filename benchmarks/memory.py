"""Predicted against measured peak memory of training steps on one GPU, over many configurations.

    python benchmarks/memory.py OUT.json [--only NAME] [--no-fast]

Models have the shapes of real ones and random weights, and are quantised on the GPU, layer by layer. Each case is limited to
its predicted requirement, so a wrong prediction runs out of memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmft_cli.base.libraries import configure_libraries, hardware, versions

configure_libraries()  # sets up the allocator as `llmft train` does, before torch is imported

import torch  # noqa: E402
from transformers import LlamaConfig  # noqa: E402

from llmft_cli.models import random_model  # noqa: E402
from llmft_cli.models.decoder_layers import decoder_layers  # noqa: E402
from llmft_cli.settings.config import resolve  # noqa: E402
from llmft_cli.training.device_memory import hold_to  # noqa: E402
from llmft_cli.training.fast import architectures  # noqa: E402
from llmft_cli.training.planning.options import Predictor  # noqa: E402
from llmft_cli.training.planning.simulation import BatchShape  # noqa: E402
from llmft_cli.training.planning.speed import REFERENCE_RATES  # noqa: E402
from llmft_cli.training.profiling.measuring import measure  # noqa: E402
from llmft_cli.training.step.tuned_model import apply_plan, make_trainable  # noqa: E402

GIBIBYTE = 2**30
MOST_TIMED_TOKENS = 2**14  # with more, one step takes seconds
SHAPES = {
    "llama-2-7b": (32000, 4096, 11008, 32, 32, 32),
    "llama-2-13b": (32000, 5120, 13824, 40, 40, 40),
    "llama-2-70b": (32000, 8192, 28672, 80, 64, 8),
    "smollm2-135m": (49152, 576, 1536, 30, 9, 3),
    "mistral-7b (8 key-value heads)": (32000, 4096, 14336, 32, 32, 8),
    "llama-3-8b (128,256 tokens)": (128256, 4096, 14336, 32, 32, 8),
}


@dataclass(frozen=True)
class Case:
    """`checkpointed` layers (None: all); `rows` packed into each sequence; what the process may take (0: what is predicted)."""

    shape: str
    sequences: int
    length: int
    checkpointed: int | None = None
    lora_r: int = 16
    optim: str = "adamw_torch_fused"
    rows: int = 1
    max_vram_gibibytes: int = 0
    embeddings_on_cpu: bool = False
    dequantized_weights: bool = False
    activation_offloading: bool = False

    @property
    def needs_fast_layers(self) -> bool:
        return self.dequantized_weights or self.activation_offloading


# Paged optimizers last: bitsandbytes never gives back what it pages, and it would count as the next case's.
CASES = [
    Case("llama-2-7b", 1, 512),
    Case("llama-2-7b", 1, 2048),
    Case("llama-2-7b", 4, 2048),
    Case("llama-2-7b", 4, 2048, 0),
    Case("llama-2-7b", 4, 2048, 16),
    Case("llama-2-7b", 1, 4096),
    Case("llama-2-7b", 8, 512, 0),
    Case("llama-2-7b", 2, 8192),
    Case("llama-2-7b", 8, 8192, None, 8, "adamw_8bit"),
    Case("llama-2-7b", 2, 2048, None, 128),
    Case("llama-2-7b", 2, 2048, 0, 128, "adamw_8bit"),
    Case("llama-2-7b", 1, 8192, 0),
    Case("llama-2-7b", 1, 8192, None, rows=16),
    Case("llama-2-7b", 4, 2048, 0, rows=8),
    Case("llama-2-13b", 1, 2048),
    Case("llama-2-13b", 2, 2048, 0, 8),
    Case("llama-2-13b", 4, 4096, None, 16, "adamw_8bit"),
    Case("llama-2-13b", 1, 2048, 20, 64),
    Case("llama-2-70b", 1, 2048, None, 16, "adamw_8bit"),
    Case("llama-2-70b", 1, 512, None, 8),
    Case("smollm2-135m", 8, 2048, 0),
    Case("smollm2-135m", 16, 1024),
    Case("smollm2-135m", 1, 512, 0, 8),
    Case("smollm2-135m", 8, 2048, 0, rows=8),
    Case("mistral-7b (8 key-value heads)", 4, 2048),
    Case("mistral-7b (8 key-value heads)", 2, 2048, 0, 64),
    Case("mistral-7b (8 key-value heads)", 1, 8192, 16),
    Case("llama-3-8b (128,256 tokens)", 4, 2048),
    Case("llama-3-8b (128,256 tokens)", 1, 8192),
    Case("llama-2-7b", 4, 2048, 0, dequantized_weights=True),
    Case("smollm2-135m", 16, 1024, 0, dequantized_weights=True),
    Case("llama-2-7b", 4, 2048, activation_offloading=True),
    Case("llama-2-7b", 2, 8192, activation_offloading=True),
    Case("smollm2-135m", 16, 1024, activation_offloading=True),
    Case("llama-3-8b (128,256 tokens)", 8, 512, 0, 16, "paged_adamw_8bit"),
    Case("llama-2-7b", 1, 2048, None, 16, "paged_adamw_8bit", 1, 6, embeddings_on_cpu=True),
    Case("llama-2-7b", 1, 4096, None, 16, "paged_adamw_8bit", 1, 8, embeddings_on_cpu=True),
    Case("llama-2-13b", 1, 2048, None, 16, "paged_adamw_8bit", 1, 10, embeddings_on_cpu=True),
    Case("llama-2-70b", 1, 2048, None, 16, "paged_adamw_8bit", 1, 45, embeddings_on_cpu=True),
]


def config_of(name: str) -> LlamaConfig:
    vocabulary, hidden, intermediate, layers, heads, key_value_heads = SHAPES[name]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=name.startswith("smollm"),
    )


def run(case: Case, fast: bool) -> dict[str, Any]:
    """Predict a case, then train it held to what is required, or to its own budget: it must not run out."""
    settings = {"lora_r": case.lora_r, "model": case.shape, "optim": case.optim, "batch_size": case.sequences}
    config = resolve(settings | {"fast": fast})
    rows = case.sequences * case.rows
    batch = BatchShape(case.sequences, case.length, case.sequences * (case.length - 1), rows, case.length // case.rows)

    def model_on(device: str) -> Any:
        base = random_model.build(config_of(case.shape), torch.device(device), "nf4", torch.bfloat16)
        return make_trainable(base, config, case.shape)

    started = time.perf_counter()
    on_meta = model_on("meta")
    layers = len(decoder_layers(on_meta)) if case.checkpointed is None else case.checkpointed
    predictor = Predictor(on_meta, config, batch, REFERENCE_RATES)
    switches = {name: getattr(case, name) for name in ("embeddings_on_cpu", "dequantized_weights", "activation_offloading")}
    option = predictor.predict(replace(predictor.checkpointed, checkpointed_layers=layers, optim=case.optim, **switches))
    predicting_seconds = time.perf_counter() - started
    gc.collect()
    torch.cuda.empty_cache()
    started = time.perf_counter()
    hold_to(case.max_vram_gibibytes * GIBIBYTE or option.required_bytes, torch.device("cuda", 0))
    model = model_on("cuda:0")
    apply_plan(model, option.plan)
    building_seconds = time.perf_counter() - started
    measured = measure(model, batch, case.optim, steps=3 if batch.tokens <= MOST_TIMED_TOKENS else 1)
    return asdict(case) | {
        "fast": bool(architectures.blocks_of(model)),
        "predicted_bytes": option.breakdown.total,
        "required_bytes": option.required_bytes,
        "measured": asdict(measured),
        "error": option.breakdown.total / measured.peak_bytes - 1,
        "breakdown": asdict(option.breakdown),
        "predicting_seconds": round(predicting_seconds, 2),
        "building_seconds": round(building_seconds, 2),
        "predicted_tokens_per_second": round(option.tokens_per_second),
        "tokens_per_second": round(batch.tokens / measured.step_seconds),
    }


def line(case: Case, result: dict[str, Any]) -> str:
    what = f"{case.shape[:12]:12} {case.sequences}x{case.length}/{case.rows} r={case.lora_r} checkpointed={case.checkpointed}"
    what += " kept dequantised" if case.dequantized_weights else ""
    what += " offloaded" if case.activation_offloading else ""
    if "measured" not in result:
        return f"{what}: {result['out_of_memory']}"
    measured = result["measured"]
    sizes = (result["predicted_bytes"], measured["peak_bytes"], measured["reserved_bytes"], result["required_bytes"])
    predicted, peak, reserved, required = (f"{size / GIBIBYTE:.2f}" for size in sizes)
    context = f"{measured['context_bytes'] / GIBIBYTE:.2f}"
    return (
        f"{what}: predicted {predicted}, measured {peak} GiB ({result['error']:+.2%}), reserved {reserved} + {context}, "
        f"required {required}, {result['tokens_per_second']:,} tokens/s ({result['predicted_tokens_per_second']:,} predicted)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="only shapes whose name starts with this")
    parser.add_argument("--no-fast", action="store_true", help="use plain layers in the cases that support them")
    arguments = parser.parse_args()
    results = []
    for case in CASES:
        if not case.shape.startswith(arguments.only) or (arguments.no_fast and case.needs_fast_layers):
            continue
        try:
            results.append(run(case, not arguments.no_fast))
        except torch.OutOfMemoryError as error:
            results.append(asdict(case) | {"out_of_memory": str(error).splitlines()[0]})
        print(line(case, results[-1]), flush=True)
        record = {"what": __doc__.splitlines()[0], "hardware": hardware(), "versions": versions(), "cases": results}
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")
        gc.collect()


if __name__ == "__main__":
    main()
