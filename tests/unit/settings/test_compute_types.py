"""The compute type of a device, and who may change it."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from llmft_cli.base.errors import ConfigError, MachineError
from llmft_cli.base.reporter import Silent
from llmft_cli.settings import compute_types
from llmft_cli.settings.compute_types import settled
from llmft_cli.settings.config import resolve

if not find_spec("torch"):
    pytest.skip("needs torch", allow_module_level=True)

import torch

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Warnings(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(params=[True, False], ids=["a CPU with bf16 instructions", "a CPU without"])
def has_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(compute_types, "cpu_has_bf16", lambda: request.param)
    return bool(request.param)


def chosen(device: torch.device, wanted: str = "auto", recorded: str | None = None, reporter: Silent | None = None) -> str:
    return settled(resolve({"compute_dtype": wanted}), device, reporter or Silent(), recorded).compute_dtype


def of_capability(monkeypatch: pytest.MonkeyPatch, *capability: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def test_a_cpu_computes_in_bf16_where_it_has_instructions_for_it(has_bf16: bool) -> None:
    assert chosen(CPU) == ("bf16" if has_bf16 else "fp32")


@pytest.mark.parametrize(("capability", "expected"), [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((12, 0), "bf16")])
def test_a_gpu_computes_in_bf16_since_ampere(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_capability(monkeypatch, *capability)
    assert chosen(GPU) == expected


@pytest.mark.parametrize("wanted", ["bf16", "fp16", "fp32"])
def test_what_is_asked_for_is_taken_where_the_device_can(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of_capability(monkeypatch, 9, 0)
    assert chosen(GPU, wanted) == wanted


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(ConfigError) as refused:
        chosen(CPU, "fp16")
    assert refused.value.message == "--compute-dtype fp16: fp16 needs a GPU"
    assert "--compute-dtype auto" in refused.value.hint


def test_bf16_is_refused_on_a_gpu_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    of_capability(monkeypatch, 7, 5)
    with pytest.raises(ConfigError) as refused:
        chosen(GPU, "bf16")
    assert refused.value.message == "--compute-dtype bf16: bf16 needs compute capability 8.0, this GPU has 7.5"


def test_bf16_on_a_cpu_without_it_is_done_with_a_warning(has_bf16: bool) -> None:
    warnings = Warnings()
    assert chosen(CPU, "bf16", reporter=warnings) == "bf16"
    assert len(warnings.said) == (not has_bf16)
    assert all("no bf16 instructions" in warning and "--compute-dtype fp32" in warning for warning in warnings.said)


def test_a_resumed_training_keeps_its_type(has_bf16: bool) -> None:
    assert chosen(CPU, recorded="fp32") == "fp32"
    with pytest.raises(ConfigError) as refused:
        chosen(CPU, "bf16", recorded="fp32")
    assert refused.value.message == "--compute-dtype was fp32 before the interruption and is bf16 now"


def test_a_resumed_training_is_refused_where_the_device_lacks_its_type(has_bf16: bool) -> None:
    if has_bf16:
        assert chosen(CPU, recorded="bf16") == "bf16"
    else:
        with pytest.raises(MachineError) as refused:
            chosen(CPU, recorded="bf16")
        assert re.search("started in bf16.*CPU has no bf16", refused.value.message)
        assert "--compute-dtype bf16" in refused.value.hint
    assert chosen(CPU, "bf16", recorded="bf16") == "bf16"
    with pytest.raises(MachineError) as refused:
        chosen(CPU, recorded="fp16")
    assert refused.value.message == "training was started in fp16: fp16 needs a GPU"


@pytest.mark.parametrize(
    ("capability", "flag", "expected"), [("AVX512", True, True), ("AVX512", False, False), ("AVX2", True, False)]
)
def test_the_processors_flags_decide_and_what_torch_may_use_of_them(
    capability: str, flag: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An AVX-512 CPU without AVX512-BF16 has none; neither has one restricted by `ATEN_CPU_CAPABILITY=avx2`."""
    monkeypatch.setattr(compute_types.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: flag)
    assert compute_types.cpu_has_bf16() is expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((5, 2), (False, False, False)),
        ((6, 1), (False, False, True)),
        ((7, 0), (False, False, True)),  # V100
        ((7, 5), (False, False, True)),  # T4, RTX 20
        ((8, 0), (True, True, True)),
        ((8, 9), (True, True, True)),
        ((9, 0), (True, True, True)),
        ((12, 0), (True, True, True)),
    ],
)
def test_what_a_gpu_can_follows_from_its_compute_capability(
    capability: tuple[int, int], expected: tuple[bool, bool, bool]
) -> None:
    able = compute_types.abilities(capability)
    assert (able.bf16, able.flash_attention, able.triton) == expected


def test_models_are_written_in_16_bits() -> None:
    written = {name: compute_types.written_type(name) for name in ("bf16", "fp16", "fp32")}
    assert written == {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.bfloat16}
