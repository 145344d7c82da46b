"""Triton kernels that fill weight matrices, launched by `triton`; Triton's arguments have no type annotations."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def dequantize_kernel(
    packed,
    code,
    scales,
    outer_code,
    outer_scales,
    offset,
    outputs,
    output_stride,
    blocks_per_row,
    NESTED: tl.constexpr,
    OUTER_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """`GROUPS` blocks in one row of the weight; a byte holds two values, the first in its upper half."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    inside = group < blocks_per_row
    block = row * blocks_per_row + group
    if NESTED:
        scale = tl.load(outer_code + tl.load(scales + block, mask=inside, other=0).to(tl.int32))
        scale = scale * tl.load(outer_scales + block // OUTER_BLOCK, mask=inside, other=0.0) + tl.load(offset)
    else:
        scale = tl.load(scales + block, mask=inside, other=0.0)
    byte = tl.arange(0, BLOCK // 2)
    two = tl.load(packed + block[:, None] * (BLOCK // 2) + byte[None, :], mask=inside[:, None], other=0).to(tl.int32)
    upper, lower = tl.load(code + (two >> 4)), tl.load(code + (two & 15))
    values = tl.interleave(upper, lower) * scale[:, None]
    column = group[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    place = outputs + row * output_stride + column
    tl.store(place, values.to(outputs.dtype.element_ty), mask=inside[:, None] & (column < blocks_per_row * BLOCK))


@triton.jit
def fill_adapter_kernel(
    lora_a,
    lora_b,
    right,
    below,
    right_stride,
    below_stride,
    outputs,
    columns,
    inputs,
    rank,
    start,
    scaling,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The first programs fill some rows of `right` each, the others a part of a row of `below`."""
    place = tl.program_id(0)
    on_the_right = tl.cdiv(outputs, ROWS)
    if place < on_the_right:
        row = (place * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        column = tl.arange(0, COLUMNS)[None, :]
        inside = (row < outputs) & (column < columns)
        own = inside & (column >= start) & (column < start + rank)
        b = tl.load(lora_b + row * rank + column - start, mask=own, other=0.0).to(tl.float32)
        tl.store(right + row * right_stride + column, (b * scaling).to(right.dtype.element_ty), mask=inside)
    else:
        parts = tl.cdiv(inputs, BLOCK)
        line = ((place - on_the_right) // parts).to(tl.int64)
        value = (place - on_the_right) % parts * BLOCK + tl.arange(0, BLOCK)
        a = tl.load(lora_a + line * inputs + value, mask=(value < inputs) & (line < rank), other=0.0)
        tl.store(below + line * below_stride + value, a.to(below.dtype.element_ty), mask=value < inputs)
