"""LoRA adapters: create, save as plain PEFT directories, and load with verification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ConfigError, ModelError, VerificationError
from llmft_cli.base.file_checks import DamagedFile, read_json, read_safetensors_header, reading_foreign
from llmft_cli.base.libraries import import_bitsandbytes
from llmft_cli.models.model_files import ADAPTER_CONFIG_FILE
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

WEIGHTS_FILE = "adapter_model.safetensors"
# Mamba's kernels read the weights of these layers directly and would bypass an adapter, so PEFT rejects one there.
MAMBAS = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
READ_BY_KERNELS = ("out_proj", "conv1d")


def lora_config(config: Config, base_name: str, left_out: Sequence[str] = ()) -> LoraConfig:
    """PEFT's configuration of the adapter.

    Args:
        base_name: the base model's name in the adapter's config.
        left_out: modules to exclude from `all-linear`.
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
    """Add a new adapter to the frozen base; its weights are in fp32, whatever the base's dtype.

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
            f"target_modules {config.target_modules}: {error}", "name linear modules of the model, or use all-linear"
        ) from error
    # get_peft_model records the path that the base was loaded from; users of the adapter need its name.
    tuned.peft_config["default"].base_model_name_or_path = base_name
    return tuned


def unfit_linears(model: PreTrainedModel) -> list[str]:
    """Linear layers that cannot have an adapter: they return more than a tensor (routers of experts), or are never called."""
    import torch

    read_by_kernels = READ_BY_KERNELS if model.config.model_type in MAMBAS else ()
    unfit = []
    for name, module in model.named_modules():
        router = isinstance(module, torch.nn.Linear) and not is_plain(module) and not gives_a_tensor(module)
        if router or name.rpartition(".")[2] in read_by_kernels:
            unfit.append(name)
    return unfit


def is_plain(linear: torch.nn.Linear) -> bool:
    """Whether it is a linear layer of torch or bitsandbytes, not a model's own class."""
    return type(linear).__module__.partition(".")[0] in ("torch", "bitsandbytes")


def gives_a_tensor(linear: torch.nn.Linear) -> bool:
    import torch

    with torch.no_grad():
        result: Any = linear(torch.zeros(1, linear.in_features, dtype=linear.weight.dtype, device=linear.weight.device))
    return isinstance(result, torch.Tensor)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Save the adapter in PEFT's format. Embeddings are not trained; checking them would query the Hub."""
    model.save_pretrained(str(folder), save_embedding_layers=False)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Load the adapter in `folder` onto its base, for inference.

    Raises:
        ModelError: it cannot be read, or does not fit the model.
        VerificationError: some of its weights were not loaded, or it has no effect.
    """
    import_bitsandbytes()
    from peft import PeftModel

    try:
        read_json(folder / ADAPTER_CONFIG_FILE)
        names = read_safetensors_header(folder / WEIGHTS_FILE)[1]
        with reading_foreign(folder):
            tuned = PeftModel.from_pretrained(model, str(folder)).eval()
    except DamagedFile as error:
        raise ModelError(f"the adapter {folder} cannot be loaded: {error}", error.cure) from error
    placed = sum("lora_" in name for name, _ in tuned.named_parameters())
    if placed != len(names):
        raise VerificationError(f"the adapter {folder} has {len(names)} weights, but the model has {placed}")
    check_changes_something(tuned)
    return tuned


def check_changes_something(model: PeftModel) -> None:
    """Check that the adapter differs from the base model.

    Raises:
        VerificationError: all B matrices are zero, or some weights are not finite.
    """
    matrices = [weights for name, weights in model.named_parameters() if ".lora_B." in name]
    if not all(weights.isfinite().all() for weights in matrices):
        raise VerificationError("the adapter has weights that are not finite", "train with a lower --learning-rate")
    if not any(weights.any() for weights in matrices):
        raise VerificationError(
            "the adapter has no effect: all its B matrices are zero", "train longer, or with another --learning-rate"
        )
