"""Which models' layers `decoder_layer` supports, and how to find the parts of such a layer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.training.attention.varlen import head_dim
from llmft_cli.training.fast.block import Angles, Block
from llmft_cli.training.fast.decoder_layer import DecoderLayer
from llmft_cli.training.fast.joined_linear import JoinedLinear, member_of
from llmft_cli.training.fast.kernels.interface import Activation
from llmft_cli.training.fast.kernels.select import has_triton, kernels_for
from llmft_cli.training.fast.offloaded_inputs import OffloadedInputs

if TYPE_CHECKING:
    from peft import PeftModel

# transformers' models whose layers `decoder_layer` supports and whose logits are the unchanged output of the last layer.
PLAIN = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma3_text")
GEMMAS = ("gemma", "gemma3_text")  # their norms multiply by 1 + weight
ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
SEPARATE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
JOINED = (("qkv_proj",), ("gate_up_proj",))
BLOCK = "fast_block"  # a layer's attribute
NO_TRITON = "no Triton"


def why_not_fast(model: PeftModel) -> str | None:
    """What keeps a model with plain LoRA from the fast path, in a few words; None if nothing does."""
    config = model.config.get_text_config()
    if config.model_type not in PLAIN:
        return f"models of type {config.model_type} are not supported"
    if activation(config) not in ACTIVATIONS:
        return f"activation {activation(config)}"
    if getattr(config, "final_logit_softcapping", None) or getattr(config, "attn_logit_softcapping", None):
        return "capped logits"
    if getattr(config, "use_bidirectional_attention", False):
        return "bidirectional attention"
    if config.num_attention_heads * head_dim(config) % 64 or config.hidden_size % 64 or config.intermediate_size % 64:
        return "sizes that are not multiples of 64"
    if (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1) != 1:
        return "partial rotary embeddings"
    if getattr(config, "resid_pdrop", 0) or getattr(config, "attention_dropout", 0):
        return "dropout in the base model"
    if model.peft_config["default"].lora_dropout:
        return "LoRA dropout"
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        return "an output layer with a bias"
    if config._attn_implementation == "eager":
        return "eager attention"
    device = next(model.parameters()).device
    if device.type == "cuda" and not has_triton(device):
        return NO_TRITON
    layers = decoder_layers(model)
    return why_not_these_layers(layers, config.model_type) or why_not_these_weights(model, layers)


def why_not_these_layers(layers: list[Any], model_type: str) -> str | None:
    """The reason in the layers: custom or multimodal model code, or linear layers with another kind of quantisation."""
    family = model_type.removesuffix("_text")
    for layer in layers:
        if type(layer).__module__ != f"transformers.models.{family}.modeling_{family}":
            return f"layers of type {type(layer).__name__}, not the standard ones of {model_type}"
        for linear in linears_of(layer):
            base = member_of(linear).base
            if type(base) is not torch.nn.Linear and getattr(base.weight, "quant_state", None) is None:
                return f"linear layers of type {type(base).__name__}"
    return None


def why_not_these_weights(model: PeftModel, layers: list[Any]) -> str | None:
    inside = {id(weights) for layer in layers for name, weights in layer.named_parameters() if "_proj.lora_" in name}
    for name, weights in model.named_parameters():
        if weights.requires_grad and id(weights) not in inside:
            return f"{name} is trainable"
    return None


def activation(config: Any) -> str:
    name: str = config.hidden_activation if config.model_type == "gemma3_text" else config.hidden_act
    return name


def use_fast_layers(model: PeftModel) -> None:
    """Compute the layers of a model for which `why_not_fast` knows no reason as one function each, while it trains.

    Without gradients they stay transformers' and PEFT's own. The model is changed in place.
    """
    for index, layer in enumerate(decoder_layers(model)):
        block = make_block(layer, model.config.get_text_config(), index)
        setattr(layer, BLOCK, block)
        layer.forward = partial(fast_forward, block, layer.forward)
        for linear in block.linears:
            linear.take_over_dense_weights()
    keep_dequantized(model, False)


def keep_dequantized(model: PeftModel, whether: bool) -> None:
    """Dequantise the weights of fast layers once and for all, or those of one product at each use."""
    blocks = blocks_of(model)
    quantized = [linear for block in blocks for linear in block.linears if linear.is_quantized]
    for linear in quantized:
        if whether != (linear.kept is not None):
            linear.keep(whether)
    largest = 0 if whether else max((linear.size for linear in quantized), default=0)
    if largest != blocks[0].workspace.numel():
        workspace = torch.empty(largest, dtype=blocks[0].qkv.dtype, device=blocks[0].qkv.device)
        for block in blocks:
            block.workspace = workspace


def keeps_dequantized(model: Any) -> bool:
    """Whether 4-bit weights of fast layers are kept in 16 bits."""
    return any(linear.is_quantized and linear.kept is not None for block in blocks_of(model) for linear in block.linears)


def offload_activations(model: Any, whether: bool) -> None:
    """Keep the inputs of checkpointed fast layers in the host's memory, or where they are computed."""
    blocks = blocks_of(model)
    offloaded = OffloadedInputs(blocks[0].qkv.device) if whether and blocks else None
    for block in blocks:
        block.offloaded = offloaded


