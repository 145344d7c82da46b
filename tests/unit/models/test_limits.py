"""What a model's config says of its positions; for the types in question, that the model itself agrees."""

from __future__ import annotations

from typing import Any

import pytest

from llmft_cli.base.errors import ConfigError
from llmft_cli.base.reporter import Silent
from llmft_cli.models.limits import Limits, limits_of, note_reduction, within_positions
from llmft_cli.settings.config import resolve


class Told(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def shape(model_type: str, **values: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(model_type, **values)


def yarn(factor: float) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 32768}


LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("model_type", "values", "positions"),
    [
        ("llama", {"max_position_embeddings": 4096}, 4096),
        # The number before scaling, so that a Llama with linear scaling by 2 has twice as many.
        ("llama", {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, 8192),
        ("llama", {"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 8192),
        # The extended number already, as Llama 3.1 has it.
        (
            "llama",
            {"max_position_embeddings": 131072, "rope_scaling": LLAMA_3 | {"original_max_position_embeddings": 8192}},
            131072,
        ),
        # Qwen2.5's documentation adds the scaling and leaves the number as it is.
        ("qwen2", {"max_position_embeddings": 32768, "rope_scaling": yarn(4.0)}, 131072),
        ("qwen2", {"max_position_embeddings": 131072, "rope_scaling": yarn(4.0)}, 131072),
        # Gemma 3 scales some layers, and gives the extended number.
        ("gemma3_text", {"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 131072),
        ("gpt2", {"n_positions": 1024}, 1024),
        ("opt", {"max_position_embeddings": 2048}, 2048),
        ("mpt", {"max_seq_len": 2048}, 2048),
        ("bloom", {}, None),
        ("mamba", {}, None),
    ],
)
def test_positions(model_type: str, values: dict[str, Any], positions: int | None) -> None:
    assert limits_of(shape(model_type, **values), "m").positions == positions


def test_embedding_rows() -> None:
    assert limits_of(shape("llama", vocab_size=320), "m").embedding_rows == 320


SMALL = {"vocab_size": 128, "n_layer": 2, "n_head": 2, "num_hidden_layers": 2, "num_attention_heads": 2, "num_layers": 2}
SMALL |= {"num_heads": 2, "n_layers": 2, "n_heads": 2, "intermediate_size": 64, "ffn_dim": 64, "word_embed_proj_dim": 64}
SMALL |= {"hidden_size": 64, "n_embd": 64, "d_model": 64, "rotary_dim": 16, "attention_types": [[["global"], 2]]}
SMALL |= {"attention_heads": 2, "max_position_embeddings": 32, "n_positions": 32, "max_seq_len": 32, "n_ctx": 32}
SMALL |= {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    ("model_type", "fails"),
    [
        *((name, True) for name in ("gpt2", "gpt_neo", "gptj", "gpt_bigcode", "opt", "biogpt", "ctrl", "mpt", "openai-gpt")),
        *((name, False) for name in ("llama", "phi", "gpt_neox", "falcon", "stablelm", "xglm", "rwkv", "bloom", "nemotron_h")),
    ],
)
def test_a_model_fails_beyond_its_positions_if_and_only_if_its_limits_say_so(model_type: str, fails: bool) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    default = shape(model_type)
    known = {name: value for name, value in SMALL.items() if name in {*default.to_dict(), *default.attribute_map}}
    config = shape(model_type, **known)
    limits = limits_of(config, "m")
    assert limits.positions in (32, None)
    assert limits.fails_beyond == fails
    with torch.device("cpu"), torch.no_grad():
        model = AutoModelForCausalLM.from_config(config).eval()
        model(input_ids=torch.full((1, 32), 5))
        try:
            model(input_ids=torch.full((1, 33), 5))
        except (IndexError, RuntimeError):
            assert fails
        else:
            assert not fails


@pytest.mark.parametrize("table", [True, False])
def test_the_default_length_comes_down_to_the_positions_and_is_told(table: bool) -> None:
    told, limits, asked = Told(), Limits("m", 1024, table, None), resolve({})
    config = within_positions(asked, limits, told)
    assert config.max_seq_length == 1024
    note_reduction(asked, config, limits, told)
    note_reduction(config, config, limits, told)
    assert told.notes == ["rows have up to 1,024 tokens (--max-seq-length), because m has no more positions"]
    assert told.warnings == []


@pytest.mark.parametrize(("length", "given"), [(4096, False), (2048, True)])
def test_a_longer_one_that_is_asked_for_is_refused_where_the_model_would_fail(length: int, given: bool) -> None:
    with pytest.raises(ConfigError) as raised:
        within_positions(resolve({"max_seq_length": length}), Limits("gpt2", 1024, True, None), Silent(), given)
    expected = f"--max-seq-length {length} is more than the 1024 positions of gpt2, which cannot process longer rows"
    assert raised.value.message == expected
    assert raised.value.hint == "use --max-seq-length 1024 or less"


def test_a_longer_one_that_is_asked_for_is_warned_of_where_the_model_only_gets_worse() -> None:
    told = Told()
    assert within_positions(resolve({"max_seq_length": 4096}), Limits("m", 1024, False, None), told).max_seq_length == 4096
    assert len(told.warnings) == 1
    assert told.warnings[0].startswith("--max-seq-length 4096 is more than the 1024 positions of m:")


@pytest.mark.parametrize("positions", [2048, 100_000, None])
def test_a_length_within_the_positions_stays_as_it_is(positions: int | None) -> None:
    told = Told()
    assert within_positions(resolve({}), Limits("m", positions, True, None), told).max_seq_length == 2048
    assert told.notes == told.warnings == []
