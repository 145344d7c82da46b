"""The shape of a base model is known without its weights, and without a network where it is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from llmft_cli.base.errors import ModelError
from llmft_cli.base.reporter import Silent
from llmft_cli.models import builtin, model_source
from llmft_cli.models.config_lookup import shape_of
from llmft_cli.models.known_configs import SHAPES, known_shape
from llmft_cli.settings.config import resolve
from llmft_cli.settings.definitions import DEFAULT_MODEL


class Told(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of converted models."""
    monkeypatch.setenv("LLMFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_config(folder: Path, **values: Any) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


def write_gguf(file: Path) -> None:
    import gguf
    import numpy

    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(320)
    writer.add_tensor("token_embd.weight", numpy.zeros((320, 64), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_directory_is_read(tiny_model_dir: Path) -> None:
    shape, here = shape_of(resolve({"model": str(tiny_model_dir)}), Silent())
    assert (shape.hidden_size, shape.num_hidden_layers, here) == (64, 2, True)


def test_weights_are_here_only_when_every_file_is(tiny_model_dir: Path, tmp_path: Path) -> None:
    name = write_config(tmp_path / "parts", **json.loads((tiny_model_dir / "config.json").read_text()))
    config = resolve({"model": name})
    assert not shape_of(config, Silent())[1]
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (Path(name) / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (Path(name) / files["a"]).touch()
    assert not shape_of(config, Silent())[1]
    (Path(name) / files["b"]).touch()
    assert shape_of(config, Silent())[1]


def test_the_default_model_is_known_without_a_network() -> None:
    told = Told()
    shape, here = shape_of(resolve({}), told)
    assert (shape.hidden_size, shape.num_hidden_layers, shape.num_key_value_heads, here) == (4096, 32, 32, False)
    assert told.warnings == [
        f"the model {DEFAULT_MODEL} is not on this machine and the Hub cannot be reached; using its published config"
    ]


def test_a_gated_model_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise ModelError("the model is gated")

    monkeypatch.setattr(model_source, "resolve", refuse)
    assert shape_of(resolve({"model": "meta-llama/Llama-2-70b-hf"}), Silent())[0].num_hidden_layers == 80


def test_another_model_without_a_network_is_an_error() -> None:
    with pytest.raises(ModelError, match="the model somebody/something is not on this machine"):
        shape_of(resolve({"model": "somebody/something"}), Silent())


def test_the_built_in_model_is_neither_downloaded_nor_converted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "download_wheel", None)
    config = resolve({"model": builtin.NAME})
    shape, here = shape_of(config, Silent())
    assert (shape.hidden_size, shape.vocab_size, here) == (576, 49_152, False)
    (cache / "smollm2-135m-bcc81830d10c").mkdir(parents=True)
    assert builtin.builtin_directory(Silent()) == cache / "smollm2-135m-bcc81830d10c"
    assert shape_of(config, Silent())[1]


def test_a_gguf_file_is_not_converted(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    config = resolve({"model": str(tmp_path / "tiny.gguf")})
    shape, here = shape_of(config, Silent())
    assert (shape.hidden_size, shape.vocab_size, shape.num_key_value_heads, here) == (64, 320, 1, False)
    assert not cache.exists()
    monkeypatch.setattr(builtin, "convert_gguf", lambda file, target, reporter: target.mkdir())
    builtin.gguf_directory(tmp_path / "tiny.gguf", Silent())
    assert shape_of(config, Silent())[1]


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"no")
    with pytest.raises(ModelError, match=r"the config of .*no\.gguf cannot be read"):
        shape_of(resolve({"model": str(tmp_path / "no.gguf")}), Silent())


def test_an_unknown_architecture_is_an_error(tmp_path: Path) -> None:
    name = write_config(tmp_path / "new", model_type="unheard-of")
    with pytest.raises(ModelError, match=r"the config of .*new cannot be read: .*unheard-of"):
        shape_of(resolve({"model": name}), Silent())


def test_a_quantised_model_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    values = json.loads((tiny_model_dir / "config.json").read_text())
    name = write_config(tmp_path / "small", **values, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match=r"the weights of .*small are already quantised \(gptq\)"):
        shape_of(resolve({"model": name}), Silent())


def test_what_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    name = write_config(tmp_path / "t5", model_type="t5")
    with pytest.raises(ModelError, match=r"t5 is not a causal language model \(its model_type is t5\)"):
        shape_of(resolve({"model": name}), Silent())


def test_every_published_shape_is_a_config_with_whole_heads() -> None:
    for name in SHAPES:
        shape = known_shape(name)
        assert shape is not None
        assert shape.head_dim * shape.num_attention_heads == shape.hidden_size, name
        assert shape.num_attention_heads % shape.num_key_value_heads == 0, name
    assert known_shape("somebody/something") is None
