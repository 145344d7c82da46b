"""The fast layers' kernels in isolation, compared with liger-kernel and torch.compile.

    python benchmarks/layer_kernels.py OUT.json

Forward and backward pass of everything but matrix products in a layer of Llama-2-7B, for four sequences of 2,048 tokens, and
of the output layer with its loss. Each is replayed as a CUDA graph, so launch times do not count. Liger must be importable.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmft_cli.base.libraries import configure_libraries, hardware, version_of, versions

configure_libraries()

import torch  # noqa: E402
from liger_kernel import ops as liger  # noqa: E402
from torch.nn.functional import cross_entropy, silu  # noqa: E402
from triton.testing import do_bench_cudagraph  # noqa: E402

from llmft_cli.training.fast.kernels import triton as ours  # noqa: E402
from llmft_cli.training.fast.output_loss import output_loss  # noqa: E402

SEQUENCES, LENGTH, HIDDEN, INTERMEDIATE, HEADS, VOCABULARY = 4, 2048, 4096, 11_008, 32, 32_000
TOKENS, HEAD_DIM, EPSILON = SEQUENCES * LENGTH, HIDDEN // HEADS, 1e-5
Run = Callable[[], Any]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def pass_of(function: Callable[..., Any], inputs: list[torch.Tensor], gradient: torch.Tensor | list[torch.Tensor]) -> Run:
    """Forward and backward of a function of inputs that want gradients."""
    leaves = [one.requires_grad_() for one in inputs]

    def run() -> Any:
        # Some write to their inputs, which leaves may not be.
        outputs = function(*(leaf.view_as(leaf) for leaf in leaves))
        return torch.autograd.grad(outputs, leaves, gradient)

    return run


def norms() -> dict[str, Run]:
    """x / rms(x) * w, whose weight is frozen."""
    rows, weight, gradient = random(TOKENS, HIDDEN), random(HIDDEN), random(TOKENS, HIDDEN)
    scales, outputs, nothing = torch.empty(TOKENS, device="cuda"), random(TOKENS, HIDDEN), torch.zeros_like(gradient)

    def fused() -> None:
        ours.rms_norm(rows, weight, EPSILON, outputs, scales)
        ours.rms_norm_backward(gradient, rows, weight, scales, nothing, outputs)

    def formula(inputs: torch.Tensor) -> torch.Tensor:
        exact = inputs.float()
        return weight * (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + EPSILON)).to(inputs.dtype)

    def by_liger(inputs: torch.Tensor) -> torch.Tensor:
        return liger.LigerRMSNormFunction.apply(inputs, weight, EPSILON)

    peer = rows.clone()
    return {
        "llmft": fused,
        "liger": pass_of(by_liger, [peer], gradient),
        "compile": pass_of(torch.compile(formula), [peer], gradient),
    }


def activations() -> dict[str, Run]:
    """silu(gate) * up; llmft's backward pass computes it again and leaves it, for the product's gradient."""
    gate_up, gradient, outputs = random(TOKENS, 2 * INTERMEDIATE), random(TOKENS, INTERMEDIATE), random(TOKENS, INTERMEDIATE)

    def fused() -> None:
        ours.gated(gate_up, "silu", outputs)
        ours.gated_backward(gate_up, "silu", outputs)

    inputs = [part.contiguous() for part in gate_up.chunk(2, -1)]
    return {
        "llmft": fused,
        "liger": pass_of(liger.LigerSiLUMulFunction.apply, inputs, gradient),
        "compile": pass_of(torch.compile(lambda gate, up: silu(gate) * up), inputs, gradient),
    }


def rotations() -> dict[str, Run]:
    """Queries and keys; llmft has them side by side in one matrix."""
    angles = torch.randn(TOKENS, HEAD_DIM // 2, device="cuda").repeat(1, 2)
    cosines, sines = angles.cos().bfloat16(), angles.sin().bfloat16()
    both = random(TOKENS, 2 * HIDDEN)

    def fused() -> None:
        ours.rotate(both, both, cosines, sines, backward=False)
        ours.rotate(both, both, cosines, sines, backward=True)

    def turned(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        first, second = states.chunk(2, -1)
        return states * cosine + torch.cat([-second, first], -1) * sine

    by_sequence = [part.view(SEQUENCES, LENGTH, HEAD_DIM) for part in (cosines, sines)]
    of_heads = [part.unsqueeze(1) for part in by_sequence]
    inputs = [random(SEQUENCES, LENGTH, HEADS, HEAD_DIM).transpose(1, 2) for _ in range(2)]
    gradients = [random(SEQUENCES, LENGTH, HEADS, HEAD_DIM).transpose(1, 2) for _ in range(2)]

    def by_liger(query: torch.Tensor, key: torch.Tensor) -> Any:
        return liger.LigerRopeFunction.apply(query, key, *by_sequence)

    def formula(query: torch.Tensor, key: torch.Tensor) -> Any:
        return turned(query, *of_heads), turned(key, *of_heads)

    return {
        "llmft": fused,
        "liger": pass_of(by_liger, inputs, gradients),
        "compile": pass_of(torch.compile(formula), inputs, gradients),
    }


def output_losses() -> dict[str, Run]:
    """Cross entropy of a frozen output layer's logits, and the hidden states' gradient."""
    hidden, weight = random(TOKENS, HIDDEN), 0.02 * random(VOCABULARY, HIDDEN)
    targets = torch.randint(VOCABULARY, (TOKENS,), device="cuda")
    everywhere, one = torch.arange(TOKENS, device="cuda"), torch.ones((), device="cuda")

    def fused(rows: torch.Tensor) -> torch.Tensor:
        return output_loss(rows, everywhere, targets, weight)

    def by_liger(rows: torch.Tensor) -> torch.Tensor:
        options = (None, None, -100, 0.0, 0.0, "sum")  # bias, weights of classes, ignored, z loss, smoothing, reduction
        return liger.LigerFusedLinearCrossEntropyFunction.apply(rows, weight, targets, *options)[0]

    def formula(rows: torch.Tensor) -> torch.Tensor:
        return cross_entropy((rows @ weight.t()).float(), targets, reduction="sum")

    return {
        "llmft": pass_of(fused, [hidden], one),
        "liger": pass_of(by_liger, [hidden], one),
        "compile": pass_of(torch.compile(formula), [hidden], one),
    }


def milliseconds(run: Run) -> float:
    for _ in range(3):  # compiles, and has what is compiled choose its kernels
        run()
    return round(do_bench_cudagraph(run, rep=100, return_mode="median"), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    found: dict[str, dict[str, float | str]] = {}
    packages = {name: version_of(name) for name in ("liger-kernel", "triton")}
    record: dict[str, Any] = {"what": __doc__.splitlines()[0], "hardware": hardware(), "versions": versions() | packages}
    for sides in (norms, activations, rotations, output_losses):
        for side, run in sides().items():
            try:
                took: float | str = milliseconds(run)
            except Exception as error:  # a peer that cannot be recorded is no reason to measure no other
                took = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            found.setdefault(sides.__name__, {})[side] = took
        print(f"{sides.__name__}: {found[sides.__name__]}", flush=True)
        arguments.out.write_text(json.dumps(record | {"milliseconds": found}, indent=2) + "\n")
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
