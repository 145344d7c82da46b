"""Size of the optimizer state, in GPU memory and in unified (paged) memory.

As allocated by bitsandbytes 0.50.2 (`optim/optimizer.py`: `init_state`, `get_state_buffer`) and by torch's fused AdamW.
On an H100 it is exact to the byte: Llama-2-7B with paged_adamw_8bit at rank 16 has 47.4 MB.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llmft_cli.training.planning.simulation import ALLOCATION_BYTES

FP32_BYTES = 4
LEAST_8BIT_VALUES = 4096  # `min_8bit_size`: smaller tensors have fp32 state
# Smaller tensors' state is never paged. Paged state is unified memory, which is evicted to the host when the GPU is
# full; torch does not count it. Scales are never paged.
LEAST_PAGED_VALUES = 100_000
SCALE_BLOCK = 256  # values per scale
TABLE_BYTES = 256 * FP32_BYTES  # the quantisation table, one for each copy of the state


@dataclass(frozen=True)
class StateFormat:
    """The format of an optimizer's state.

    Attributes:
        copies: state tensors per trained tensor, each of its size.
        bits: per state value, for tensors that are large enough.
        counts_on_gpu: whether each tensor has its step count on the GPU.
    """

    copies: int
    bits: int = 32
    counts_on_gpu: bool = False


# By transformers' names, without the prefix `paged_`.
OPTIMIZER_STATES = {
    "adamw_torch": StateFormat(2),
    "adamw_torch_fused": StateFormat(2, counts_on_gpu=True),
    "adamw_32bit": StateFormat(2),
    "adamw_8bit": StateFormat(2, 8),
    "adamw_bnb_8bit": StateFormat(2, 8),
    "lion_32bit": StateFormat(1),
    "lion_8bit": StateFormat(1, 8),
    "sgd": StateFormat(0),
}
DEFAULT_FORMAT = StateFormat(2)


def rounded_up(size: int) -> int:
    """Bytes that torch's allocator uses for a tensor of `size` bytes."""
    return -(-size // ALLOCATION_BYTES) * ALLOCATION_BYTES


def format_of(optim: str) -> StateFormat:
    return OPTIMIZER_STATES.get(optim.removeprefix("paged_"), DEFAULT_FORMAT)


def state_on_gpu(sizes: Iterable[int], optim: str) -> int:
    """Bytes that torch allocates on the GPU for the state of tensors of these sizes, in values."""
    state_format = format_of(optim)
    total = 0
    in_8_bits = False
    for values in sizes:
        copy, scales = state_of(values, state_format)
        in_8_bits |= scales > 0
        on_gpu = 0 if is_paged(values, optim) else rounded_up(copy)
        total += state_format.copies * (on_gpu + rounded_up(scales)) + (ALLOCATION_BYTES if state_format.counts_on_gpu else 0)
    return total + (state_format.copies * TABLE_BYTES if in_8_bits else 0)


def paged_state(sizes: Iterable[int], optim: str) -> int:
    """Bytes of the state in unified memory."""
    state_format = format_of(optim)
    return sum(state_format.copies * state_of(values, state_format)[0] for values in sizes if is_paged(values, optim))


def whole_state(sizes: Iterable[int], optim: str) -> int:
    """Bytes of the whole state, as in a file."""
    state_format = format_of(optim)
    return sum(state_format.copies * sum(state_of(values, state_format)) for values in sizes)


def state_of(values: int, state_format: StateFormat) -> tuple[int, int]:
    """Bytes of one copy of a tensor's state, and of its scales."""
    if state_format.bits == 8 and values >= LEAST_8BIT_VALUES:
        return values, -(-values // SCALE_BLOCK) * FP32_BYTES
    return values * FP32_BYTES, 0


def is_paged(values: int, optim: str) -> bool:
    return optim.startswith("paged_") and values >= LEAST_PAGED_VALUES
