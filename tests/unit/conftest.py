"""What a process remembers of devices and kernels is forgotten between tests, which put stand-ins in their place."""

import sys

import pytest

REMEMBERING = {
    "llmft_cli.training.attention.varlen": ("has_faster_dense", "takes_enable_gqa"),
    "llmft_cli.training.fast.kernels.select": ("has_triton",),
}


@pytest.fixture(autouse=True)
def nothing_is_remembered_of_devices() -> None:
    for module, names in REMEMBERING.items():
        if module in sys.modules:  # some tests run where its libraries are not installed
            for name in names:
                getattr(sys.modules[module], name).cache_clear()
