"""A GPU as nvidia-smi, GPUtil and torch describe it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from llmft_cli.gpu.gpus import Gpu
from llmft_cli.gpu.nvidia_smi import GpuProcess

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
# As nvidia-smi 570 prints it, without what we do not read.
XML = f"""<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <timestamp>Mon Nov 23 13:42:41 2026</timestamp>
  <driver_version>570.86.15</driver_version>
  <cuda_version>12.8</cuda_version>
  <attached_gpus>1</attached_gpus>
  <gpu id="00000000:01:00.0">
    <product_name>NVIDIA H100 80GB HBM3</product_name>
    <product_architecture>Hopper</product_architecture>
    <mig_mode><current_mig>Disabled</current_mig><pending_mig>Disabled</pending_mig></mig_mode>
    <uuid>{UUID}</uuid>
    <ecc_mode><current_ecc>Enabled</current_ecc><pending_ecc>Enabled</pending_ecc></ecc_mode>
    <processes>
      <process_info><gpu_instance_id>N/A</gpu_instance_id><pid>4711</pid><type>C</type>
        <process_name>/usr/bin/python3</process_name><used_memory>3072 MiB</used_memory></process_info>
      <process_info><pid>812</pid><type>G</type>
        <process_name>[Insufficient Permissions]</process_name><used_memory>N/A</used_memory></process_info>
    </processes>
  </gpu>
</nvidia_smi_log>"""
WHOLE = replace(
    CARD,
    mig="disabled",
    ecc="enabled",
    processes=[GpuProcess(4711, "python3", 3072 * 1024**2), GpuProcess(812, None, None)],
    architecture="Hopper",
)
# What torch's builds for CUDA 13.0 have kernels for.
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")


def entry(**fields: Any) -> SimpleNamespace:
    """What GPUtil makes of LINE."""
    known = {"id": 0, "name": CARD.name, "uuid": UUID, "memoryTotal": 81559.0, "memoryFree": 77463.0}
    return SimpleNamespace(**(known | {"load": 0.25, "temperature": 41.0, "driver": CARD.driver} | fields))


def fake_torch(
    *cards: SimpleNamespace, cuda: str | None = "13.0", complaint: str = "", architectures: Sequence[str] = ARCHITECTURES
) -> Any:
    """On a processor with AVX2."""

    def is_available() -> bool:
        if complaint:
            warnings.warn(complaint, stacklevel=2)
        return bool(cards)

    def get_device_capability(device: SimpleNamespace) -> tuple[int, int]:
        return cards[device.index].major, cards[device.index].minor

    functions = SimpleNamespace(
        is_available=is_available,
        device_count=lambda: len(cards),
        get_device_properties=lambda index: cards[index],
        get_device_capability=get_device_capability,
        get_arch_list=lambda: list(architectures),
    )
    cpu = SimpleNamespace(get_cpu_capability=lambda: "AVX2")
    return SimpleNamespace(
        cuda=functions,
        version=SimpleNamespace(cuda=cuda),
        __version__="2.13.0",
        OutOfMemoryError=FakeOutOfMemory,
        device=fake_device,
        backends=SimpleNamespace(cpu=cpu, mkldnn=SimpleNamespace(is_available=lambda: False)),
        get_num_threads=lambda: 2,
    )


def fake_device(name: str) -> SimpleNamespace:
    kind, _, index = name.partition(":")
    return SimpleNamespace(type=kind, index=int(index or 0))


class FakeOutOfMemory(RuntimeError):
    pass


def card(uuid: str = UUID.removeprefix("GPU-"), major: int = 9, minor: int = 0) -> SimpleNamespace:
    return SimpleNamespace(uuid=uuid, major=major, minor=minor, name=CARD.name, total_memory=80 * 1024**3)
