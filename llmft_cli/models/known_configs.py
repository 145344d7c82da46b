"""Published configs of models whose own config needs an account, a network or a download.

Values are from the `config.json` in each model's repository on the Hub. Only those that affect memory are
here: a model built from them has weights of the right shapes, but real weights should not be loaded into it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmft_cli.base.libraries import import_transformers
from llmft_cli.models import builtin

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def llama(
    vocabulary: int, hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int, positions: int, **more: Any
) -> dict[str, Any]:
    """A config in transformers' terms; Mistral's has the same keys."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": positions,
        "tie_word_embeddings": False,
        "model_type": "llama",
        **more,
    }


LLAMA_2_7B = llama(32_000, 4096, 11_008, 32, 32, 32, 4096)
LLAMA_2_13B = llama(32_000, 5120, 13_824, 40, 40, 40, 4096)
LLAMA_2_70B = llama(32_000, 8192, 28_672, 80, 64, 8, 4096)
LLAMA_3_8B = llama(128_256, 4096, 14_336, 32, 32, 8, 8192)
LLAMA_3_70B = llama(128_256, 8192, 28_672, 80, 64, 8, 8192)
LLAMA_3_1_8B = LLAMA_3_8B | {"max_position_embeddings": 131_072}
LLAMA_3_1_70B = LLAMA_3_70B | {"max_position_embeddings": 131_072}
LLAMA_3_2_1B = llama(128_256, 2048, 8192, 16, 32, 8, 131_072, tie_word_embeddings=True)
LLAMA_3_2_3B = llama(128_256, 3072, 8192, 28, 24, 8, 131_072, tie_word_embeddings=True)
MISTRAL_7B = llama(32_000, 4096, 14_336, 32, 32, 8, 32_768, model_type="mistral", sliding_window=None)
SMOLLM2_135M = llama(49_152, 576, 1536, 30, 9, 3, 8192, tie_word_embeddings=True)

SHAPES = {
    builtin.NAME: SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-135M": SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-135M-Instruct": SMOLLM2_135M,
    "meta-llama/Llama-2-7b-hf": LLAMA_2_7B,
    "meta-llama/Llama-2-7b-chat-hf": LLAMA_2_7B,
    "meta-llama/Llama-2-13b-hf": LLAMA_2_13B,
    "meta-llama/Llama-2-13b-chat-hf": LLAMA_2_13B,
    "meta-llama/Llama-2-70b-hf": LLAMA_2_70B,
    "meta-llama/Llama-2-70b-chat-hf": LLAMA_2_70B,
    "meta-llama/Meta-Llama-3-8B": LLAMA_3_8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA_3_8B,
    "meta-llama/Meta-Llama-3-70B": LLAMA_3_70B,
    "meta-llama/Meta-Llama-3-70B-Instruct": LLAMA_3_70B,
    "meta-llama/Llama-3.1-8B": LLAMA_3_1_8B,
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA_3_1_8B,
    "meta-llama/Llama-3.1-70B": LLAMA_3_1_70B,
    "meta-llama/Llama-3.1-70B-Instruct": LLAMA_3_1_70B,
    "meta-llama/Llama-3.2-1B": LLAMA_3_2_1B,
    "meta-llama/Llama-3.2-1B-Instruct": LLAMA_3_2_1B,
    "meta-llama/Llama-3.2-3B": LLAMA_3_2_3B,
    "meta-llama/Llama-3.2-3B-Instruct": LLAMA_3_2_3B,
    "meta-llama/Llama-3.3-70B-Instruct": LLAMA_3_1_70B,
    "mistralai/Mistral-7B-v0.1": MISTRAL_7B | {"sliding_window": 4096},
    "mistralai/Mistral-7B-Instruct-v0.1": MISTRAL_7B | {"sliding_window": 4096},
    "mistralai/Mistral-7B-Instruct-v0.2": MISTRAL_7B,
    "mistralai/Mistral-7B-v0.3": MISTRAL_7B | {"vocab_size": 32_768},
    "mistralai/Mistral-7B-Instruct-v0.3": MISTRAL_7B | {"vocab_size": 32_768},
}


def known_shape(name: str) -> PreTrainedConfig | None:
    """The config of a well-known model, by its Hub id or the built-in name; None if it is not in the table."""
    shape = SHAPES.get(name)
    if shape is None:
        return None
    config: PreTrainedConfig = import_transformers().AutoConfig.for_model(**shape)
    return config
