"""Where a base model comes from, and how its tokenizer and weights are loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli import builtin_model
from llmft_cli.errors import MachineError, ModelError, first_line
from llmft_cli.libraries import import_bitsandbytes, import_transformers
from llmft_cli.network import hub_is_reachable
from llmft_cli.progress import Reporter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GIBIBYTE = 2**30
FINGERPRINT_BYTES = 1 << 20
EXPERTS_DIMENSIONS = 3
NOTABLE_SHARE = 0.1
TOKENIZER_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
WEIGHT_FILES = ["*.safetensors"]
BUILTIN_HINT = f"or use the built-in model: --model {builtin_model.NAME}"


@dataclass(frozen=True)
class ModelSource:
    """A base model that is on this machine.

    Attributes:
        name: as the user gave it; an adapter names its base so.
        path: the directory that holds it.
        revision: commit of a Hub model, or None.
        fingerprint: sha256 over the files' names, sizes and first MiB, to notice another model under the same name.
        trust_remote_code: whether code of the model's repository may run.
    """

    name: str
    path: Path
    revision: str | None
    fingerprint: str
    trust_remote_code: bool = False

    def facts(self) -> dict[str, Any]:
        """For the ledger."""
        return {key: value for key, value in asdict(self).items() if key != "path"}


def resolve(
    name: str, reporter: Reporter, *, weights: bool = True, revision: str | None = None, trust_remote_code: bool = False
) -> ModelSource:
    """Find a base model, and download what is missing of it.

    Args:
        name: Hub id, local directory, `.gguf` file, or `smollm2-135m`.
        weights: whether the weights are needed, or only config and tokenizer.

    Raises:
        ModelError: it is not there, is gated, or there is no network to look for it.
    """
    local = Path(name).expanduser()
    if name == builtin_model.NAME:
        path = builtin_model.builtin_directory(reporter)
    elif local.is_file() and local.suffix == ".gguf":
        path = builtin_model.gguf_directory(local, reporter)
    elif local.is_dir():
        path = local
    elif local.suffix == ".gguf" or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ModelError(f"there is no model at {name}", f"give a Hub id or a local directory, {BUILTIN_HINT}")
    else:
        path = hub_directory(name, revision, weights, trust_remote_code, reporter)
        revision = path.name
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} is not a model directory (it has no config.json)")
    if weights and not list(path.glob("*.safetensors")):
        raise ModelError(f"{name} has no safetensors weights", "other weight formats can run code when read and are not loaded")
    return ModelSource(name, path, revision, fingerprint(path), trust_remote_code)


def resolve_recorded(facts: Mapping[str, Any], reporter: Reporter) -> ModelSource:
    """The base model that a ledger entry names, the very same.

    Raises:
        ModelError: as `resolve`, or the model found under that name is another one.
    """
    source = resolve(facts["name"], reporter, revision=facts["revision"], trust_remote_code=facts["trust_remote_code"])
    if source.fingerprint != facts["fingerprint"]:
        raise ModelError(
            f"the base model {facts['name']} is not the one this run was trained on (its files differ)",
            "put the original back, or train anew with --overwrite",
        )
    return source


def fingerprint(path: Path) -> str:
    """sha256 over name, size and first MiB of the model's files: enough to tell models apart, quick for any size."""
    digest = hashlib.sha256()
    for file in sorted([path / "config.json", *path.glob("tokenizer*"), *path.glob("*.jinja"), *path.glob("*.safetensors")]):
        with file.open("rb") as content:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + content.read(FINGERPRINT_BYTES))
    return digest.hexdigest()


def hub_directory(name: str, revision: str | None, weights: bool, code: bool, reporter: Reporter) -> Path:
    """The local snapshot of a Hub model, downloaded if need be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = TOKENIZER_FILES + (WEIGHT_FILES if weights else []) + (["*.py"] if code else [])
    offline = not hub_is_reachable()
    if not offline:
        reporter.note(f"fetching {name} from the Hub" + ("" if weights else " (tokenizer and config)"))
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=offline))
    except GatedRepoError as error:
        hint = f"accept its licence at https://huggingface.co/{name} and run `hf auth login`, {BUILTIN_HINT}"
        raise ModelError(f"the model {name} is gated and this account may not read it", hint) from error
    except RepositoryNotFoundError as error:
        hint = f"check the name, or run `hf auth login` if it is private, {BUILTIN_HINT}"
        raise ModelError(f"the Hub has no model {name}", hint) from error
    except LocalEntryNotFoundError as error:
        hint = f"connect to the Hub, give a local directory, {BUILTIN_HINT}"
        raise ModelError(f"the model {name} is not on this machine and the Hub cannot be reached", hint) from error
    except HfHubHTTPError as error:
        raise ModelError(f"the Hub refused {name}: {first_line(error)}") from error


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a model or run directory.

    Raises:
        ModelError: there is none, or it has no fast version (character offsets are needed for the loss mask).
    """
    transformers = import_transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} has no usable tokenizer: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer in {path} has no fast version, which the loss mask needs", "convert it to tokenizer.json"
        )
    return tokenizer


def pick_device(wanted: str) -> torch.device:
    """`auto` is the first GPU where there is one.

    Raises:
        MachineError: a GPU is wanted and torch sees none.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise MachineError("--device cuda, but torch sees no GPU", "see `llmft gpu-check`")
    return torch.device("cuda", 0) if wanted != "cpu" and torch.cuda.is_available() else torch.device("cpu")


def load_base(source: ModelSource, device: torch.device, dtype: torch.dtype, quantization: str = "none") -> PreTrainedModel:
    """The base model in evaluation mode, its weights frozen.

    Args:
        dtype: of the dense weights and of the computation.
        quantization: `nf4` or `fp4` (4 bits, block scales quantised again), `int8`, or `none`.

    Raises:
        ModelError: transformers cannot load it as a causal language model.
    """
    transformers = import_transformers()
    options = {"quantization_config": quantization_config(quantization, dtype)} if quantization != "none" else {}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source.path,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=source.trust_remote_code,
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source.name} cannot be loaded as a causal language model: {first_line(error)}") from error
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
    """What of a quantised model stays as it was because bitsandbytes knows linear layers alone; None if it is little.

    transformers keeps the experts of a mixture as one tensor of three dimensions
    (https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1849).
    """
    weights = list(model.parameters())
    experts = sum(one.nbytes for one in weights if one.ndim == EXPERTS_DIMENSIONS and one.is_floating_point())
    total = sum(one.nbytes for one in weights)
    if experts < NOTABLE_SHARE * total:
        return None
    return (
        f"the experts of this mixture are not quantised, as bitsandbytes does so with linear layers alone: "
        f"{experts / GIBIBYTE:.1f} of {total / GIBIBYTE:.1f} GiB of weights"
    )


def keep_training_layout(model: torch.nn.Module) -> None:
    """Keep 4-bit weights in the layout that the backward pass reads; called before training.

    On processors with AVX512-BF16, bitsandbytes 0.50.2 repacks them in the first evaluation
    forward, and every gradient after it is wrong (tests/unit/training/test_evaluation_repacking.py).
    """
    bitsandbytes = import_bitsandbytes()
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def end_of_answer_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, end_of_turn: int | None) -> list[int]:
    """Ids that end an answer: the template's end of turn first, and what model and tokenizer call end of text."""
    configured = model.generation_config.eos_token_id
    ids = [end_of_turn, tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    return list(dict.fromkeys(item for item in ids if item is not None))
