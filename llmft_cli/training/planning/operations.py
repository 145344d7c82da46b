"""torch's operations on the `meta` device: what kind each is, and its result, without torch's own work where that is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch

# ALLOCATIONS launch no kernel; OVERWRITING operations do not read their first argument.
ALLOCATIONS = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided")
OVERWRITING = ("aten::copy_", "aten::fill_", "aten::zero_")
# These only write to a tensor that exists, their first argument or `out`. On `meta` there is nothing to write, and torch's
# checks of the shapes take longer than everything else here.
IN_PLACE = (*OVERWRITING, "aten::add_", "aten::mul_", "aten::index_put_")
INTO_OUT = ("aten::mul",)
SCALING = "aten::mul"


@cache
def traits_of(operation: Any) -> tuple[str, bool, bool]:
    """An operation's name, whether it only returns a view, and whether it writes to an argument."""
    return operation._schema.name, operation.is_view, operation._schema.is_mutable


def result_of(name: str, operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation on `meta`; what only writes to an existing tensor is not run."""
    if name in IN_PLACE and args[0].is_meta:
        return args[0]
    out = kwargs.get("out")
    if out is not None and name in INTO_OUT and out.is_meta:
        return out
    if name == SCALING and out is None and args[0].is_meta and is_plain_scaling(*args):
        return torch.empty(args[0].shape, dtype=args[0].dtype, device=args[0].device)
    return operation(*args, **kwargs)


def is_plain_scaling(values: torch.Tensor, factor: Any) -> bool:
    """Whether a product with a number, or of two tensors of one kind, has the shape and type of its first factor."""
    if not values.is_floating_point() or list(values.stride()) != sorted(values.stride(), reverse=True):
        return False
    if not isinstance(factor, torch.Tensor):
        return isinstance(factor, float)
    return factor.shape == values.shape and factor.dtype == values.dtype and factor.is_contiguous() and values.is_contiguous()


def tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among an operation's arguments or results, which may be lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
