"""What GPUs of each generation can do."""

from __future__ import annotations

import pytest

from llmft_cli.gpu.capabilities import FIRST_OF, format_version, lacking, parse_version


@pytest.mark.parametrize(
    ("capability", "lacks"),
    [
        ((5, 2), ["NF4", "int8", "bf16", "FlashAttention"]),
        ((6, 1), ["int8", "bf16", "FlashAttention"]),
        ((7, 0), ["int8", "bf16", "FlashAttention"]),
        ((7, 5), ["bf16", "FlashAttention"]),
        ((8, 0), []),
        ((12, 0), []),
    ],
)
def test_what_a_gpu_is_too_old_for(capability: tuple[int, int], lacks: list[str]) -> None:
    assert lacking(capability) == lacks


def test_versions_are_compared_as_numbers() -> None:
    assert parse_version("13.10") > parse_version("13.9") > parse_version("12.8")
    assert format_version(parse_version("12.0")) == "12.0"


def test_architectures_are_told_apart_by_their_age() -> None:
    assert list(FIRST_OF.values()) == sorted(FIRST_OF.values())
