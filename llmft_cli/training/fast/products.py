"""Matrix products, tuned to the device."""

from __future__ import annotations

import torch

# MKL's wide fp32 products are faster in parts of 1,024 columns: in a training step on two cores with AVX2, 153 instead of
# 140 GFLOP/s for 3,072 columns, and 140 instead of 118 for 49,152 (benchmarks/LOG.md).
COLUMNS_AT_ONCE = 1024
WIDE = 2048


def multiply(left: torch.Tensor, right: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """outputs = left @ right; wide fp32 products on a CPU are computed in parts."""
    columns = right.shape[1]
    if columns < WIDE or left.device.type != "cpu" or left.dtype != torch.float32:
        return torch.mm(left, right, out=outputs)
    for start in range(0, columns, COLUMNS_AT_ONCE):
        part = slice(start, start + COLUMNS_AT_ONCE)
        torch.mm(left, right[:, part], out=outputs[:, part])
    return outputs


def product_in_fp32(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right in fp32 (or wider); on a GPU, without rounding to a 16-bit type in between."""
    if left.element_size() >= 4:
        return left @ right
    if left.device.type == "cpu":
        return (left @ right).float()
    return torch.mm(left, right, out_dtype=torch.float32)
