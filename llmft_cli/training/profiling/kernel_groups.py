"""Groups GPU kernels and CPU operators by purpose, from their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch._C._autograd import DeviceType

OTHER = "other"
# The first matching pattern decides. The order matters: flash attention's kernels have cutlass in their names, and the
# optimizer's have elementwise.
GROUPS = {
    "attention": r"flash|fmha|sdpa|attn|attention",
    "matrix_products": r"gemm|gemv|cutlass|nvjet|cublas|xmma|splitk|^aten::(addmm|baddbmm|bmm|mm|mv|addmv|dot)_?$",
    "dequantising": r"dequantize",
    "optimizer": r"multi_tensor_apply|adam|optimizer|_foreach|lpnorm",
    "copies": r"memcpy|memset|copy|^aten::(cat|clone)$|catarray",
    "elementwise": r"elementwise|reduce_kernel|norm|gated|rotate|softmax|cross_entropy|silu|gelu|sigmoid|^triton_"
    r"|^aten::(mul|add|sub|rsub|div|pow|rsqrt|mean|sum|neg|exp|log|sin|cos|fill|eq|ne|gt|lt|ge|le|bitwise_\w+|where"
    r"|masked_fill|clamp|abs|sqrt|addcmul)_?$",
}


def group_of(name: str) -> str:
    """The group of a kernel or operator."""
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, name, re.IGNORECASE)), OTHER)


def groups(events: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Seconds per group, from pairs of name and seconds."""
    seconds = dict.fromkeys((*GROUPS, OTHER), 0.0)
    for name, taken in events:
        seconds[group_of(name)] += taken
    return seconds


def timed_events(events: Iterable[Any], on_gpu: bool) -> Iterator[tuple[str, float]]:
    """Names and seconds of the profiler's events: GPU kernels, or CPU operators without the operators that they call."""
    for event in events:
        if not on_gpu:
            yield event.name, event.self_cpu_time_total / 1e6
        # Annotations span the kernels inside them and would count them twice.
        elif event.device_type != DeviceType.CPU and not event.is_user_annotation:
            yield event.name, event.time_range.elapsed_us() / 1e6
