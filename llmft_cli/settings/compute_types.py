"""The type that a model computes in, decided by what the device is good at.

Without bf16 instructions a CPU multiplies bf16 matrices at about a thirtieth of fp32's rate, and GPUs older than Ampere
have no bf16 at all. The processor's flags decide, not a measurement, so that the same machine always decides alike.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ConfigError, MachineError
from llmft_cli.base.reporter import Reporter
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    import torch

AUTO, BF16, FP16, FP32 = "auto", "bf16", "fp16", "fp32"
TORCH_NAMES = {BF16: "bfloat16", FP16: "float16", FP32: "float32"}
ARM_MACHINES = ("aarch64", "arm64")
# Compute capabilities: Ampere is 8.0, Turing (T4, RTX 20) 7.5, Volta (V100) 7.0.
FIRST_WITH_BF16 = (8, 0)
FIRST_WITH_FLASH_ATTENTION = (8, 0)  # torch's `varlen_attn` too, which is FlashAttention
# Triton 3.6 names 8.0 as its first, and takes 8.0's asynchronous copies and tensor cores only from there on. The programs in
# `training/fast` use neither: it compiles each of them to machine code for 6.0, 7.0 and 7.5 as well.
FIRST_WITH_TRITON = (6, 0)


@dataclass(frozen=True)
class Abilities:
    """What training uses of a GPU, where the GPU has it.

    fp16 and fp32 products, CUDA graphs, segments that grow and memory-efficient attention are there on all that torch supports.

    Attributes:
        flash_attention: FlashAttention, in 16-bit types.
        triton: the programs of the fast layers.
    """

    bf16: bool
    flash_attention: bool
    triton: bool


EVERYTHING = Abilities(bf16=True, flash_attention=True, triton=True)


def abilities(capability: tuple[int, int]) -> Abilities:
    """Of a GPU of this compute capability, where Triton is installed."""
    return Abilities(
        bf16=capability >= FIRST_WITH_BF16,
        flash_attention=capability >= FIRST_WITH_FLASH_ATTENTION,
        triton=capability >= FIRST_WITH_TRITON,
    )


def settled(config: Config, device: torch.device, reporter: Reporter, recorded: str | None = None) -> Config:
    """The settings with the type that is computed in on this device in place of `auto`.

    Args:
        recorded: the type of the training that is resumed, which stays.

    Raises:
        ConfigError: the device cannot compute in the wanted type, or a resumed training is asked to change its own.
        MachineError: the device lacks the type of the training that is resumed.
    """
    wanted = config.compute_dtype
    if recorded is not None and wanted not in (AUTO, recorded):
        raise ConfigError(
            f"--compute-dtype was {recorded} before the interruption and is {wanted} now",
            "leave --compute-dtype out, or start anew with --overwrite",
        )
    name = recorded or (best_type(device) if wanted == AUTO else wanted)
    lack = why_not(device, name)
    if lack is None and is_slow(device, name):
        if recorded is not None and wanted == AUTO:
            raise MachineError(
                f"the training was begun in {name}, and this CPU has no instructions for it",
                f"resume it on a machine that has, or add --compute-dtype {name} to go on at about a thirtieth of the speed",
            )
        reporter.warn(f"this CPU has no {name} instructions: expect about a thirtieth of the speed of --compute-dtype fp32")
    if lack is not None and recorded is not None:
        raise MachineError(f"the training was begun in {name}: {lack}", "resume it on a machine that has it")
    if lack is not None:
        raise ConfigError(f"--compute-dtype {name}: {lack}", "use --compute-dtype auto: the best type of the device")
    return replace(config, compute_dtype=name)


def best_type(device: torch.device) -> str:
    """bf16 where the device has instructions for it, else fp16 on a GPU and fp32 on a CPU."""
    if device.type == "cpu":
        return BF16 if cpu_has_bf16() else FP32
    return BF16 if capability_of(device) >= FIRST_WITH_BF16 else FP16


def why_not(device: torch.device, name: str) -> str | None:
    """Why the device cannot compute in a type, or None where it can."""
    if device.type == "cpu":
        return "fp16 is for GPUs" if name == FP16 else None
    if name == BF16 and (capability := capability_of(device)) < FIRST_WITH_BF16:
        return f"a GPU of compute capability {capability[0]}.{capability[1]} has no bf16, which needs 8.0"
    return None


def is_slow(device: torch.device, name: str) -> bool:
    """Whether a CPU can compute in a type but has no instructions for it."""
    return device.type == "cpu" and name == BF16 and not cpu_has_bf16()


def cpu_has_bf16() -> bool:
    """Whether torch multiplies bf16 matrices with instructions made for it: AVX512-BF16, AMX, or those of Arm.

    `ATEN_CPU_CAPABILITY`, which keeps torch from using newer instructions, counts.
    """
    import torch

    if platform.machine().lower() in ARM_MACHINES:
        has_mkldnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    # Every x86 processor with AMX has AVX512-BF16 as well.
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and bool(torch.cpu._is_avx512_bf16_supported())


def capability_of(device: torch.device) -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability(device)


def torch_type(name: str) -> torch.dtype:
    """`torch.bfloat16` of `bf16`, and so on."""
    import torch

    kind: Any = getattr(torch, TORCH_NAMES[name])
    return kind  # type: ignore[no-any-return]


def written_type(name: str) -> torch.dtype:
    """The 16-bit type that models are written in where they are computed in `name`."""
    return torch_type(FP16 if name == FP16 else BF16)
