"""Products in parts against whole ones in fp64."""

import pytest
import torch

from llmft_cli.training.fast.products import COLUMNS_AT_ONCE, WIDE, multiply, product_in_fp32

ROWS, INNER = 5, 24


def beside(columns, dtype):
    """Room for outputs, whose rows stand further apart than they are long."""
    return torch.full((ROWS, columns + 7), 8.0, dtype=dtype)[:, :columns]


@pytest.mark.parametrize("columns", [3, WIDE - 1, WIDE, WIDE + 1, 3 * COLUMNS_AT_ONCE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_column_is_computed(columns, dtype):
    torch.manual_seed(0)
    left, right = torch.randn(ROWS, INNER, dtype=dtype), torch.randn(columns, INNER, dtype=dtype).t()
    outputs = beside(columns, dtype)
    assert multiply(left, right, outputs) is outputs
    torch.testing.assert_close(outputs, (left.double() @ right.double()).to(dtype))
    assert (outputs.as_strided((ROWS, 7), (columns + 7, 1), columns) == 8).all()


def test_bf16_is_computed_in_one_product(monkeypatch):
    """Adapters trained in bf16 stay the same to the last bit."""
    asked = []
    whole = torch.mm
    monkeypatch.setattr(torch, "mm", lambda left, right, out: asked.append(right.shape[1]) or whole(left, right, out=out))
    for dtype in (torch.bfloat16, torch.float32):
        multiply(torch.ones(ROWS, INNER, dtype=dtype), torch.ones(INNER, 3000, dtype=dtype), beside(3000, dtype))
    assert asked == [3000, 1024, 1024, 952]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_of_adapters_are_fp32_at_least(dtype):
    left, right = torch.ones(ROWS, INNER, dtype=dtype), torch.ones(INNER, 3, dtype=dtype)
    found = product_in_fp32(left, right)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.tolist() == [[INNER] * 3] * ROWS
