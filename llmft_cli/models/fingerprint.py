"""Recognises a base model: by its weights without reading all of them, and by its config and tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmft_cli.base.file_checks import SIZE_BYTES, read_safetensors_header
from llmft_cli.base.files import hash_file
from llmft_cli.models.model_files import CONFIG_FILE, reading_model, weight_files

VERSION = "2:"
# Of all weights together; a tensor gets its share, but not less than a page.
SAMPLED_BYTES = 64 << 20
LEAST_SAMPLE_BYTES = 4096
PLACES = 4
DESCRIPTION_FILES = [CONFIG_FILE, "tokenizer*", "*.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.json"]
DESCRIPTION_FILES += ["merges.txt", "vocab.txt"]


def fingerprint(name: str, path: Path) -> str:
    """A hash of a model's config, tokenizer and weights that takes a second for a model of any size.

    It covers the config and the tokenizer's files, the size and the header (names, shapes and types of all tensors) of
    every weight file, and samples of the values of every tensor: 64 MiB in all, at least 4 KiB per tensor, at four evenly
    spaced places. So it tells apart models that differ in any one tensor as training, merging or a conversion changes it,
    which is nearly everywhere; weights of less than 64 MiB are covered whole. It does not see a change of a few values
    between two samples of a large tensor.

    Raises:
        ModelError: a file is damaged.
    """
    digest = hashlib.sha256()
    for described, sha256 in description(path).items():
        digest.update(f"{described}\0{sha256}\n".encode())
    with reading_model(name, path):
        headers = {file: read_safetensors_header(file) for file in weight_files(name, path)}
        tensors = sum(len(found) for _, found in headers.values())
        sample = max(LEAST_SAMPLE_BYTES, SAMPLED_BYTES // max(tensors, 1))
        for file, (header, found) in headers.items():
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + header)
            offsets = sorted(tuple(tensor["data_offsets"]) for tensor in found.values())
            for content in samples(file, SIZE_BYTES + len(header), offsets, sample):
                digest.update(content)
    return VERSION + digest.hexdigest()


def samples(file: Path, start: int, offsets: Iterable[tuple[int, int]], most_bytes: int) -> Iterator[bytes]:
    """Parts of the tensors in a file: a tensor of up to `most_bytes` as a whole, of a larger one that many bytes.

    Args:
        start: where the tensors begin in the file.
        offsets: where each tensor begins and ends, from `start`.
    """
    with file.open("rb") as content:
        for begin, end in offsets:
            size = end - begin
            places, length = (1, size) if size <= most_bytes else (PLACES, most_bytes // PLACES)
            for place in range(places):
                content.seek(start + begin + place * (size - length) // (PLACES - 1))
                yield content.read(length)


def is_recorded(recorded: str, now: str, path: Path) -> bool:
    """Whether the fingerprint in a ledger, which may be of the first version, is that of a model, `now`."""
    return recorded == (now if recorded.startswith(VERSION) else first_fingerprint(path))


def first_fingerprint(path: Path) -> str:
    """The fingerprint in ledgers of the first version: sha256 of name, size and first MiB of the model's files."""
    digest = hashlib.sha256()
    for file in sorted([path / CONFIG_FILE, *path.glob("tokenizer*"), *path.glob("*.jinja"), *path.glob("*.safetensors")]):
        with file.open("rb") as content:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + content.read(1 << 20))
    return digest.hexdigest()


def description(path: Path) -> dict[str, str]:
    """sha256 by name of the files that say what a model is, weights aside: its config and its tokenizer."""
    found = {file for pattern in DESCRIPTION_FILES for file in path.glob(pattern) if file.is_file()}
    return {file.name: hash_file(file) for file in sorted(found)}
