"""Checks the files of a base model before a library loads them: whole, of their kind, and all there."""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmft_cli.base.errors import ModelError
from llmft_cli.base.file_checks import (
    DamagedFile,
    check_start,
    read_json,
    read_safetensors_header,
    read_text,
    reading_foreign,
)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
JSON_FILES = ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
JSON_FILES += ["added_tokens.json", "vocab.json"]
SHARDS = "model-*-of-*.safetensors"
LOADED = "model*.safetensors"
# Files of tokenizers that are no JSON: templates, merges, vocabularies, SentencePiece models.
TEXT_FILES = ["*.jinja", "merges.txt", "vocab.txt"]
BINARY_FILES = ["*.model"]
GGUF_MAGIC = b"GGUF"
# Names of files with weights in formats that can run code when they are loaded, and in those of other frameworks.
OTHER_WEIGHTS = ["pytorch_model*.bin", "*.bin.index.json", "*.pth", "*.ckpt", "tf_model*.h5", "flax_model*.msgpack"]


@contextmanager
def reading_model(name: str, path: Path) -> Iterator[None]:
    """Take errors of reading a model's files as faults of them.

    Args:
        name: the model's name, as the user gave it.
        path: the file or directory that is read.

    Raises:
        ModelError: a file is missing or damaged; the hint is what restores it.
    """
    try:
        with reading_foreign(path):
            yield
    except DamagedFile as error:
        message = str(error) if str(error.file).startswith(name) else f"the model {name}: {error}"
        raise ModelError(message, error.cure or cure_of(name, path)) from error


def cure_of(name: str, path: Path) -> str:
    """What restores a damaged file of a model."""
    if "snapshots" in path.parts:
        return f"download it again: hf download {shlex.quote(name)} --force-download"
    if path.absolute() != Path(name).expanduser().absolute():  # converted to a directory in the cache
        return f"delete {shlex.quote(str(path))} to have it made again"
    return f"copy or download {name} again"


def check_model(name: str, path: Path, weights: bool) -> None:
    """Check the files of a model directory that transformers will read.

    Args:
        name: the model's name, as the user gave it.
        weights: whether weights are needed, or only config and tokenizer.

    Raises:
        ModelError: a file is missing, damaged or of another kind, or the directory is not a model's.
    """
    if not (path / CONFIG_FILE).exists():
        raise not_a_model(path)
    with reading_model(name, path):
        config = read_json(path / CONFIG_FILE)
        if weights and not config.keys() & {"model_type", "architectures", "auto_map"}:
            raise DamagedFile(path / CONFIG_FILE, "is not the config of a language model: it has no model_type")
        check_small_files(path)
    if weights:
        check_format(name, [file.name for file in path.iterdir()], weights)
        check_weights(name, path)


def check_format(name: str, files: Collection[str], weights: bool) -> None:
    """Check that a model has safetensors weights, or no weights at all if none are needed.

    Args:
        files: names of the model's files.

    Raises:
        ModelError: it has only weights in other formats, or none that are needed.
    """
    others = sorted(file for pattern in OTHER_WEIGHTS for file in fnmatch.filter(files, pattern))
    if fnmatch.filter(files, LOADED) or not (others or weights):
        return
    raise ModelError(
        f"{name} has no safetensors weights" + (f", only {others[0]}" if others else ""),
        "llmft does not load other formats, which can run code: convert the model with save_pretrained of transformers",
    )


def not_a_model(path: Path) -> ModelError:
    """The error for a directory without a config: what it is, if that can be told."""
    ggufs = sorted(path.glob("*.gguf"))
    if (path / "run.json").is_file():
        return ModelError(
            f"{path} is a run of llmft, not a model", f"use its merged model: llmft prepare DATA --model {path}/merged"
        )
    if (path / ADAPTER_CONFIG_FILE).is_file():
        return ModelError(
            f"{path} is an adapter, not a base model", "give the model that it was trained on: llmft prepare DATA --model MODEL"
        )
    if ggufs:
        hint = f"llmft prepare DATA --model {ggufs[0]}"
        return ModelError(f"{path} is a directory with GGUF files, of which one is a model", hint)
    return ModelError(f"{path} is not a model directory (it has no {CONFIG_FILE})")


def check_small_files(path: Path) -> None:
    """Check the files of generation settings and the tokenizer, where there are any."""
    checks: dict[Callable[[Path], Any], list[str]] = {
        read_json: JSON_FILES,
        read_text: TEXT_FILES,
        check_start: BINARY_FILES,
    }
    for check, patterns in checks.items():
        for pattern in patterns:
            for file in sorted(path.glob(pattern)):
                check(file)


def weight_files(name: str, path: Path) -> list[Path]:
    """The safetensors files that transformers loads: `model.safetensors`, or those of the index; none if there is neither.

    Raises:
        ModelError: the index is damaged, or there are shards without one.
    """
    if (path / WEIGHTS_FILE).exists():
        return [path / WEIGHTS_FILE]
    if not (path / INDEX_FILE).exists() and not list(path.glob(SHARDS)):
        return []
    with reading_model(name, path):
        return sorted({path / shard for shard in weight_map(path).values()})


def weight_map(path: Path) -> dict[str, str]:
    """The shard of each tensor, by the index."""
    shards = read_json(path / INDEX_FILE).get("weight_map")
    # A shard is a file beside the index.
    if not isinstance(shards, dict) or not all(isinstance(one, str) and Path(one).name == one for one in shards.values()):
        raise DamagedFile(path / INDEX_FILE, "is damaged: it has no weight_map of tensors and files")
    return shards


def check_weights(name: str, path: Path) -> None:
    """Check that every shard is there and whole, and has the tensors that the index expects in it.

    Raises:
        ModelError: one is not.
    """
    with reading_model(name, path):
        found = {file.name: read_safetensors_header(file)[1] for file in weight_files(name, path)}
        for tensor, shard in weight_map(path).items() if WEIGHTS_FILE not in found else ():
            if tensor not in found[shard]:
                raise DamagedFile(path / shard, f"is damaged: {tensor} is not in it, where {INDEX_FILE} expects it")


def check_gguf(file: Path) -> None:
    """Check that a GGUF file can be read and holds all its tensors.

    Raises:
        ModelError: it does not.
    """
    with reading_model(str(file), file):
        if not check_start(file).startswith(GGUF_MAGIC):
            raise DamagedFile(file, "is not a GGUF file")
        from gguf import GGUFReader

        GGUFReader(file)  # maps the file; damaged metadata and tensors beyond its end are errors
