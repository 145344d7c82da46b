"""Models without safetensors weights are refused as early as their files are known."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from llmft_cli.base.errors import ModelError
from llmft_cli.base.reporter import Silent
from llmft_cli.models import model_source

NO_TENSORS = (2).to_bytes(8, "little") + b"{}"


def model_with(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name in names:
        (folder / name).write_bytes(NO_TENSORS if name.endswith(".safetensors") else b"")
    return folder


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"])
def test_a_directory_with_other_weights_only_is_refused_even_if_none_are_needed(
    name: str, weights: bool, tmp_path: Path
) -> None:
    """`prepare` took it, and `train` then refused it."""
    with pytest.raises(ModelError) as raised:
        model_source.resolve(str(model_with(tmp_path / "m", name)), Silent(), weights=weights)
    assert raised.value.message == f"{tmp_path / 'm'} has no safetensors weights, only {name}"


def test_a_directory_without_any_weights_will_do_where_none_are_needed(tmp_path: Path) -> None:
    folder = model_with(tmp_path / "m", "training_args.bin", "optimizer.pt")
    assert model_source.resolve(str(folder), Silent(), weights=False).path == folder
    with pytest.raises(ModelError, match=r"has no safetensors weights$"):
        model_source.resolve(str(folder), Silent())


def test_other_weights_beside_safetensors_do_no_harm(tmp_path: Path) -> None:
    folder = model_with(tmp_path / "m", "pytorch_model.bin", "model.safetensors")
    assert model_source.resolve(str(folder), Silent()).path == folder


@pytest.mark.parametrize(
    ("files", "refused"),
    [
        (["config.json", "pytorch_model.bin"], True),
        (["config.json", "pytorch_model.bin.index.json", "model.safetensors"], False),
        ([], False),
    ],
)
def test_a_hub_model_is_judged_by_all_its_files(
    files: list[str], refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its weights, a snapshot has the index of the other format, but not `model.safetensors`."""
    snapshot = model_with(tmp_path / "0123abc", "pytorch_model.bin.index.json")
    monkeypatch.setattr(model_source, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name, revision: files)
    if refused:
        with pytest.raises(ModelError, match=r"^some/model has no safetensors weights, only pytorch_model.bin$"):
            model_source.resolve("some/model", Silent(), weights=False)
    else:
        assert model_source.resolve("some/model", Silent(), weights=False).revision == "0123abc"
