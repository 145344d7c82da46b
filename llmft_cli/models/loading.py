"""Loads a base model's tokenizer and weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import MachineError, ModelError
from llmft_cli.base.file_checks import DamagedFile, reading_foreign
from llmft_cli.base.libraries import import_bitsandbytes, import_transformers
from llmft_cli.models.model_files import cure_of, reading_model
from llmft_cli.models.model_source import ModelSource
from llmft_cli.run_dir.artifacts import reading
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings.quantities import format_count

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GIBIBYTE = 2**30
EXPERTS_DIMENSIONS = 3
NOTABLE_SHARE = 0.1


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a model or run directory.

    Raises:
        ModelError: there is none, or it has no fast version (the loss mask needs character offsets).
    """
    transformers = import_transformers()
    try:
        with reading_foreign(path):
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except DamagedFile as error:
        raise ModelError(f"{path} has no usable tokenizer: {error.reason}") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer in {path} has no fast version, which the loss mask needs", "convert it to tokenizer.json"
        )
    return tokenizer


def load_run_tokenizer(run: RunDir, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer that a run was prepared with.

    Raises:
        StageError: it is missing or damaged; the hint is the command that recreates it.
    """
    with reading(run, run.tokenizer):
        return load_tokenizer(run.tokenizer, trust_remote_code)


def pick_device(wanted: str) -> torch.device:
    """The device for `cpu`, `cuda` or `auto` (the first GPU, else the CPU).

    Raises:
        MachineError: `cuda` is wanted and torch sees no GPU.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise MachineError("--device cuda, but torch sees no GPU", "run `llmft gpu-check`")
    return torch.device("cuda", 0) if wanted != "cpu" and torch.cuda.is_available() else torch.device("cpu")


def load_base(source: ModelSource, device: torch.device, dtype: torch.dtype, quantization: str = "none") -> PreTrainedModel:
    """The base model in evaluation mode, with frozen weights.

    Args:
        dtype: of the dense weights and of the computation.
        quantization: `nf4` or `fp4` (4 bits with double quantisation), `int8`, or `none`.

    Raises:
        ModelError: transformers cannot load it as a causal language model, or finds no values for some weights.
    """
    transformers = import_transformers()
    options = {"quantization_config": quantization_config(quantization, dtype)} if quantization != "none" else {}
    with reading_model(source.name, source.path):
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            source.path,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=source.trust_remote_code,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(loaded["missing_keys"]):  # transformers fills them with random numbers
        raise ModelError(
            f"the model {source.name}: {format_count(len(missing), 'tensor')} missing in its files, the first {missing[0]}",
            cure_of(source.name, source.path),
        )
    return model.requires_grad_(False).eval()


def quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    import_bitsandbytes()
    transformers = import_transformers()
    if quantization == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quantization, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def dense_experts_notice(model: PreTrainedModel) -> str | None:
    """A notice if a large part of the weights stays unquantised, else None.

    bitsandbytes quantises only linear layers, and transformers keeps the experts of a mixture in one 3-D tensor
    (https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1849).
    """
    weights = list(model.parameters())
    experts = sum(one.nbytes for one in weights if one.ndim == EXPERTS_DIMENSIONS and one.is_floating_point())
    total = sum(one.nbytes for one in weights)
    if experts < NOTABLE_SHARE * total:
        return None
    return (
        f"the experts of this mixture-of-experts model are not quantised, because bitsandbytes quantises only linear layers: "
        f"{experts / GIBIBYTE:.1f} of {total / GIBIBYTE:.1f} GiB of weights"
    )


def keep_training_layout(model: torch.nn.Module) -> None:
    """Keep 4-bit weights in the layout that the backward pass needs; call before training.

    On processors with AVX512-BF16, bitsandbytes 0.50.2 repacks them in the first evaluation
    forward, and every gradient after it is wrong (tests/unit/models/test_evaluation_repacking.py).
    """
    bitsandbytes = import_bitsandbytes()
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def end_of_answer_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, end_of_turn: int | None) -> list[int]:
    """Ids that end an answer: the template's end of turn first, then the eos tokens of tokenizer and model."""
    configured = model.generation_config.eos_token_id
    ids = [end_of_turn, tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    return list(dict.fromkeys(item for item in ids if item is not None))
