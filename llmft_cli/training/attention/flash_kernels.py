"""FlashAttention 3 and 4, if installed, in place of torch's built-in FlashAttention-2.

They are written for GPUs of compute capability 9 and 10. The package flash_attn 2.x has the same kernels as torch.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from llmft_cli.training.attention.varlen import head_dim, varlen_attention

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class NewerKernel(NamedTuple):
    """A FlashAttention that torch can use instead of its own."""

    modules: tuple[str, ...]  # top-level modules that it needs; looking for them is cheap
    head_dims: dict[int, int]  # the largest supported head_dim, by the major version of the compute capability


# By torch's names; the first that is usable is taken. torch checks the capability at each call and the packages check
# head_dim; both raise and nothing falls back. FlashAttention 4 shares its package name with 2.x, but needs
# nvidia-cutlass-dsl; above 128, it supports only 256 on 10.x, and only in its newest versions.
NEWER_KERNELS = {
    "FA3": NewerKernel(("flash_attn_interface",), {9: 256}),
    "FA4": NewerKernel(("flash_attn", "cutlass"), {9: 256, 10: 128}),
}
TRIAL_ROWS = (300, 33, 307)
TRIAL_WINDOW = 64
TRIAL_TOLERANCE = 0.05  # relative to the norm: 16-bit rounding is far below, a window one token too long is above


def use_newer_kernels(model: PreTrainedModel) -> None:
    """Make torch use the kernels that `choose_kernels` finds for a model on a GPU, or else its own."""
    import torch
    from torch.nn import attention

    if attention.current_flash_attention_impl() is not None:  # left from an earlier model
        attention.restore_flash_attention_impl()
    modules = {module for kernels in NEWER_KERNELS.values() for module in kernels.modules}
    installed = {module for module in modules if find_spec(module) is not None}
    capability = torch.cuda.get_device_capability(model.device)
    known = attention.list_flash_attention_impls()
    name = choose_kernels(capability, known, installed, head_dim(model.config.get_text_config()))
    if name is not None:
        activate_kernels(name, model)


def choose_kernels(capability: tuple[int, int], known: Collection[str], installed: set[str], head_dim: int) -> str | None:
    """The FlashAttention to use instead of torch's own, or None.

    Args:
        capability: the GPU's compute capability.
        known: the names that this torch knows.
        installed: top-level modules that can be imported.
        head_dim: of the model. All of them support sliding windows, fewer key-value heads and gradients.
    """
    for name, (modules, head_dims) in NEWER_KERNELS.items():
        if name in known and installed.issuperset(modules) and head_dim <= head_dims.get(capability[0], 0):
            return name
    return None


def activate_kernels(name: str, model: PreTrainedModel) -> None:
    """Make torch use the named FlashAttention, if it gives correct results for this model.

    The packages change, may lack some kernels, and may fail only in a backward pass. So their results are first
    compared with those of torch's own kernel.
    """
    from torch.nn import attention

    try:
        expected = trial(model)
        attention.activate_flash_attention_impl(name)
        agrees = all(
            bool((result - wanted).norm() <= TRIAL_TOLERANCE * wanted.norm())
            for result, wanted in zip(trial(model), expected, strict=True)
        )
    except Exception:  # an incompatible package may raise anything, and torch's own kernel remains
        agrees = False
    if not agrees and attention.current_flash_attention_impl() is not None:
        attention.restore_flash_attention_impl()


def trial(model: PreTrainedModel) -> list[torch.Tensor]:
    """Attention in a few rows and its gradients, with the model's heads and type, and also with a window if it has one."""
    import torch

    config, device = model.config.get_text_config(), model.device
    heads: int = config.num_attention_heads
    shared_heads = getattr(config, "num_key_value_heads", None) or heads
    dtype = model.dtype if model.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    generator = torch.Generator(device).manual_seed(0)
    starts = torch.tensor([0, *TRIAL_ROWS], device=device).cumsum(0).int()
    results: list[torch.Tensor] = []
    for window in (None, TRIAL_WINDOW) if getattr(config, "sliding_window", None) else (None,):
        shapes = [(1, count, sum(TRIAL_ROWS), head_dim(config)) for count in (heads, shared_heads, shared_heads)]
        states = [torch.randn(shape, generator=generator, device=device, dtype=dtype).requires_grad_() for shape in shapes]
        query, key, value = states
        places: dict[str, Any] = {"cu_seq_lens_q": starts, "max_length_q": max(TRIAL_ROWS)}
        with torch.enable_grad():
            out, _ = varlen_attention(torch.nn.Identity(), query, key, value, None, **places, sliding_window=window)
        results += [result.detach().float() for result in (out, *torch.autograd.grad(out, states, out.detach()))]
    return results
