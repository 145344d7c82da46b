"""Triton kernels that `triton` launches; Triton's arguments have no type annotations.

Pointers are to matrices whose rows are tokens; a stride is the distance between two rows, in values. Comments give the
shape of a block of values within one program.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: N803

import triton
import triton.language as tl

# Constants of gelu's tanh approximation (Hendrycks & Gimpel 2016).
TWICE_ROOT = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi)
CUBIC = tl.constexpr(0.044715)


@triton.jit
def rms_norm_kernel(
    inputs,
    residual,
    weight,
    outputs,
    scales,
    input_stride,
    residual_stride,
    output_stride,
    size,
    epsilon,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token of `interface.Kernels.rms_norm`, or of `add_rms_norm` with `ADD`."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)  # (hidden, padded to a power of two)
    inside = columns < size
    place = inputs + row * input_stride + columns
    x = tl.load(place, mask=inside, other=0.0)
    kind = x.dtype
    x = x.to(tl.float32)
    if ADD:
        x += tl.load(residual + row * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
        x = x.to(kind)
        tl.store(place, x, mask=inside)
        x = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x) / size + epsilon)
    tl.store(scales + row, scale)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    y = (x * scale).to(weight.dtype.element_ty).to(tl.float32) * w
    tl.store(outputs + row * output_stride + columns, y.to(kind), mask=inside)


@triton.jit
def rms_norm_backward_kernel(
    gradients,
    inputs,
    weight,
    scales,
    residual,
    outputs,
    gradient_stride,
    input_stride,
    residual_stride,
    output_stride,
    size,
    BLOCK: tl.constexpr,
):
    """One token: dx = s (w dy - n mean(n w dy)) with s = 1 / rms(x) and n = s x."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    x = tl.load(inputs + row * input_stride + columns, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(gradients + row * gradient_stride + columns, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    before = tl.load(residual + row * residual_stride + columns, mask=inside, other=0.0)
    scale = tl.load(scales + row)
    n = x * scale
    dy = dy * w
    dx = scale * (dy - n * (tl.sum(n * dy) / size))
    # Round before the addition, as autograd does with the gradients of two branches.
    dx = dx.to(before.dtype).to(tl.float32) + before.to(tl.float32)
    tl.store(outputs + row * output_stride + columns, dx.to(before.dtype), mask=inside)


@triton.jit
def sigmoid_of_gate(gate, GELU: tl.constexpr):
    """The sigmoid s(v) of the activation x s(v), and the slope dv/dx, of the gate's shape.

    v = x gives silu; v = 2 sqrt(2 / pi) (x + 0.044715 x^3) gives gelu's tanh approximation.
    """
    if GELU:
        square = gate * gate
        sigmoid = tl.sigmoid(TWICE_ROOT * gate * (1.0 + CUBIC * square))
        slope = TWICE_ROOT * (1.0 + 3.0 * CUBIC * square)
    else:
        sigmoid = tl.sigmoid(gate)
        slope = 1.0
    return sigmoid, slope


