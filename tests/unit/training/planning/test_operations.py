"""Results of operations on `meta` that were run before: the same as those that torch gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmft_cli.training.planning.operations import described, new_layouts, result_of, tensors_in

ATEN = torch.ops.aten


def on_meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def layout(tensor: torch.Tensor) -> Any:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device.type, tensor.untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("operation", "arguments", "options"),
    [
        (ATEN.add.Tensor, (on_meta(4, 3), on_meta(3)), {}),
        (ATEN.mul.Tensor, (on_meta(3, 4).t(), 2), {}),
        (ATEN.pow.Tensor_Scalar, (on_meta(3, dtype=torch.int64), 2), {}),
        (ATEN.pow.Tensor_Scalar, (on_meta(3, dtype=torch.int64), 2.0), {}),  # another type than the one before
        (ATEN.cat.default, ([on_meta(2, 3), on_meta(4, 3)],), {}),
        (ATEN.empty_like.default, (on_meta(3, 4).t(),), {"dtype": torch.float32}),
        (ATEN.native_layer_norm.default, (on_meta(5, 8), [8], None, None, 1e-5), {}),  # several results
    ],
)
def test_a_result_is_the_one_of_torch_every_time(operation: Any, arguments: Any, options: Any) -> None:
    expected = [layout(tensor) for tensor in tensors_in([operation(*arguments, **options)])]
    for _ in range(2):
        found = result_of(operation, arguments, options, list(tensors_in(arguments)))
        assert [layout(tensor) for tensor in tensors_in([found])] == expected


@pytest.mark.parametrize(("operation", "sizes"), [(ATEN.view.default, [12]), (ATEN.split_with_sizes.default, [1, 3])])
def test_views_of_an_argument_are_no_new_tensors(operation: Any, sizes: list[int]) -> None:
    assert new_layouts(operation, described((on_meta(4, 3), sizes)), ()) is None


def test_what_is_on_the_cpu_is_computed() -> None:
    found = result_of(ATEN.add.Tensor, (torch.ones(2), torch.ones(2)), {}, [torch.ones(2)])
    assert found.tolist() == [2.0, 2.0]
