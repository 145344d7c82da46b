"""Which modules of a model get an adapter, and whether they can have one; needs no weights."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ConfigError, ModelError, first_line
from llmft_cli.base.libraries import import_transformers
from llmft_cli.models.config_lookup import read_shape
from llmft_cli.models.model_source import ModelSource
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"
# Mamba's kernels read the weights of these layers directly and would bypass an adapter, so PEFT rejects one there.
MAMBAS = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
READ_BY_KERNELS = ("out_proj", "conv1d")


def target_names(config: Config) -> list[str]:
    """The names in `target_modules`, which are not `all-linear`."""
    return config.target_modules.split(",")


def skeleton(source: ModelSource) -> PreTrainedModel:
    """The base model on the `meta` device: its modules, without memory for weights.

    Raises:
        ModelError: transformers cannot build it.
    """
    import torch

    shape = read_shape(source.name, source.path, trust_remote_code=source.trust_remote_code)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = import_transformers().AutoModelForCausalLM.from_config(
                shape, trust_remote_code=source.trust_remote_code
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source.name} cannot be built as a causal language model: {first_line(error)}") from error
    model.tie_weights()
    return model


def check_target_modules(model: PreTrainedModel, config: Config) -> None:
    """Check that every name in `target_modules` stands for modules that can have an adapter.

    Args:
        model: with its embeddings tied if they are; may be on `meta`.

    Raises:
        ConfigError: a name matches nothing, or a module that cannot have an adapter.
    """
    if config.target_modules == ALL_LINEAR:
        return
    unfit = set(unfit_linears(model))
    tied = tied_modules(model)
    for target in target_names(config):
        matches = list(matching(model, target))
        if not matches:
            raise ConfigError(f"--target-modules {target} matches no module of {config.model}", near_names(model, target))
        for name, module in matches:
            if name in tied:
                raise ConfigError(
                    f"--target-modules {target}: the input embeddings and the output layer of {config.model} share their "
                    "weight (tie_word_embeddings), so neither can have an adapter of its own",
                    f"omit {target}; --target-modules {ALL_LINEAR} adapts every other linear layer",
                )
            if name in unfit or not can_be_adapted(module):
                raise ConfigError(
                    f"--target-modules {target} matches {name}, a {type(module).__name__}, which cannot have an adapter",
                    near_names(model, target),
                )


def ranks_of(model: PreTrainedModel, config: Config) -> list[int]:
    """The rank of each linear layer that gets an adapter: no update of it can have a larger one."""
    return [min(linear.in_features, linear.out_features) for linear in adapted_linears(model, config)]


def matching(model: PreTrainedModel, target: str) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules that PEFT takes for a target: by full name, or by the end of it."""
    return ((name, module) for name, module in model.named_modules() if name == target or name.endswith(f".{target}"))


def adapted_linears(model: PreTrainedModel, config: Config) -> list[torch.nn.Linear]:
    """The linear layers that get an adapter."""
    import torch

    if config.target_modules == ALL_LINEAR:
        output, unfit = model.get_output_embeddings(), set(unfit_linears(model))
        chosen = [module for name, module in model.named_modules() if name not in unfit and module is not output]
    else:
        chosen = [module for target in target_names(config) for _, module in matching(model, target)]
    return [module for module in chosen if isinstance(module, torch.nn.Linear)]


def tied_modules(model: PreTrainedModel) -> set[str]:
    """Names of the input embeddings and the output layer if they share one weight."""
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is None or output.weight is not embeddings.weight:
        return set()
    return {name for name, module in model.named_modules() if module is embeddings or module is output}


def can_be_adapted(module: torch.nn.Module) -> bool:
    """Whether PEFT has a LoRA layer for modules of this type."""
    import torch
    from transformers.pytorch_utils import Conv1D

    convolutions = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    return isinstance(module, (torch.nn.Linear, torch.nn.Embedding, Conv1D, *convolutions))


def near_names(model: PreTrainedModel, target: str) -> str:
    """A hint with the names of modules that can have an adapter, the one most like the target first."""
    refused = {*unfit_linears(model), *tied_modules(model)}
    found = [name for name, module in model.named_modules() if name not in refused and can_be_adapted(module)]
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in found))
    near = difflib.get_close_matches(target.rpartition(".")[2], names, n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"--target-modules takes {', '.join(names)}, or {ALL_LINEAR}"


def unfit_linears(model: PreTrainedModel) -> Sequence[str]:
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
