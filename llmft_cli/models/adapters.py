"""LoRA adapters: made for a base model, saved as plain PEFT directories, and loaded whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ConfigError, ModelError, VerificationError
from llmft_cli.base.libraries import import_bitsandbytes
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

WEIGHTS_FILE = "adapter_model.safetensors"
# Mamba's kernels read the weights of these layers themselves and would pass an adapter by; PEFT refuses it there.
MAMBAS = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
READ_BY_KERNELS = ("out_proj", "conv1d")


def lora_config(config: Config, base_name: str, left_out: Sequence[str] = ()) -> LoraConfig:
    """PEFT's configuration of the adapter.

    Args:
        base_name: what it will call its base.
        left_out: modules that get no adapter where all linear ones do.
    """
    from peft import LoraConfig

    targets: str | list[str] = config.target_modules
    if targets != "all-linear":
        targets = [name.strip() for name in config.target_modules.split(",") if name.strip()]
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        exclude_modules=list(left_out) or None,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=True if config.init_lora_weights == "default" else config.init_lora_weights,
    )


def add_adapter(model: PreTrainedModel, config: Config, base_name: str) -> PeftModel:
    """A fresh adapter on the frozen base, its weights in fp32 whatever the base's type.

    Raises:
        ConfigError: no module of the model matches the target modules.
    """
    import_bitsandbytes()
    from peft import get_peft_model

    left_out = unfit_linears(model) if config.target_modules == "all-linear" else []
    try:
        tuned = get_peft_model(model, lora_config(config, base_name, left_out))
    except ValueError as error:
        raise ConfigError(
            f"target_modules {config.target_modules}: {error}", "name linear modules of the model, or all-linear"
        ) from error
    # get_peft_model writes the path the base was loaded from; users of the adapter need its name.
    tuned.peft_config["default"].base_model_name_or_path = base_name
    return tuned


def unfit_linears(model: PreTrainedModel) -> list[str]:
    """Linear layers that give more than a product, as routers of experts do, or are not called for it."""
    import torch

    read_by_kernels = READ_BY_KERNELS if model.config.model_type in MAMBAS else ()
    unfit = []
    for name, module in model.named_modules():
        router = isinstance(module, torch.nn.Linear) and not is_plain(module) and not gives_a_tensor(module)
        if router or name.rpartition(".")[2] in read_by_kernels:
            unfit.append(name)
    return unfit


def is_plain(linear: torch.nn.Linear) -> bool:
    """Whether it is torch's linear layer or one of bitsandbytes, and no model's own."""
    return type(linear).__module__.partition(".")[0] in ("torch", "bitsandbytes")


def gives_a_tensor(linear: torch.nn.Linear) -> bool:
    import torch

    with torch.no_grad():
        result: Any = linear(torch.zeros(1, linear.in_features, dtype=linear.weight.dtype, device=linear.weight.device))
    return isinstance(result, torch.Tensor)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter as plain PEFT reads it. Embeddings are not trained, so the Hub is not asked about them."""
    model.save_pretrained(str(folder), save_embedding_layers=False)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The adapter in `folder` on its base, for inference.

    Raises:
        ModelError: it cannot be read, or does not fit the model.
        VerificationError: some of its weights found no place in the model, or it changes nothing.
    """
    import_bitsandbytes()
    from peft import PeftModel
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as stored:
            names = list(stored.keys())
        tuned = PeftModel.from_pretrained(model, str(folder)).eval()
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ModelError(f"the adapter {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    placed = sum("lora_" in name for name, _ in tuned.named_parameters())
    if placed != len(names):
        raise VerificationError(f"the adapter {folder} has {len(names)} weights, the model took {placed}")
    check_changes_something(tuned)
    return tuned


def check_changes_something(model: PeftModel) -> None:
    """An adapter whose B matrices are all zero is the base model under another name.

    Raises:
        VerificationError: it is so, or the weights are no numbers.
    """
    matrices = [weights for name, weights in model.named_parameters() if ".lora_B." in name]
    if not all(weights.isfinite().all() for weights in matrices):
        raise VerificationError(
            "the adapter is broken: it has weights that are not finite", "train with a lower --learning-rate"
        )
    if not any(weights.any() for weights in matrices):
        raise VerificationError(
            "the adapter changes nothing: all its B matrices are zero", "train longer, or with another --learning-rate"
        )