@triton.jit
def gated_kernel(gate_up, outputs, gate_up_stride, output_stride, size, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """`BLOCK` columns of one token."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,), of the gate; up stands `size` columns behind
    inside = columns < size
    place = gate_up + row * gate_up_stride + columns
    gate = tl.load(place, mask=inside, other=0.0)
    kind = gate.dtype
    gate = gate.to(tl.float32)
    up = tl.load(place + size, mask=inside, other=0.0).to(tl.float32)
    sigmoid, _ = sigmoid_of_gate(gate, GELU)
    y = (gate * sigmoid).to(kind).to(tl.float32) * up
    tl.store(outputs + row * output_stride + columns, y.to(kind), mask=inside)


@triton.jit
def gated_backward_kernel(gate_up, gradients, gate_up_stride, gradient_stride, size, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    place = gate_up + row * gate_up_stride + columns
    gate = tl.load(place, mask=inside, other=0.0)
    kind = gate.dtype
    gate = gate.to(tl.float32)
    up = tl.load(place + size, mask=inside, other=0.0).to(tl.float32)
    dy_place = gradients + row * gradient_stride + columns
    dy = tl.load(dy_place, mask=inside, other=0.0).to(tl.float32)
    sigmoid, inner_slope = sigmoid_of_gate(gate, GELU)
    activated = (gate * sigmoid).to(kind).to(tl.float32)
    tl.store(dy_place, (activated * up).to(kind), mask=inside)
    tl.store(place + size, (dy * activated).to(kind), mask=inside)
    slope = sigmoid * (1.0 + gate * (1.0 - sigmoid) * inner_slope)
    tl.store(place, (dy * up * slope).to(kind), mask=inside)


@triton.jit
def angles_at(cosines, sines, places, inside):
    """Cosines and sines of one token, of shape (1, head_dim / 2); both halves of a head use the same."""
    cosine = tl.load(cosines + places, mask=inside, other=0.0).to(tl.float32)[None, :]
    sine = tl.load(sines + places, mask=inside, other=0.0).to(tl.float32)[None, :]
    return cosine, sine


@triton.jit
def rotate_kernel(
    source,
    target,
    weights,
    cosines,
    sines,
    source_stride,
    target_stride,
    angle_stride,
    heads,
    epsilon,
    NORM: tl.constexpr,
    SIGN: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All heads of one token, with `NORM` each normalised first."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    head = tl.arange(0, HEADS)  # (heads, padded to a power of two)
    inside = columns < HALF
    cosine, sine = angles_at(cosines, sines, token * angle_stride + columns, inside)
    sine *= SIGN
    places = head[:, None] * (2 * HALF) + columns[None, :]  # (heads, half of head_dim): the first half of each head
    mask = (head < heads)[:, None] & inside[None, :]
    read = source + token * source_stride + places
    first = tl.load(read, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(read + HALF, mask=mask, other=0.0).to(tl.float32)
    kind = target.dtype.element_ty
    if NORM:
        scale = 1.0 / tl.sqrt(tl.sum(first * first + second * second, 1) / (2 * HALF) + epsilon)[:, None]
        w_first = tl.load(weights + places, mask=mask, other=0.0)
        w_second = tl.load(weights + places + HALF, mask=mask, other=0.0)
        first = (first * scale).to(w_first.dtype).to(tl.float32) * w_first.to(tl.float32)
        second = (second * scale).to(w_first.dtype).to(tl.float32) * w_second.to(tl.float32)
        first, second = first.to(kind).to(tl.float32), second.to(kind).to(tl.float32)
    written = target + token * target_stride + places
    tl.store(written, (first * cosine - second * sine).to(kind), mask=mask)
    tl.store(written + HALF, (second * cosine + first * sine).to(kind), mask=mask)


@triton.jit
def norm_rotate_backward_kernel(
    gradients,
    inputs,
    weights,
    cosines,
    sines,
    gradient_stride,
    input_stride,
    angle_stride,
    heads,
    epsilon,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All heads of one token: the rotation back, then dx of `rms_norm_backward_kernel`."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    head = tl.arange(0, HEADS)  # (heads, padded to a power of two)
    inside = columns < HALF
    cosine, sine = angles_at(cosines, sines, token * angle_stride + columns, inside)
    places = head[:, None] * (2 * HALF) + columns[None, :]  # (heads, half of head_dim): the first half of each head
    mask = (head < heads)[:, None] & inside[None, :]
    read = gradients + token * gradient_stride + places
    first = tl.load(read, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(read + HALF, mask=mask, other=0.0).to(tl.float32)
    w = weights + places
    dy_first = (first * cosine + second * sine) * tl.load(w, mask=mask, other=0.0).to(tl.float32)
    dy_second = (second * cosine - first * sine) * tl.load(w + HALF, mask=mask, other=0.0).to(tl.float32)
    place = inputs + token * input_stride + places
    x_first = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    x_second = tl.load(place + HALF, mask=mask, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x_first * x_first + x_second * x_second, 1) / (2 * HALF) + epsilon)[:, None]
    n_first = x_first * scale
    n_second = x_second * scale
    along = (tl.sum(n_first * dy_first + n_second * dy_second, 1) / (2 * HALF))[:, None]
    kind = inputs.dtype.element_ty
    tl.store(place, (scale * (dy_first - n_first * along)).to(kind), mask=mask)
    tl.store(place + HALF, (scale * (dy_second - n_second * along)).to(kind), mask=mask)


@triton.jit
def cross_entropy_kernel(logits, targets, losses, stride, SIZE: tl.constexpr, BLOCK: tl.constexpr, FACTOR: tl.constexpr):
    """One row: maximum and sum of exponentials in one pass (Milakov & Gimelshein 2018), the gradient in a second one."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    greatest = float("-inf")
    total = 0.0
    for start in range(0, SIZE, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(logits + columns, mask=columns < SIZE, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(greatest, tl.max(x))
        total = total * tl.exp(greatest - higher) + tl.sum(tl.exp(x - higher))
        greatest = higher
    log_total = greatest + tl.log(total)
    known = target >= 0
    chosen = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(known, log_total - chosen, 0.0))
    for start in range(0, SIZE, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < SIZE
        x = tl.load(logits + columns, mask=inside, other=float("-inf")).to(tl.float32)
        gradient = tl.where(known, tl.exp(x - log_total) - tl.where(columns == target, 1.0, 0.0), 0.0)
        if FACTOR != 1:
            gradient *= FACTOR
        tl.store(logits + columns, gradient.to(logits.dtype.element_ty), mask=inside)
