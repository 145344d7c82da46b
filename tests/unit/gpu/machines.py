"""A card, and what GPUtil and torch say of it."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

from llmft_cli.gpu.gpus import Gpu

UUID = "GPU-7f0d2c2e-94b2-6f8a-1c39-5be6a1d2f0aa"
LINE = f"0, {UUID}, 25, 81559, 4096, 77463, 570.86.15, NVIDIA H100 80GB HBM3, 1650223, Disabled, Disabled, 41"
CARD = Gpu(
    index=0,
    name="NVIDIA H100 80GB HBM3",
    uuid=UUID,
    memory_total_bytes=81559 * 1024**2,
    memory_free_bytes=77463 * 1024**2,
    load=0.25,
    temperature_celsius=41.0,
    driver="570.86.15",
)


def entry(**fields: Any) -> SimpleNamespace:
    """What GPUtil makes of LINE."""
    known = {"id": 0, "name": CARD.name, "uuid": UUID, "memoryTotal": 81559.0, "memoryFree": 77463.0}
    return SimpleNamespace(**(known | {"load": 0.25, "temperature": 41.0, "driver": CARD.driver} | fields))


def fake_torch(*cards: SimpleNamespace, cuda: str | None = "13.0", complaint: str = "") -> Any:
    def is_available() -> bool:
        if complaint:
            warnings.warn(complaint, stacklevel=2)
        return bool(cards)

    functions = SimpleNamespace(
        is_available=is_available, device_count=lambda: len(cards), get_device_properties=lambda index: cards[index]
    )
    return SimpleNamespace(
        cuda=functions, version=SimpleNamespace(cuda=cuda), __version__="2.13.0", OutOfMemoryError=FakeOutOfMemory
    )


class FakeOutOfMemory(RuntimeError):
    pass


def card(uuid: str = UUID.removeprefix("GPU-"), major: int = 9, minor: int = 0) -> SimpleNamespace:
    return SimpleNamespace(uuid=uuid, major=major, minor=minor)
