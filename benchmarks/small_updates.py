"""How much of a small adapter update shows in the loss, with llmft's fast and plain layers and with stock PEFT.

    python benchmarks/small_updates.py OUT.json [--device cuda] [--hidden 1024]

Two Llama layers with random NF4 weights and B = 0, as at the start of a training, take one step along the sign of B's fp32
gradient, like Adam's first step. The change of the loss is compared with that in fp32: if a base output is rounded to 16
bits before the adapter's output is added, most of a small step is rounded away. The same is measured for a single matrix
product, computed in several ways.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradients
import torch
from gradients import STOCK, WAYS, Way

from llmft_cli.base.libraries import hardware, versions
from llmft_cli.models import loading, random_model
from llmft_cli.training.step.loss import summed_loss

REFERENCE = Way("fp32")
COMPARED = [way for way in WAYS if way.name in ("fast", "plain (--no-fast)", STOCK)]
STEPS = (1e-5, 3e-5, 1e-4, 3e-4)
VOCABULARY, TOKENS = 32_000, 2048
ROW_LENGTHS = ((297, 131, 84), (350, 162), (512,), (20, 492))
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def adapter_first(inputs: torch.Tensor, projected: torch.Tensor, weight: torch.Tensor, lora_b: torch.Tensor) -> torch.Tensor:
    return (projected @ lora_b.t()).addmm_(inputs, weight.t())


def base_first(inputs: torch.Tensor, projected: torch.Tensor, weight: torch.Tensor, lora_b: torch.Tensor) -> torch.Tensor:
    return (inputs @ weight.t()).addmm_(projected, lora_b.t())


def one_product(inputs: torch.Tensor, projected: torch.Tensor, weight: torch.Tensor, lora_b: torch.Tensor) -> torch.Tensor:
    return torch.cat([inputs, projected], 1) @ torch.cat([weight, lora_b], 1).t()


PRODUCTS: dict[str, Product] = {
    "addmm onto the adapter's part": adapter_first,
    "addmm onto the base's output": base_first,
    "one product": one_product,
}


def shares_of_products(hidden: int, device: torch.device) -> dict[str, list[float]]:
    """Of updates of B of each size, how much there is in outputs, by the projection on the exact update."""
    torch.manual_seed(0)
    inputs = torch.randn(TOKENS, hidden, device=device).bfloat16()
    weight = (0.02 * torch.randn(hidden, hidden, device=device)).bfloat16()
    projected = inputs @ ((2 * torch.rand(16, hidden, device=device) - 1) / hidden**0.5).bfloat16().t()
    signs = torch.randn(hidden, 16, device=device).sign()
    found: dict[str, list[float]] = {name: [] for name in PRODUCTS}
    for step in STEPS:
        lora_b = (step * signs).bfloat16()
        update = projected.double() @ lora_b.double().t()
        for name, product in PRODUCTS.items():
            without = product(inputs, projected, weight, torch.zeros_like(lora_b))
            change = product(inputs, projected, weight, lora_b).double() - without
            found[name].append(((change * update).sum() / update.square().sum()).item())
    return found


def drawn_model(way: Way, hidden: int, device: torch.device) -> Any:
    torch.manual_seed(0)
    config = gradients.config_of("llama", 2, hidden, VOCABULARY)
    base = random_model.build(config, device, "nf4", torch.bfloat16)
    loading.keep_training_layout(base)
    model = gradients.reference(base) if way is REFERENCE else gradients.maker_of(way)(base)
    gradients.draw_adapters(model, 0)
    return model.train()


def matrices_b(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: weights for name, weights in model.named_parameters() if "lora_B" in name}


def loss_of(model: Any, way: Way) -> torch.Tensor:
    """In nats per token, with the graph: without gradients plain layers compute as PEFT's."""
    batch = gradients.random_batch(0, model.device, ROW_LENGTHS)
    if way.llmft is not None:
        return summed_loss(model, batch) / len(batch["targets"])
    with gradients.autocast(way, model.device):
        inputs = {name: batch[name] for name in ("input_ids", "labels", "position_ids")}
        loss: torch.Tensor = model(**inputs, use_cache=False).loss
    return loss


def changes(model: Any, way: Way, signs: dict[str, torch.Tensor]) -> list[float]:
    """What a step of each size does to the loss."""
    losses = []
    for step in (0.0, *STEPS):
        for name, weights in matrices_b(model).items():
            weights.data.copy_(-step * signs[name])
        losses.append(loss_of(model, way).item())
    return [loss - losses[0] for loss in losses[1:]]


def shares_of_losses(hidden: int, device: torch.device) -> dict[str, list[float]]:
    model = drawn_model(REFERENCE, hidden, device)
    for weights in matrices_b(model).values():
        weights.data.zero_()
    loss_of(model, REFERENCE).backward()  # type: ignore[no-untyped-call]
    signs = {name: weights.grad.sign() for name, weights in matrices_b(model).items() if weights.grad is not None}
    exact = changes(model, REFERENCE, signs)
    del model
    found = {}
    for way in COMPARED:
        there = changes(drawn_model(way, hidden, device), way, signs)
        found[way.name] = [one / other for one, other in zip(there, exact, strict=True)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--hidden", type=int, default=4096)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    shares = {
        "products": shares_of_products(arguments.hidden, device),
        "losses": shares_of_losses(arguments.hidden, device),
    }
    for kind, ways in shares.items():
        print(f"{kind:30}" + "".join(f"{step:>9.0e}" for step in STEPS))
        for name, those in ways.items():
            print(f"  {name:28}" + "".join(f"{share:9.2f}" for share in those))
    record = {"what": __doc__.splitlines()[0], "hardware": hardware(), "versions": versions(), "device": device.type}
    record |= {"hidden_size": arguments.hidden, "steps": STEPS, "shares": shares}
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