def block_of(layer: Any) -> Block | None:
    """What `use_fast_layers` made of a layer."""
    return getattr(layer, BLOCK, None)


def blocks_of(model: Any) -> list[Block]:
    return [block for layer in decoder_layers(model) if (block := block_of(layer)) is not None]


def held_tensors(module: Any) -> Iterator[torch.Tensor]:
    """What a fast layer holds on the device beside its weights."""
    block = block_of(module)
    if block is not None:
        norms = (block.input_norm, block.attention_norm, block.attention_output_norm, block.mlp_output_norm, block.head_norms)
        yield from (block.workspace, *(norm for norm in norms if norm is not None))
        yield from (linear.kept for linear in block.linears if linear.kept is not None)


def make_block(layer: Any, config: Any, index: int) -> Block:
    dtype = layer.input_layernorm.weight.dtype
    qkv, o, gate_up, down = (JoinedLinear([member_of(linear) for linear in group], dtype) for group in groups_of(layer))
    dim = head_dim(config)
    before_mlp, after_attention, after_mlp = norms_around_mlp(layer)
    return Block(
        qkv=qkv,
        o=o,
        gate_up=gate_up,
        down=down,
        input_norm=norm_weight(layer.input_layernorm, config),
        attention_norm=norm_weight(before_mlp, config),
        attention_output_norm=None if after_attention is None else norm_weight(after_attention, config),
        mlp_output_norm=None if after_mlp is None else norm_weight(after_mlp, config),
        head_norms=head_norms(layer.self_attn, config),
        epsilon=config.rms_norm_eps,
        activation=ACTIVATIONS[activation(config)],
        attention=partial(attend, layer.self_attn),
        query_size=config.num_attention_heads * dim,
        key_size=config.num_key_value_heads * dim,
        head_dim=dim,
        workspace=torch.empty(0),
        kernels=kernels_for(qkv.device),
        index=index,
    )


def norms_around_mlp(layer: Any) -> tuple[Any, Any, Any]:
    """Those before the MLP, and of what attention and MLP give, if any; with these, names have another meaning."""
    if not hasattr(layer, "pre_feedforward_layernorm"):
        return layer.post_attention_layernorm, None, None
    return layer.pre_feedforward_layernorm, layer.post_attention_layernorm, layer.post_feedforward_layernorm


def groups_of(layer: Any) -> list[list[Any]]:
    """The linear layers that share their input: of queries, keys and values, o, gate and up, and down."""
    attention, mlp = layer.self_attn, layer.mlp
    inputs_of_attention, inputs_of_mlp = SEPARATE if hasattr(attention, "q_proj") else JOINED
    qkv = [getattr(attention, name) for name in inputs_of_attention]
    return [qkv, [attention.o_proj], [getattr(mlp, name) for name in inputs_of_mlp], [mlp.down_proj]]


def linears_of(layer: Any) -> Iterator[Any]:
    for group in groups_of(layer):
        yield from group


def norm_weight(norm: Any, config: Any) -> torch.Tensor:
    """As `Kernels.rms_norm` takes it."""
    weight: torch.Tensor = norm.weight.detach()
    return 1 + weight.float() if config.model_type in GEMMAS else weight


def head_norms(attention: Any, config: Any) -> torch.Tensor | None:
    """Weights of the norms of queries and keys, of shape (their heads, head_dim), where a model has such norms."""
    if not hasattr(attention, "q_norm"):
        return None
    heads = (attention.q_norm, config.num_attention_heads), (attention.k_norm, config.num_key_value_heads)
    return torch.cat([norm_weight(norm, config).expand(count, -1) for norm, count in heads])


def attend(attention: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = attention.config
    dtype = query.dtype
    if query.device.type == "cpu":  # torch's attention in 16 bits takes three times as long there
        query, key, value = query.float(), key.float(), value.float()
    function: Any = ALL_ATTENTION_FUNCTIONS[config._attn_implementation]
    result: torch.Tensor = function(
        attention,
        query,
        key,
        value,
        dropout=0.0,
        scaling=attention.scaling,
        sliding_window=sliding_window(attention),
        **options,
    )[0]
    return result.to(dtype)


def sliding_window(attention: Any) -> int | None:
    """Tokens that a token sees, as the attention of its type passes it on; Llama's and Gemma's never does."""
    of_all_layers = attention.config.model_type in ("mistral", "phi3")
    size: int | None = getattr(attention.config if of_all_layers else attention, "sliding_window", None)
    return size


def fast_forward(block: Block, plain_forward: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """A layer's forward; without gradients it is transformers' own, as in chat and eval."""
    if not torch.is_grad_enabled():
        return plain_forward(hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
    options = {
        name: value for name, value in kwargs.items() if name not in ("position_embeddings", "past_key_values", "use_cache")
    }
    cosines, sines = (angles.expand(len(hidden_states), -1, -1).flatten(0, 1) for angles in kwargs["position_embeddings"])
    result: torch.Tensor = DecoderLayer.apply(  # type: ignore[no-untyped-call]
        hidden_states, block, Angles(cosines, sines), options, *block.parameters
    )
    return result
