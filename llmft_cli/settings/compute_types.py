"""The compute type of a model, chosen by what the device supports.

Without bf16 instructions, a CPU multiplies bf16 matrices at about 1/100 of the fp32 rate, and GPUs older than Ampere have
no bf16 at all. The choice follows the processor's flags and not a measurement, so it is always the same on a machine.
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
FIRST_WITH_FLASH_ATTENTION = (8, 0)  # includes torch's `varlen_attn`, which is FlashAttention
# Triton 3.6 officially requires 8.0 for asynchronous copies and tensor cores. The kernels in `training/fast` use neither,
# and Triton compiles each of them for 6.0, 7.0 and 7.5 as well.
FIRST_WITH_TRITON = (6, 0)


@dataclass(frozen=True)
class Abilities:
    """The GPU features that training uses and not every GPU has.

    All GPUs that torch supports have fp16 and fp32 products, CUDA graphs, expandable segments and memory-efficient
    attention.

    Attributes:
        flash_attention: FlashAttention, in 16-bit types.
        triton: the kernels of the fast layers.
    """

    bf16: bool
    flash_attention: bool
    triton: bool


ALL_ABILITIES = Abilities(bf16=True, flash_attention=True, triton=True)


def abilities(capability: tuple[int, int]) -> Abilities:
    """The abilities of a GPU of this compute capability, if Triton is installed."""
    return Abilities(
        bf16=capability >= FIRST_WITH_BF16,
        flash_attention=capability >= FIRST_WITH_FLASH_ATTENTION,
        triton=capability >= FIRST_WITH_TRITON,
    )


def settled(config: Config, device: torch.device, reporter: Reporter, recorded: str | None = None) -> Config:
    """The settings with `compute_dtype` resolved from `auto` to this device's type.

    Args:
        recorded: the compute type of the run to resume, which must stay the same.

    Raises:
        ConfigError: the device does not support the requested type, or it differs from `recorded`.
        MachineError: the device does not support `recorded`.
    """
    wanted = config.compute_dtype
    if recorded is not None and wanted not in (AUTO, recorded):
        raise ConfigError(
            f"--compute-dtype was {recorded} before the interruption and is {wanted} now",
            "omit --compute-dtype, or start over: llmft train RUN --overwrite",
        )
    name = recorded or (best_type(device) if wanted == AUTO else wanted)
    lack = why_unsupported(device, name)
    if lack is None and is_slow(device, name):
        if recorded is not None and wanted == AUTO:
            raise MachineError(
                f"training was started in {name}, but this CPU has no {name} instructions",
                f"resume on a machine that has them, or add --compute-dtype {name} to continue at about 1/100 of the speed",
            )
        reporter.warn(f"this CPU has no {name} instructions: expect about 1/100 of the speed of --compute-dtype fp32")
    if lack is not None and recorded is not None:
        raise MachineError(f"training was started in {name}: {lack}", f"resume on a machine that supports {name}")
    if lack is not None:
        raise ConfigError(f"--compute-dtype {name}: {lack}", "use --compute-dtype auto for this device's best type")
    return replace(config, compute_dtype=name)


def best_type(device: torch.device) -> str:
    """bf16 if the device has instructions for it, else fp16 on a GPU and fp32 on a CPU."""
    if device.type == "cpu":
        return BF16 if cpu_has_bf16() else FP32
    return BF16 if capability_of(device) >= FIRST_WITH_BF16 else FP16


def why_unsupported(device: torch.device, name: str) -> str | None:
    """Why the device cannot compute in a type, or None if it can."""
    if device.type == "cpu":
        return "fp16 needs a GPU" if name == FP16 else None
    if name == BF16 and (capability := capability_of(device)) < FIRST_WITH_BF16:
        return f"bf16 needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    return None


def is_slow(device: torch.device, name: str) -> bool:
    """Whether the CPU has no instructions for a type and must emulate it."""
    return device.type == "cpu" and name == BF16 and not cpu_has_bf16()


def cpu_has_bf16() -> bool:
    """Whether torch uses bf16 instructions for matrix products: AVX512-BF16, AMX, or Arm's.

    `ATEN_CPU_CAPABILITY`, which restricts torch to older instructions, is taken into account.
    """
    import torch

    if platform.machine().lower() in ARM_MACHINES:
        has_mkldnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    # Every x86 CPU with AMX also has AVX512-BF16.
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and bool(torch.cpu._is_avx512_bf16_supported())


def capability_of(device: torch.device) -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability(device)


def torch_type(name: str) -> torch.dtype:
    """The torch dtype of a type's name: `torch.bfloat16` for "bf16"."""
    import torch

    kind: Any = getattr(torch, TORCH_NAMES[name])
    return kind  # type: ignore[no-any-return]


def written_type(name: str) -> torch.dtype:
    """The 16-bit type in which a model is saved whose compute type is `name`."""
    return torch_type(FP16 if name == FP16 else BF16)
