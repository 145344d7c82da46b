"""Models built from a config, with random weights or on the `meta` device.

On `meta` a model has shapes and dtypes but no memory, which is enough to trace a training step.
On a GPU, weights are created and quantised module by module, so that the 16-bit weights of a
large model are never in memory together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmft_cli.base.libraries import import_bitsandbytes, import_transformers
from llmft_cli.models.loading import quantization_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

WEIGHT_STANDARD_DEVIATION = 0.02


def build(shape: PreTrainedConfig, device: torch.device, quantization: str, dtype: torch.dtype) -> PreTrainedModel:
    """A frozen causal language model like those of `loading.load_base`, with random weights.

    Args:
        shape: the model's config.
        device: of the weights; may be `meta`.
        quantization: `nf4`, `fp4`, `int8` or `none`.
        dtype: of the dense weights and of the computation.
    """
    model = unfilled(shape, dtype)
    fill_all(model, device, quantization, dtype)
    return model


def unfilled(shape: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model of this shape on the `meta` device, without quantised layers."""
    import torch

    import_bitsandbytes()  # before transformers does, to silence its warnings
    transformers = import_transformers()
    with torch.device("meta"):
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(shape, dtype=dtype)
    return model


def fill_all(model: PreTrainedModel, device: torch.device, quantization: str, dtype: torch.dtype) -> None:
    """Make a model from `unfilled` one from `build`: quantised, with frozen weights on the device."""
    import torch

    if quantization != "none":
        use_quantized_layers(model, quantization, dtype)
    with torch.no_grad():
        for module in model.modules():
            fill(model, module, device, dtype)
    model.tie_weights()
    model.requires_grad_(False).eval()


def use_quantized_layers(model: PreTrainedModel, quantization: str, dtype: torch.dtype) -> None:
    """Replace with bitsandbytes' layers those linear layers that transformers would replace at load time."""
    from transformers.integrations import replace_with_bnb_linear
    from transformers.quantizers import AutoHfQuantizer

    config = quantization_config(quantization, dtype)
    kept = AutoHfQuantizer.from_config(config).get_modules_to_not_convert(model)
    replace_with_bnb_linear(model, modules_to_not_convert=kept, quantization_config=config)
    model.config.quantization_config = config
    setattr(model, "is_loaded_in_8bit" if quantization == "int8" else "is_loaded_in_4bit", True)


def fill(model: PreTrainedModel, module: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Initialise a module's own weights and buffers on the device."""
    bitsandbytes = import_bitsandbytes()
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        module.weight = quantized_weight(module, device, dtype)
        fill_bias(module, device)
    elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
        weight = random_weight(module.weight.shape, device, dtype)
        module.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        module.weight.data = module.weight.to(device)
        fill_bias(module, device)
    elif device.type != "meta" and (module._parameters or module._buffers):
        module.to_empty(device=device, recurse=False)
        model._init_weights(module)


def fill_bias(module: Any, device: torch.device) -> None:
    import torch

    if module.bias is not None:
        module.bias = torch.nn.Parameter(torch.zeros_like(module.bias, device=device), requires_grad=False)


def quantized_weight(module: Any, device: torch.device, dtype: torch.dtype) -> Any:
    bitsandbytes = import_bitsandbytes()
    # bitsandbytes caches this table on the first device that it quantises on; on `meta` it would have no values.
    if "dynamic" not in bitsandbytes.functional.name2qmap:
        bitsandbytes.functional.name2qmap["dynamic"] = bitsandbytes.functional.create_dynamic_map()
    kind = module.weight.quant_type
    weight = random_weight((module.out_features, module.in_features), device, dtype)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type=kind, compress_statistics=True)
    return bitsandbytes.nn.Params4bit(
        packed, requires_grad=False, quant_state=state, quant_type=kind, bnb_quantized=True, module=module
    )


def random_weight(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    import torch

    return torch.empty(shape, device=device, dtype=dtype).normal_(std=WEIGHT_STANDARD_DEVIATION)
