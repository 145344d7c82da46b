"""Errors of LoRA gradients against an fp32 reference, for llmft's ways to train and for stock PEFT.

    python benchmarks/gradients.py OUT.json [--device cuda] [--only llama] [--seeds 20]

Small models of every architecture with fast layers, with random weights and adapters (no B is zero), on packed rows. The
base is NF4 in bf16, adapters are in fp32 as PEFT creates them; the reference is the same model in fp32 with the 16-bit
values of its NF4 weights. The baseline is `stock, autocast`: PEFT under `torch.autocast` in bf16.

Errors are ||g - reference|| / ||reference||, given for each matrix as root mean square over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from llmft_cli.base.libraries import configure_libraries, hardware, versions
from llmft_cli.training.step.checkpointing import checkpoint_layers

configure_libraries()

import torch  # noqa: E402
from transformers import AutoConfig, PreTrainedConfig  # noqa: E402

from llmft_cli.base.libraries import import_bitsandbytes  # noqa: E402
from llmft_cli.data.forms.examples import IGNORED  # noqa: E402
from llmft_cli.models import loading, random_model  # noqa: E402
from llmft_cli.models.adapters import add_adapter  # noqa: E402
from llmft_cli.models.decoder_layers import decoder_layers  # noqa: E402
from llmft_cli.settings.config import resolve  # noqa: E402
from llmft_cli.training.batches.collate import collate, to_device  # noqa: E402
from llmft_cli.training.fast import architectures  # noqa: E402
from llmft_cli.training.step.loss import loss_and_gradients, row_marks  # noqa: E402
from llmft_cli.training.step.tuned_model import make_trainable  # noqa: E402

Gradients = dict[str, torch.Tensor]
Errors = dict[str, float]
Batch = dict[str, Any]  # as `collate.collate` makes it

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma3_text")
VOCABULARY, RANK = 512, 16
HIDDEN = 256
LAYERS = (2, 4, 1)
ALONE = 1  # one layer by itself
ROW_LENGTHS = ((97, 31, 64), (50, 142))  # of the rows in each sequence
B_STANDARD_DEVIATION = 0.02  # as that of the base's weights
STOCK = "stock, autocast"


@dataclass(frozen=True)
class Way:
    """How a model is trained.

    Attributes:
        llmft: keywords of `tuned`; None where it is stock PEFT's.
        prepared: PEFT's k-bit preparation, which puts norms, embeddings and the output layer in fp32.
    """

    name: str
    llmft: dict[str, Any] | None = None
    autocast: bool = False
    prepared: bool = False


WAYS = (
    Way("fast", {}),
    Way("fast, checkpointed", {"checkpointed": None}),
    Way("fast, kept dequantised", {"kept": True}),
    Way("fast, checkpointed, kept dequantised", {"checkpointed": None, "kept": True}),
    Way("plain (--no-fast)", {"fast": False}),
    Way("plain (--no-fast), checkpointed", {"fast": False, "checkpointed": None}),
    Way(STOCK, autocast=True),
    Way("stock, no autocast"),
    Way("stock, autocast, k-bit preparation", autocast=True, prepared=True),
)


def config_of(architecture: str, layers: int, hidden: int = HIDDEN, vocabulary: int = VOCABULARY) -> PreTrainedConfig:
    """Four heads of queries and two of keys."""
    own = {"head_dim": hidden // 4} if architecture in ("qwen3", "gemma", "gemma3_text", "mistral") else {}
    return AutoConfig.for_model(
        architecture,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **own,
    )


def random_base(architecture: str, layers: int, seed: int, device: torch.device) -> Any:
    """Frozen; norms and biases are not what they are at the start of a training from nothing."""
    torch.manual_seed(seed)
    base = random_model.build(config_of(architecture, layers), device, "nf4", torch.bfloat16)
    loading.keep_training_layout(base)
    for name, weights in base.named_parameters():
        if name.endswith(".bias"):
            weights.data = torch.nn.init.normal_(weights.data.to(torch.bfloat16), std=0.1)  # as a checkpoint's
        elif "norm" in name:
            torch.nn.init.normal_(weights, 0.0 if "gemma" in architecture else 1.0, 0.2)
    return base


def draw_adapters(model: Any, seed: int) -> None:
    """The same for every model of a shape; A as PEFT draws it."""
    generator = torch.Generator().manual_seed(seed)
    for name, weights in model.named_parameters():
        if weights.requires_grad:
            values = torch.randn(weights.shape, generator=generator) * B_STANDARD_DEVIATION
            if "lora_A" in name:
                values = (torch.rand(weights.shape, generator=generator) * 2 - 1) / weights.shape[1] ** 0.5
            weights.data.copy_(values)


def tuned(base: Any, fast: bool = True, checkpointed: int | None = 0, kept: bool = False) -> Any:
    """A model as `llmft train` makes it."""
    config = resolve({"lora_r": RANK, "fast": fast})
    model = make_trainable(base, config, "random")
    if kept:
        architectures.keep_dequantized(model, True)
    checkpoint_layers(model, checkpointed)
    if bool(architectures.blocks_of(model)) != fast:
        raise RuntimeError(f"{base.config.model_type} has no fast layers")
    return model


def stock(base: Any, prepared: bool = False) -> Any:
    if prepared:
        from peft import prepare_model_for_kbit_training

        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    return add_adapter(base, resolve({"lora_r": RANK}), "random")


def reference(base: Any) -> Any:
    """The model in fp32, with the values of its NF4 weights."""
    bitsandbytes = import_bitsandbytes()
    for parent in list(base.modules()):
        for name, linear in list(parent.named_children()):
            if isinstance(linear, bitsandbytes.nn.Linear4bit):
                setattr(parent, name, dense(linear))
    del base.config.quantization_config
    base.is_loaded_in_4bit = False
    return stock(base.float())


def dense(linear: Any) -> torch.nn.Linear:
    made = torch.nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    weight = import_bitsandbytes().functional.dequantize_4bit(linear.weight, linear.weight.quant_state)
    made.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
    if linear.bias is not None:
        made.bias = torch.nn.Parameter(linear.bias.detach().float(), requires_grad=False)
    return made


def random_batch(seed: int, device: torch.device, row_lengths: Iterable[Sequence[int]] = ROW_LENGTHS) -> Batch:
    """Sequences of several rows, in each of which two thirds are supervised."""
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for lengths in row_lengths:
        ids = torch.randint(3, VOCABULARY, (sum(lengths),), generator=generator).tolist()
        supervised = [place >= length // 3 for length in lengths for place in range(length)]
        labels = [token if known else IGNORED for token, known in zip(ids, supervised, strict=True)]
        sequences.append({"input_ids": ids, "labels": labels, "row_lengths": list(lengths)})
    return to_device(collate(sequences), device)


def of_a_model(model: Any, way: Way, batch: Batch) -> None:
    """Gradients of the mean loss of the supervised tokens."""
    if way.llmft is not None:
        loss_and_gradients(model, batch, torch.tensor(float(len(batch["targets"])), device=model.device))
        return
    with autocast(way, model.device):
        inputs = {name: batch[name] for name in ("input_ids", "labels", "position_ids")}
        loss = model(**inputs, use_cache=False).loss
    loss.backward()


def of_a_layer(model: Any, way: Way, batch: Batch) -> None:
    """Gradients of a layer by itself, from random ones of its output; both they and its input are exact in bf16."""
    decoder = model.get_base_model().get_decoder()
    decoder.norm = torch.nn.Identity()
    generator = torch.Generator().manual_seed(batch["input_ids"][0, 0].item())
    shape = (*batch["input_ids"].shape, model.config.hidden_size)
    hidden, gradient = (torch.randn(shape, generator=generator).bfloat16().to(model.device) for _ in range(2))
    kind = next(decoder_layers(model)[0].input_layernorm.parameters()).dtype
    marks = row_marks(model.get_base_model(), batch)
    with autocast(way, model.device):
        outputs = decoder(inputs_embeds=hidden.to(kind), use_cache=False, **marks).last_hidden_state
    outputs.backward(gradient.to(outputs.dtype))


def autocast(way: Way, device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if way.autocast else nullcontext()


def gradients_of(
    way: Way, make: Callable[[Any], Any], architecture: str, layers: int, seed: int, device: torch.device
) -> Gradients:
    model = make(random_base(architecture, layers, seed, device)).train()
    draw_adapters(model, seed)
    (of_a_layer if layers == ALONE else of_a_model)(model, way, random_batch(seed, device))
    return {name: weights.grad.double() for name, weights in model.named_parameters() if weights.requires_grad}


def maker_of(way: Way) -> Callable[[Any], Any]:
    options = way.llmft
    if options is None:
        return lambda base: stock(base, way.prepared)
    return lambda base: tuned(base, **options)


def errors_of(architecture: str, layers: int, seeds: int, device: torch.device) -> dict[str, Errors]:
    """By way and matrix, over the seeds."""
    squares: dict[str, dict[str, list[float]]] = {way.name: defaultdict(list) for way in WAYS}
    for seed in range(seeds):
        exact = gradients_of(Way("reference"), reference, architecture, layers, seed, device)
        for way in WAYS:
            found = gradients_of(way, maker_of(way), architecture, layers, seed, device)
            if found.keys() != exact.keys():
                raise RuntimeError(f"{way.name} trains other matrices than the reference")
            for name, gradient in found.items():
                squares[way.name][name].append(((gradient - exact[name]).norm() / exact[name].norm()).item() ** 2)
    return {way: {name: statistics.fmean(all_) ** 0.5 for name, all_ in those.items()} for way, those in squares.items()}


def summary(errors: Errors, measure: Errors) -> dict[str, float]:
    """Of one way, beside the way that it is held to."""
    ratios = [errors[name] / measure[name] for name in errors]
    return {
        "median": statistics.median(errors.values()),
        "worst": max(errors.values()),
        "ratio_of_medians": statistics.median(errors.values()) / statistics.median(measure.values()),
        "median_ratio": statistics.median(ratios),
        "worst_ratio": max(ratios),
    }


def lines(title: str, ways: dict[str, dict[str, float]]) -> list[str]:
    head = f"{title:38} {'median':>8} {'worst':>8} {'of medians':>11} {'median':>8} {'worst':>8}  (ratios to {STOCK})"
    rows = [
        f"  {way:36} {one['median']:8.5f} {one['worst']:8.5f} {one['ratio_of_medians']:11.3f} "
        f"{one['median_ratio']:8.3f} {one['worst_ratio']:8.3f}"
        for way, one in ways.items()
    ]
    return [head, *rows]


def measured(architecture: str, layers: int, seeds: int, device: torch.device) -> dict[str, Any]:
    errors = errors_of(architecture, layers, seeds, device)
    ways = {way: summary(those, errors[STOCK]) for way, those in errors.items()}
    what = "one layer alone" if layers == ALONE else f"{layers} layers"
    print("\n".join(lines(f"{architecture}, {what}, width {HIDDEN}", ways)), flush=True)
    rounded = {way: {name: round(error, 6) for name, error in those.items()} for way, those in errors.items()}
    return {"architecture": architecture, "layers": layers, "ways": ways, "errors": rounded}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default="", help="only architectures whose name starts with this")
    parser.add_argument("--seeds", type=int, default=5, help="number of random models, adapters and inputs")
    arguments = parser.parse_args()
    started = time.perf_counter()
    device = torch.device(arguments.device)
    cases = []
    for architecture, layers in product(ARCHITECTURES, LAYERS):
        if architecture.startswith(arguments.only):
            cases.append(measured(architecture, layers, arguments.seeds, device))
            record = record_of(cases, device, arguments.seeds) | {"seconds": round(time.perf_counter() - started, 1)}
            arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print("\n".join(f"worst ratio of all: {name:36} {ratio:.3f}" for name, ratio in record["worst_ratio"].items()))


def record_of(cases: list[dict[str, Any]], device: torch.device, seeds: int) -> dict[str, Any]:
    return {
        "what": __doc__.splitlines()[0],
        "hardware": hardware(),
        "versions": versions(),
        "device": device.type,
        "seeds": seeds,
        "hidden_size": HIDDEN,
        "worst_ratio": {way.name: max(case["ways"][way.name]["worst_ratio"] for case in cases) for way in WAYS},
        "cases": cases,
    }


if __name__ == "__main__":
    main()
