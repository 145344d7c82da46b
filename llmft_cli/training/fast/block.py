"""A decoder layer's parts, and what of its forward pass is kept for the backward pass."""

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
        attention_output_norm, mlp_output_norm: weights of norms of what attention and MLP give, before it is added, or None.
        head_norms: weights of the norms of heads, of shape (heads of queries and of keys, head_dim), or None.
        attention: as transformers' AttentionInterface; takes queries, keys and values of shape
            (batch, heads, length, head_dim) and the keywords of the model's forward.
        query_size, key_size: columns of all heads of queries, and of keys, as of values.
        workspace: where a matrix of weights is put while it is used, shared by all layers.
        index: the layer's place in the model.
        recompute: keep the layer's input alone.
        offloaded: where it is kept then; None is on the device.
    """

    qkv: JoinedLinear
    o: JoinedLinear
    gate_up: JoinedLinear
    down: JoinedLinear
    input_norm: torch.Tensor
    attention_norm: torch.Tensor
    attention_output_norm: torch.Tensor | None
    mlp_output_norm: torch.Tensor | None
    head_norms: torch.Tensor | None
    epsilon: float
    activation: Activation
    attention: Callable[..., torch.Tensor]
    query_size: int
    key_size: int
    head_dim: int
    workspace: torch.Tensor
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
    """Cosines and sines of the rotary embedding, of shape (tokens, head_dim)."""

    cosines: torch.Tensor
    sines: torch.Tensor


@dataclass
class Given:
    """What attention or MLP gave, of shape (tokens, hidden), and the scales of the norm of it."""

    rows: torch.Tensor
    scales: torch.Tensor


@dataclass
class KeptAttention:
    """What the backward pass needs of the attention, beside the layer's input; rows are tokens.

    Attributes:
        qkv: rotated, or before the norms of heads, with room behind them.
        parts: queries, keys and values as the attention took them, which gradients are asked for.
        attended: what it gave, with the graph of its own.
        scales: of the norm before, as `Kernels.rms_norm` gives them.
        output: where a norm of it is behind the attention.
    """

    qkv: torch.Tensor
    parts: list[torch.Tensor]
    attended: torch.Tensor
    scales: torch.Tensor
    qkv_projected: torch.Tensor | None
    o_projected: torch.Tensor | None
    output: Given | None


@dataclass
class KeptMlp:
    """What it needs of the MLP.

    Attributes:
        inputs: the residual stream between attention and MLP.
        gate_up: with room behind them.
        scales: of the norm before.
        output: where a norm of it is behind the MLP.
    """

    inputs: torch.Tensor
    gate_up: torch.Tensor
    scales: torch.Tensor
    gate_up_projected: torch.Tensor | None
    down_projected: torch.Tensor | None = None
    output: Given | None = None
