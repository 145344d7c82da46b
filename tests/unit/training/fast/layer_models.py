"""Small models of every type that has fast layers, with adapters as they are in the middle of a training."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from llmft_cli.models import loading, random_model
from llmft_cli.models.adapters import add_adapter
from llmft_cli.settings.config import resolve

TYPES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma3_text")
ROW_LENGTHS = (15, 9)  # packed into one sequence
SEQUENCES, HIDDEN, VOCABULARY = 2, 64, 96


def small_config(model_type: str, **changes: Any) -> transformers.PreTrainedConfig:
    """Four heads of queries and two of keys; a head's dimension is not a hidden size's share where the type allows it."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    own = {"head_dim": 32} if model_type in ("qwen3", "gemma", "gemma3_text", "mistral") else {}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.AutoConfig.for_model(model_type, **{**sizes, **heads, **own, **ids, **changes})


def tuned(
    model_type: str,
    quantization: str = "none",
    dtype: torch.dtype = torch.float32,
    changes: dict[str, Any] | None = None,
    **flags: Any,
) -> Any:
    """A model that trains plain LoRA as PEFT does; no B matrix, norm or bias is what it is at the start."""
    torch.manual_seed(0)
    base = random_model.build(small_config(model_type, **(changes or {})), torch.device("cpu"), quantization, dtype)
    loading.keep_training_layout(base)
    model = add_adapter(base, resolve({"lora_r": 4, **flags}), "small")
    for name, weights in model.named_parameters():
        if "lora_B" in name or name.endswith(".bias"):
            torch.nn.init.normal_(weights, std=0.1)
        elif "norm" in name:
            torch.nn.init.normal_(weights, 0.0 if "gemma" in model_type else 1.0, 0.2)
    return model.train()


def some_targets(model_type: str) -> str:
    """Modules of which some share their input with others that have no adapter."""
    return "qkv_proj,down_proj" if model_type == "phi3" else "q_proj,v_proj,down_proj"


def positions() -> torch.Tensor:
    """Position ids, which restart at every row."""
    return torch.tensor([[place for length in ROW_LENGTHS for place in range(length)]] * SEQUENCES)


def gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of fixed hidden states, and its gradients by the hidden states and by every weight that is trained."""
    model.zero_grad()
    generator = torch.Generator().manual_seed(1)
    length = sum(ROW_LENGTHS)
    hidden = torch.randn(SEQUENCES, length, HIDDEN, generator=generator).to(model.dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (SEQUENCES * length,), generator=generator)
    logits = model(inputs_embeds=hidden, position_ids=positions(), use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets)
    loss.backward()
    found = {name: weights.grad.clone() for name, weights in model.named_parameters() if weights.requires_grad}
    assert hidden.grad is not None
    return loss.item(), {**found, "hidden": hidden.grad}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the expected norm."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()
