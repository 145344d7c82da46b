"""FlashAttention 3 and 4 in the place of the FlashAttention-2 that torch has, where they are installed.

They are written for GPUs of compute capability 9 and 10. The package flash_attn 2.x is what torch has, and would gain nothing.
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
    """A FlashAttention that torch can be told to use in the place of its own."""

    modules: tuple[str, ...]  # without which it cannot be imported; its top-level packages, which are cheap to look for
    head_dims: dict[int, int]  # the largest, by the major number of the GPU's compute capability


# By the names that torch has for them; the first is taken that can be. torch checks the capability at each call, the
# packages check head_dim, and both raise: nothing falls back. FlashAttention 4 shares its package's name with 2.x, but
# is compiled by nvidia-cutlass-dsl; beyond 128 it has on 10.x no more than a kernel for 256, in its newest versions.
NEWER_KERNELS = {
    "FA3": NewerKernel(("flash_attn_interface",), {9: 256}),
    "FA4": NewerKernel(("flash_attn", "cutlass"), {9: 256, 10: 128}),
}
TRIAL_ROWS = (300, 33, 307)
TRIAL_WINDOW = 64
TRIAL_TOLERANCE = 0.05  # of the norm; what 16 bits round is far below, a token more in the window is above


def use_newer_kernels(model: PreTrainedModel) -> None:
    """Have torch compute attention with what `choose_kernels` finds, or else with its own, for a model on a GPU."""
    import torch
    from torch.nn import attention

    if attention.current_flash_attention_impl() is not None:  # for a model before this one, which may differ
        attention.restore_flash_attention_impl()
    modules = {module for kernels in NEWER_KERNELS.values() for module in kernels.modules}
    installed = {module for module in modules if find_spec(module) is not None}
    capability = torch.cuda.get_device_capability(model.device)
    known = attention.list_flash_attention_impls()
    name = choose_kernels(capability, known, installed, head_dim(model.config.get_text_config()))
    if name is not None:
        activate_kernels(name, model)


def choose_kernels(capability: tuple[int, int], known: Collection[str], installed: set[str], head_dim: int) -> str | None:
    """The FlashAttention to use in the place of torch's own, if any.

    Args:
        capability: of the GPU.
        known: names of those that this torch can use.
        installed: top-level modules that can be imported.
        head_dim: of the model. Sliding windows, fewer key-value heads and gradients are for all of them.
    """
    for name, (modules, head_dims) in NEWER_KERNELS.items():
        if name in known and installed.issuperset(modules) and head_dim <= head_dims.get(capability[0], 0):
            return name
    return None


def activate_kernels(name: str, model: PreTrainedModel) -> None:
    """Have torch compute attention with the named FlashAttention, unless what is installed does not do for this model.

    The packages change, may be built without some kernels, and fail as late as in a backward pass; so
    results of a trial are held to those of torch's own kernel first.
    """
    from torch.nn import attention

    try:
        expected = trial(model)
        attention.activate_flash_attention_impl(name)
        agrees = all(
            bool((result - wanted).norm() <= TRIAL_TOLERANCE * wanted.norm())
            for result, wanted in zip(trial(model), expected, strict=True)
        )
    except Exception:  # whatever a package that does not match raises, attention can be computed without it
        agrees = False
    if not agrees and attention.current_flash_attention_impl() is not None:
        attention.restore_flash_attention_impl()


def trial(model: PreTrainedModel) -> list[torch.Tensor]:
    """Attention within a few rows and its gradients, with the model's heads and type; with a window too, where it has one."""
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
