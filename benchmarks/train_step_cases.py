"""The cases of `train_step.py`, the sides of each, and the training rows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from llmft_cli.models.known_configs import LLAMA_2_7B, LLAMA_2_13B, LLAMA_3_8B, SMOLLM2_135M, llama

SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": LLAMA_2_7B,
    "llama-2-13b": LLAMA_2_13B,
    "llama-3-8b": LLAMA_3_8B,
    "smollm2-135m": SMOLLM2_135M,
    "tiny": llama(32_000, 64, 128, 2, 4, 4, 4096),  # to try the script itself on a CPU
}

# How each side recomputes activations; None: it knows more than one way.
SIDES: dict[str, str | None] = {
    "llmft": None,
    "llmft-offloaded": "offloaded",
    "llmft-fp16": None,  # with `--compute-dtype fp16`
    "unsloth": "offloaded",  # its default: layer inputs wait in the host's memory
    "unsloth-full": "full",
    "unsloth-none": "none",
    "trl": None,
    "stock": None,
}
NONE, FULL = ("none",), ("full",)

# Tokens of a row at every twentieth of the 999 rows of LLaMA-Factory's data/alpaca_en_demo.json: the characters of
# instruction, input and output by four. They are 197 on average.
ROW_LENGTH_QUANTILES = [
    *(10, 25, 32, 37, 43, 50, 62, 76, 95, 114, 147),
    *(168, 198, 236, 282, 323, 362, 411, 449, 505, 731),
]
SHORT_ROWS = 160
BATCHES = 4
FIRST_ORDINARY_ID = 3  # after <unk>, <s> and </s>


@dataclass(frozen=True)
class Case:
    """Training steps of one shape that all sides are put to.

    Attributes:
        length: tokens of a row; of short rows, of the sequences that llmft packs them into.
        sizes: rows in a micro-batch. Each side takes the largest that fits; of short rows, the fastest.
        checkpointing: what a side may do that has the choice; the fastest counts.
        planned: whether llmft takes the plan that `llmft train` would, up to the largest size, instead.
        budget_gibibytes: what the process may take of the card, CUDA context included; 0 is all of it.
        short_rows: rows of an instruction data set instead of full ones.
    """

    name: str
    shape: str
    length: int
    sizes: tuple[int, ...]
    checkpointing: tuple[str, ...]
    planned: bool = False
    budget_gibibytes: float = 0
    short_rows: bool = False


@dataclass(frozen=True)
class Measurement:
    """What one process measures. Of `sizes` the largest that fits; `checkpointing` may be `planned`.

    Attributes:
        model: directory of the checkpoint.
    """

    case: str
    side: str
    model: str
    length: int
    sizes: tuple[int, ...]
    checkpointing: str
    budget_gibibytes: float
    short_rows: bool
    device: str


SEVEN, SMALL = "llama-2-7b", "smollm2-135m"
CASES = [
    Case("7B, 4x2048, no checkpointing", SEVEN, 2048, (4,), NONE),
    Case("7B, 4x2048, full checkpointing", SEVEN, 2048, (4,), FULL),
    Case("7B, best on the whole card", SEVEN, 2048, (4, 8), FULL, planned=True),
    Case("7B, best in 24 GiB", SEVEN, 2048, (1, 2, 4, 8), NONE + FULL, planned=True, budget_gibibytes=24),
    Case("7B, best in 16 GiB", SEVEN, 2048, (1, 2, 4, 8), NONE + FULL, planned=True, budget_gibibytes=16),
    Case("7B, best in 8 GiB", SEVEN, 2048, (1, 2, 4), FULL, planned=True, budget_gibibytes=8),
    Case("7B, 1x2048, full checkpointing", SEVEN, 2048, (1,), FULL),
    # llmft's four sequences hold about as many short rows as the larger micro-batch.
    Case("7B, short rows, no checkpointing", SEVEN, 2048, (8, 40), NONE, short_rows=True),
    Case("7B, short rows, full checkpointing", SEVEN, 2048, (8, 40), FULL, short_rows=True),
    Case("135M, 16x1024, no checkpointing", SMALL, 1024, (16,), NONE),
    Case("135M, 16x1024, full checkpointing", SMALL, 1024, (16,), FULL),
    # 0.77 GiB of tensors, and what planning counts for CUDA's context and the allocator beside them.
    Case("135M, best in 0.77 GiB of tensors", SMALL, 1024, (4, 8, 16), FULL, planned=True, budget_gibibytes=1.95),
    Case("135M, 4x128, as the demo on a CPU", SMALL, 128, (4,), NONE),
    Case("tiny, 2x64, full checkpointing", "tiny", 64, (2,), FULL),
    Case("tiny, short rows, no checkpointing", "tiny", 1024, (8, 40), NONE, short_rows=True),
]
PACKED_SEQUENCES = 4


def measurements(case: Case, side: str, model: str, device: str) -> Iterator[Measurement]:
    """All that a side may try in a case; nothing where its only way is none of the case's."""
    own = SIDES[side]
    if case.planned and side.startswith("llmft"):
        ways: tuple[str, ...] = ("planned",) if side in ("llmft", "llmft-fp16") else ()
    elif own is None:
        ways = case.checkpointing
    else:
        ways = (own,) if ("none" if own == "none" else "full") in case.checkpointing else ()
    for way in ways:
        one = Measurement(case.name, side, model, case.length, case.sizes, way, case.budget_gibibytes, case.short_rows, device)
        if not case.short_rows:
            yield one
        elif side.startswith("llmft"):
            yield replace(one, sizes=(PACKED_SEQUENCES,))
        else:
            # Padding grows with the micro-batch, so that the largest need not be the fastest.
            yield from (replace(one, sizes=(size,)) for size in case.sizes)


def token_rows(wanted: Measurement, size: int, vocabulary: int) -> list[list[int]]:
    """Random ids: some micro-batches of full rows, or the same short rows in the same order for every side."""
    chooser = random.Random(0)
    lengths = [wanted.length] * size * BATCHES
    if wanted.short_rows:
        lengths = [row_length((number + 0.5) / SHORT_ROWS) for number in range(SHORT_ROWS)]
        chooser.shuffle(lengths)
    return [[chooser.randrange(FIRST_ORDINARY_ID, vocabulary) for _ in range(length)] for length in lengths]


def row_length(share: float) -> int:
    """Tokens of the short row that this share of them is no longer than."""
    place = share * (len(ROW_LENGTH_QUANTILES) - 1)
    low, high = ROW_LENGTH_QUANTILES[int(place)], ROW_LENGTH_QUANTILES[int(place) + 1]
    return round(low + (high - low) * (place % 1))
