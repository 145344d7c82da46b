"""torch's operations on the `meta` device: what kind each is, and its result, without torch's own work where that is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch

# ALLOCATIONS launch no kernel; OVERWRITING operations do not read their first argument.
ALLOCATIONS = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided")
OVERWRITING = ("aten::copy_", "aten::fill_", "aten::zero_")
# These only write to a tensor that exists, their first argument or `out`. On `meta` there is nothing to write, and torch's
# checks of the shapes take longer than everything else here.
IN_PLACE = (*OVERWRITING, "aten::add_", "aten::mul_", "aten::index_put_")
INTO_OUT = ("aten::mul",)
SCALING = "aten::mul"
# Always run: nothing is quicker than the first, and torch's own counter of operations is to see the products.
ALWAYS_RUN = ("aten::empty", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


@cache
def traits_of(operation: Any) -> tuple[str, bool, bool]:
    """An operation's name, whether it only returns a view, and whether it writes to an argument."""
    return operation._schema.name, operation.is_view, operation._schema.is_mutable


def result_of(operation: Any, args: Any, kwargs: dict[str, Any], inputs: list[torch.Tensor]) -> Any:
    """The result of an operation on `meta`; what only writes to an existing tensor is not run.

    Args:
        inputs: the tensors among the arguments.
    """
    name, _is_view, is_mutable = traits_of(operation)
    if name in IN_PLACE and args[0].is_meta:
        return args[0]
    out = kwargs.get("out")
    if out is not None and name in INTO_OUT and out.is_meta:
        return out
    if name == SCALING and out is None and args[0].is_meta and is_plain_scaling(*args):
        return torch.empty(args[0].shape, dtype=args[0].dtype, device=args[0].device)
    if is_mutable or name in ALWAYS_RUN or not all(one.is_meta for one in inputs):
        return operation(*args, **kwargs)
    layouts = new_layouts(operation, described(args), described(tuple(kwargs.items())))
    if layouts is None:
        return operation(*args, **kwargs)
    tensors = [torch.empty_strided(*layout[:2], dtype=layout[2], device="meta") for layout in layouts]
    return tensors[0] if len(operation._schema.returns) == 1 else tuple(tensors)


class Layout(NamedTuple):
    """What the result of an operation on `meta` depends on."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype


def described(value: Any) -> Any:
    """An argument on `meta` as a dictionary's key: tensors by layout, and numbers with their type, because 1 equals 1.0."""
    if isinstance(value, torch.Tensor):
        return Layout(value.shape, value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(map(described, value))
    return type(value), value


# A step repeats the same operations in each layer, and torch takes up to 0.3 ms to find the shape of a result.
@lru_cache(maxsize=4096)
def new_layouts(operation: Any, args: Any, kwargs: Any) -> list[Layout] | None:
    """The layouts of an operation's results on `meta`; None if they are not just new tensors there.

    Args:
        args, kwargs: as from `described`; kwargs as pairs.
    """
    given = [rebuilt(value) for value in args]
    result = operation(*given, **{rebuilt(name): rebuilt(value) for name, value in kwargs})
    results = list(result) if isinstance(result, tuple) else [result]
    storages = {tensor.untyped_storage()._cdata for tensor in tensors_in(given)}
    if not all(is_new(one, storages) for one in results):
        return None
    return [Layout(one.shape, one.stride(), one.dtype) for one in results]


def is_new(result: Any, storages: set[int]) -> bool:
    """Whether a result is a tensor on `meta` that has a storage of its own, of no more than its size."""
    if not isinstance(result, torch.Tensor) or not result.is_meta or result.untyped_storage()._cdata in storages:
        return False
    alone = torch.empty_strided(result.shape, result.stride(), dtype=result.dtype, device="meta")
    return alone.untyped_storage().nbytes() == result.untyped_storage().nbytes()


def rebuilt(description: Any) -> Any:
    """An argument from its description."""
    if isinstance(description, Layout):
        return torch.empty_strided(description.shape, description.strides, dtype=description.dtype, device="meta")
    if len(description) == 2 and isinstance(description[0], type):
        return description[1]
    return tuple(map(rebuilt, description))


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
