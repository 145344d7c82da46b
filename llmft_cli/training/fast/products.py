"""Products of matrices, as the device computes them best."""

from __future__ import annotations

import torch

# MKL's fp32 products of many columns are slower than those of 1,024 each: within a training step on two cores with AVX2
# 140 instead of 153 GFLOP/s for 3,072 columns, and 118 instead of 140 for 49,152 (benchmarks/LOG.md).
COLUMNS_AT_ONCE = 1024
WIDE = 2048


def multiply(left: torch.Tensor, right: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """left @ right into outputs; many columns in parts, where fp32 is computed on a CPU."""
    columns = right.shape[1]
    if columns < WIDE or left.device.type != "cpu" or left.dtype != torch.float32:
        return torch.mm(left, right, out=outputs)
    for start in range(0, columns, COLUMNS_AT_ONCE):
        part = slice(start, start + COLUMNS_AT_ONCE)
        torch.mm(left, right[:, part], out=outputs[:, part])
    return outputs


def product_in_fp32(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right as fp32 at least; on a GPU not rounded to their 16-bit type in between."""
    if left.element_size() >= 4:
        return left @ right
    if left.device.type == "cpu":
        return (left @ right).float()
    return torch.mm(left, right, out_dtype=torch.float32)
