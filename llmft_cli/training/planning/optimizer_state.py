"""What an optimizer keeps of each trained tensor, on the card and in memory that the card shares with the host.

As bitsandbytes 0.50.2 (`optim/optimizer.py`: `init_state`, `get_state_buffer`) and torch's fused AdamW make it.
Against an H100's peaks it is exact to the byte: Llama-2-7B with paged_adamw_8bit at rank 16 holds 47.4 MB of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llmft_cli.training.planning.simulation import ALLOCATION_BYTES

FP32_BYTES = 4
LEAST_8BIT_VALUES = 4096  # `min_8bit_size`: smaller tensors have their state in fp32
# Smaller tensors' state stays on the card. What is paged is unified memory, which gives way to the host's when the
# card is full; torch does not count it. Scales are never paged.
LEAST_PAGED_VALUES = 100_000
SCALE_BLOCK = 256  # values to a scale
TABLE_BYTES = 256 * FP32_BYTES  # of the values that 8 bits stand for, one for each kind of state


@dataclass(frozen=True)
class Kind:
    """An optimizer's state.

    Attributes:
        copies: tensors of the trained one's size.
        bits: of a value in them, where the tensor is large enough.
        counts_on_card: whether each tensor has its number of steps on the card.
    """

    copies: int
    bits: int = 32
    counts_on_card: bool = False


# By transformers' names, without `paged_`.
KINDS = {
    "adamw_torch": Kind(2),
    "adamw_torch_fused": Kind(2, counts_on_card=True),
    "adamw_32bit": Kind(2),
    "adamw_8bit": Kind(2, 8),
    "adamw_bnb_8bit": Kind(2, 8),
    "lion_32bit": Kind(1),
    "lion_8bit": Kind(1, 8),
    "sgd": Kind(0),
}
LARGEST_KNOWN = Kind(2)


def rounded_up(size: int) -> int:
    """Bytes that torch's allocator gives out for a tensor of so many."""
    return -(-size // ALLOCATION_BYTES) * ALLOCATION_BYTES


def kind_of(optim: str) -> Kind:
    return KINDS.get(optim.removeprefix("paged_"), LARGEST_KNOWN)


def state_on_card(sizes: Iterable[int], optim: str) -> int:
    """Bytes that torch allocates on the card for the state of tensors with so many values each."""
    kind = kind_of(optim)
    total = 0
    in_8_bits = False
    for values in sizes:
        copy, scales = state_of(values, kind)
        in_8_bits |= scales > 0
        on_card = 0 if is_paged(values, optim) else rounded_up(copy)
        total += kind.copies * (on_card + rounded_up(scales)) + (ALLOCATION_BYTES if kind.counts_on_card else 0)
    return total + (kind.copies * TABLE_BYTES if in_8_bits else 0)


def paged_state(sizes: Iterable[int], optim: str) -> int:
    """Bytes of it in unified memory."""
    kind = kind_of(optim)
    return sum(kind.copies * state_of(values, kind)[0] for values in sizes if is_paged(values, optim))


def whole_state(sizes: Iterable[int], optim: str) -> int:
    """Bytes of it wherever it is, as in a file."""
    kind = kind_of(optim)
    return sum(kind.copies * sum(state_of(values, kind)) for values in sizes)


def state_of(values: int, kind: Kind) -> tuple[int, int]:
    """Bytes of one copy for a tensor of so many values, and of its scales."""
    if kind.bits == 8 and values >= LEAST_8BIT_VALUES:
        return values, -(-values // SCALE_BLOCK) * FP32_BYTES
    return values * FP32_BYTES, 0


def is_paged(values: int, optim: str) -> bool:
    return optim.startswith("paged_") and values >= LEAST_PAGED_VALUES
