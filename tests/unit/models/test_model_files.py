"""A model's files are checked before they are loaded: what is missing, damaged or another tool's is named, with its cure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from llmft_cli.base.errors import ModelError
from llmft_cli.base.reporter import Silent
from llmft_cli.models.fingerprint import PLACES, SAMPLED_BYTES, description, fingerprint, first_fingerprint
from llmft_cli.models.model_files import check_gguf, check_model
from llmft_cli.models.model_source import resolve, resolve_recorded

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5\n"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def complaint_of(action: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(ModelError) as caught:
        action()
    return caught.value.message, caught.value.hint


def write_model(folder: Path, **tensors: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    save_file(tensors or {"a": numpy.arange(8, dtype=numpy.float32)}, folder / "model.safetensors")
    return folder


def write_shards(folder: Path) -> Path:
    write_model(folder)
    (folder / "model.safetensors").unlink()
    for shard, tensor in zip(SHARDS, "ab", strict=True):
        save_file({tensor: numpy.ones(4, numpy.float32)}, folder / shard)
    index = {"weight_map": dict(zip("ab", SHARDS, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def check(folder: Path, weights: bool = True) -> tuple[str, str]:
    return complaint_of(lambda: check_model(str(folder), folder, weights))


# -- damaged files


def test_whole_models_pass(tmp_path: Path) -> None:
    for folder in (write_model(tmp_path / "one"), write_shards(tmp_path / "many")):
        check_model(str(folder), folder, weights=True)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"])
def test_each_file_of_a_model(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base")
    again = f"copy or download {folder} again"
    file = folder / name
    file.write_bytes(b"")
    assert check(folder) == (f"{file} is empty", again)
    file.write_text('{"half": ')
    assert check(folder)[0].startswith(f"{file} is ")
    assert check(folder)[1] == again
    file.write_text(POINTER)
    cure = f"fetch the files that Git LFS keeps: git -C {folder} lfs pull"
    assert check(folder) == (f"{file} is a Git LFS pointer, not the file itself", cure)


def test_weights_are_checked_only_where_they_are_needed(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base")
    (folder / "model.safetensors").write_text(POINTER)
    check_model(str(folder), folder, weights=False)
    assert resolve(str(folder), Silent(), weights=False).fingerprint == ""
    told = f"{folder}/model.safetensors is a Git LFS pointer, not the file itself"
    assert complaint_of(lambda: resolve(str(folder), Silent()))[0] == told


def test_shards(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "base")
    whole = (folder / SHARDS[1]).read_bytes()
    (folder / SHARDS[1]).write_bytes(whole[:-1])
    size = len(whole)
    assert check(folder)[0] == f"{folder / SHARDS[1]} is cut off: it has {size - 1} bytes, and its header tells of {size}"
    (folder / SHARDS[1]).unlink()
    assert check(folder)[0] == f"{folder / SHARDS[1]} is missing"
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[0]).read_bytes())
    reason = "is damaged: b is not in it, where model.safetensors.index.json expects it"
    assert check(folder)[0] == f"{folder / SHARDS[1]} {reason}"
    index = folder / "model.safetensors.index.json"
    index.unlink()
    assert check(folder)[0] == f"{index} is missing"
    for content in ({}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../other/model.safetensors"}}):
        index.write_text(json.dumps(content))
        assert check(folder)[0] == f"{index} is damaged: it has no weight_map of tensors and files"


def test_no_weights_that_transformers_would_load(tmp_path: Path) -> None:
    """Mistral's own format beside it, in `consolidated.safetensors`, is not what transformers loads."""
    folder = write_model(tmp_path / "base")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    hint = "llmft does not load other formats, which can run code: convert the model with save_pretrained of transformers"
    assert check(folder) == (f"{folder} has no safetensors weights", hint)


def test_what_restores_a_model_of_the_hub_and_one_in_the_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--o--m" / "snapshots"
    snapshot.mkdir(parents=True)
    for folder, name, hint in (
        (snapshot / "abc", "o/m", "download it again: hf download o/m --force-download"),
        (tmp_path / "converted", "smollm2-135m", f"delete {tmp_path / 'converted'} to have it made again"),
    ):
        write_model(folder)
        (folder / "tokenizer.json").write_text("{")
        message, found = complaint_of(lambda folder=folder, name=name: check_model(name, folder, weights=True))  # type: ignore[misc]
        assert message.startswith(f"the model {name}: {folder}/tokenizer.json is damaged: not JSON")
        assert found == hint


