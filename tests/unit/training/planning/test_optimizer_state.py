"""The size of optimizer states: by arithmetic, as allocated on a CPU, and as measured on an H100."""

from __future__ import annotations

import pytest
import torch

from llmft_cli.training.planning.memory import breakdown_of, holdings
from llmft_cli.training.planning.optimizer_state import paged_state, rounded_up, state_on_gpu, whole_state
from llmft_cli.training.planning.simulation import full_batch, simulate
from llmft_cli.training.profiling.measuring import make_optimizer

from ..meta_models import SHAPES, on_meta, shape_of, small_shape

# Adapters of rank 16 in each layer of Llama-2-7B: A and B of q, k, v and o, A of gate and up, and B of down are
# 16 x 4096; the three others are 16 x 11008.
SMALL, LARGE, LAYERS = 16 * 4096, 16 * 11_008, 32
LLAMA_2_7B = [SMALL] * 11 * LAYERS + [LARGE] * 3 * LAYERS
# `code` of dynamic quantisation for one kind of state: 256 values in fp32.
TABLE = 1024


@pytest.mark.parametrize(
    ("optim", "small", "large", "beside"),
    [
        ("adamw_torch", 2 * 4 * SMALL, 2 * 4 * LARGE, 0),
        ("adamw_torch_fused", 2 * 4 * SMALL + 512, 2 * 4 * LARGE + 512, 0),
        # A scale in fp32 for 256 values: 1,024 bytes, and 2,752 that take 3,072.
        ("adamw_8bit", 2 * (SMALL + 1024), 2 * (LARGE + 3072), 2 * TABLE),
        ("lion_8bit", SMALL + 1024, LARGE + 3072, TABLE),
        ("lion_32bit", 4 * SMALL, 4 * LARGE, 0),
        # Paged from 100,000 values on; scales never are.
        ("paged_adamw_8bit", 2 * (SMALL + 1024), 2 * 3072, 2 * TABLE),
        ("paged_lion_8bit", SMALL + 1024, 3072, TABLE),
        ("paged_adamw_32bit", 2 * 4 * SMALL, 0, 0),
        ("sgd", 0, 0, 0),
        ("an optimizer of next year", 2 * 4 * SMALL, 2 * 4 * LARGE, 0),
    ],
)
def test_the_state_of_llama_2_7b_by_arithmetic(optim: str, small: int, large: int, beside: int) -> None:
    assert state_on_gpu(LLAMA_2_7B, optim) == LAYERS * (11 * small + 3 * large) + beside


def test_tensors_too_small_for_8_bits_have_their_state_in_32() -> None:
    assert state_on_gpu([4095], "adamw_8bit") == 2 * rounded_up(4 * 4095) == 2 * 16_384
    assert state_on_gpu([4096], "adamw_8bit") == 2 * (4096 + 512) + 2 * TABLE
    assert whole_state([4095, 4096], "paged_lion_8bit") == 4 * 4095 + 4096 + 4 * 16


def test_what_is_paged_is_in_the_hosts_memory_when_the_card_is_full() -> None:
    assert paged_state(LLAMA_2_7B, "paged_adamw_8bit") == 2 * LARGE * 3 * LAYERS
    assert paged_state([99_999, 100_000], "paged_lion_32bit") == 400_000
    assert paged_state(LLAMA_2_7B, "adamw_8bit") == 0


@pytest.mark.slow
def test_a_paged_optimizer_holds_what_an_h100_measured() -> None:
    """Llama-2-7B, one sequence of 2,048 tokens, rank 16, all layers checkpointed, embeddings on the CPU.

    With no state on the card at all, 5,030,734,848 bytes were predicted and 5,078,217,728 measured: 47,482,880 more,
    of which the batch is 24 bytes a token, and 16 KiB were predicted too much.
    """
    state = state_on_gpu(LLAMA_2_7B, "paged_adamw_8bit")
    assert state == 5_078_217_728 - 5_030_734_848 - 24 * 2048 + 16 * 1024
    model = on_meta(shape_of(SHAPES["llama-2-7b"]), None, fast=False)
    breakdown = breakdown_of(holdings(model), simulate(model, full_batch(1, 2048)), "paged_adamw_8bit", embeddings_on_cpu=True)
    assert breakdown.optimizer == state


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "lion_8bit", "adamw_8bit", "lion_32bit"])
@pytest.mark.parametrize("values", [1024, 2**16, 2**16 + 16])
def test_known_states_are_those_that_the_optimizers_make(optim: str, values: int) -> None:
    """Where the optimizer runs on the CPU, its state after a step is counted, without the table of 8-bit values."""
    model = torch.nn.Linear(values // 16, 16, bias=False)
    optimizer = make_optimizer(model, optim)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    state = optimizer.state[model.weight].items()
    kept = [entry for name, entry in state if isinstance(entry, torch.Tensor) and not name.startswith(("qmap", "step"))]
    assert sum(entry.numel() * entry.element_size() for entry in kept) == whole_state([values], optim)


def test_a_models_adapters_are_what_the_state_is_of() -> None:
    model = on_meta(small_shape(), lora_r=8)
    breakdown = breakdown_of(holdings(model), simulate(model, full_batch(1, 64)), "adamw_torch")
    # Inputs and outputs of a layer: query and output 128 and 128, key and value 128 and 64, three of 128 and 256.
    assert breakdown.optimizer == 2 * 4 * 2 * 8 * (2 * 256 + 2 * 192 + 3 * 384)
