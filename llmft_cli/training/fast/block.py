"""The parts of a decoder layer, and what its forward pass keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from llmft_cli.training.fast.joined_linear import JoinedLinear
from llmft_cli.training.fast.kernels.interface import Activation, Kernels
from llmft_cli.training.fast.offloaded_inputs import OffloadedInputs


@dataclass
class Block:
    """The parts of a layer.

    Attributes:
        input_norm, attention_norm: weights of the norms before attention and MLP, as `Kernels.rms_norm` takes them.
        attention_output_norm, mlp_output_norm: weights of the norms behind attention and MLP, before their outputs are
            added to the residual stream; None where the model has none.
        head_norms: weights of the norms of query and key heads; None where the model has none.
        attention: as transformers' AttentionInterface; takes queries, keys and values of shape
            (batch, heads, length, head_dim) and the keywords of the model's forward.
        query_size, key_size: columns of all query heads, and of all key heads; values have as many as keys.
        workspace: holds a matrix of weights while it is used; all layers share it.
        index: the layer's place in the model.
        recompute: keep only the layer's input, and recompute the rest in the backward pass.
        offloaded: where that input is kept; None is on the device.
    """

    qkv: JoinedLinear
    o: JoinedLinear
    gate_up: JoinedLinear
    down: JoinedLinear
    input_norm: torch.Tensor  # (hidden,)
    attention_norm: torch.Tensor  # (hidden,)
    attention_output_norm: torch.Tensor | None  # (hidden,)
    mlp_output_norm: torch.Tensor | None  # (hidden,)
    head_norms: torch.Tensor | None  # (query heads + key heads, head_dim)
    epsilon: float
    activation: Activation
    attention: Callable[..., torch.Tensor]
    query_size: int
    key_size: int
    head_dim: int
    workspace: torch.Tensor  # (values of the largest matrix,)
    kernels: Kernels
    index: int = 0
    recompute: bool = False
    offloaded: OffloadedInputs | None = None

    @property
    def linears(self) -> tuple[JoinedLinear, ...]:
        return self.qkv, self.o, self.gate_up, self.down

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [weights for linear in self.linears for weights in linear.parameters]


@dataclass
class Angles:
    """Of the rotary embedding."""

    cosines: torch.Tensor  # (tokens, head_dim)
    sines: torch.Tensor  # (tokens, head_dim)


@dataclass
class NormInput:
    """What a norm was given, and the scales that it multiplied each row with."""

    rows: torch.Tensor  # (tokens, hidden)
    scales: torch.Tensor  # (tokens,), fp32


@dataclass
class KeptAttention:
    """What the backward pass needs of the attention, besides the layer's input.

    Attributes:
        qkv: rotated, or as they were before the norms of heads; the last columns are room for gradients.
        parts: queries, keys and values as the attention took them; autograd computes their gradients.
        attended: the attention's output, with its graph.
        scales: of the norm before, as `Kernels.rms_norm` gives them.
        output: what the norm behind the attention was given, if there is one.
    """

    qkv: torch.Tensor  # (tokens, qkv + ranks)
    parts: list[torch.Tensor]  # (tokens, query), (tokens, key), (tokens, key)
    attended: torch.Tensor  # (tokens, query)
    scales: torch.Tensor  # (tokens,)
    qkv_projected: torch.Tensor | None  # (tokens, ranks)
    o_projected: torch.Tensor | None  # (tokens, ranks)
    output: NormInput | None


@dataclass
class KeptMlp:
    """What the backward pass needs of the MLP.

    Attributes:
        inputs: the residual stream between attention and MLP.
        gate_up: the last columns are room for gradients.
        scales: of the norm before.
        output: what the norm behind the MLP was given, if there is one.
    """

    inputs: torch.Tensor  # (tokens, hidden)
    gate_up: torch.Tensor  # (tokens, gate_up + ranks)
    scales: torch.Tensor  # (tokens,)
    gate_up_projected: torch.Tensor | None  # (tokens, ranks)
    down_projected: torch.Tensor | None = None  # (tokens, ranks)
    output: NormInput | None = None