# -- other tools' directories


def test_directories_of_other_kinds(tmp_path: Path) -> None:
    made = {name: tmp_path / name for name in ("adapter_config.json", "run.json", "weights.gguf", "notes.txt")}
    for name, folder in made.items():
        folder.mkdir()
        (folder / name).write_text("{}")
    adapter, run, ggufs, other = made.values()
    assert check(adapter) == (
        f"{adapter} is an adapter, not a base model",
        "give the model that it was trained on: llmft prepare DATA --model MODEL",
    )
    assert check(run) == (
        f"{run} is a run of llmft, not a model",
        f"use its merged model: llmft prepare DATA --model {run}/merged",
    )
    assert check(ggufs)[1] == f"llmft prepare DATA --model {ggufs}/weights.gguf"
    assert check(other)[0] == f"{other} is not a model directory (it has no config.json)"
    (other / "config.json").write_text('{"sample_size": 64, "_class_name": "UNet2DModel"}')
    assert check(other)[0] == f"{other}/config.json is not the config of a language model: it has no model_type"


# -- GGUF files


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_a_truncated_gguf(share: float, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(256)
    writer.add_token_list([f"token {number}" for number in range(300)])
    writer.add_tensor("token_embd.weight", numpy.zeros((320, 64), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_gguf(file)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert complaint_of(lambda: check_gguf(file))[0].startswith(f"{file} cannot be read: ")


def test_other_files_named_gguf(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    for content, reason in (
        (b"", "is empty"),
        (b"PK\x03\x04", "is not a GGUF file"),
        (POINTER.encode(), "is a Git LFS pointer, not the file itself"),
    ):
        file.write_bytes(content)
        assert complaint_of(lambda: resolve(str(file), Silent()))[0] == f"{file} {reason}"


# -- the fingerprint


def test_models_with_the_same_embeddings_and_other_layers_differ(tmp_path: Path) -> None:
    """The first fingerprint read a MiB of each file: with the same embeddings in it, two models passed as one."""
    embeddings, layer = numpy.zeros(1 << 19, numpy.float32), numpy.ones(1 << 10, numpy.float32)
    one = write_model(tmp_path / "one", a_embeddings=embeddings, layer=layer)
    other = write_model(tmp_path / "other", a_embeddings=embeddings, layer=layer + 1)
    assert first_fingerprint(one) == first_fingerprint(other)
    assert fingerprint("m", one) != fingerprint("m", other)


def test_any_byte_of_a_small_model_counts(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base")
    before = fingerprint("m", folder)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        whole = (folder / name).read_bytes()
        for changed in (whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:], whole.replace(b"l", b"m").replace(b"{}", b"{ }")):
            (folder / name).write_bytes(changed)
            if changed != whole:
                with_change = complaint_or_value(lambda: fingerprint("m", folder))
                assert with_change != before
        (folder / name).write_bytes(whole)
    assert fingerprint("m", folder) == before
    assert list(description(folder)) == ["config.json", "tokenizer.json"]


def complaint_or_value(action: Callable[[], str]) -> str:
    try:
        return action()
    except ModelError as error:
        return error.message


def test_a_large_tensor_is_sampled_from_its_start_to_its_end(tmp_path: Path) -> None:
    values = numpy.zeros(2 * SAMPLED_BYTES, numpy.uint8)
    folder = write_model(tmp_path / "base", a=values)
    before = fingerprint("m", folder)
    for place in (0, (len(values) - SAMPLED_BYTES // PLACES) // 3, len(values) - 1):
        file = folder / "model.safetensors"
        with file.open("r+b") as content:
            content.seek(file.stat().st_size - len(values) + place)
            content.write(b"\1")
        changed = fingerprint("m", folder)
        assert changed != before
        before = changed


def test_a_ledger_with_the_first_fingerprint_is_compared_by_its_rule(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base")
    facts = {"name": str(folder), "revision": None, "trust_remote_code": False}
    assert resolve_recorded(facts | {"fingerprint": first_fingerprint(folder)}, Silent()).path == folder
    assert resolve_recorded(facts | {"fingerprint": fingerprint("m", folder)}, Silent()).path == folder
    for recorded in ("0" * 64, "2:" + "0" * 64):
        told = complaint_of(lambda recorded=recorded: resolve_recorded(facts | {"fingerprint": recorded}, Silent()))  # type: ignore[misc]
        assert told[0] == f"the base model {folder} is not the one this run was trained on (its files differ)"
