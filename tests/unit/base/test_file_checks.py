"""Damaged files are told apart from whole ones before a library reads them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from llmft_cli.base.errors import MachineError
from llmft_cli.base.file_checks import DamagedFile, check_start, read_json, read_safetensors_header, read_text, reading_foreign

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5\n"


def reason_of(check: Any, file: Path) -> str:
    with pytest.raises(DamagedFile) as caught:
        check(file)
    assert str(caught.value) == f"{file} {caught.value.reason}"
    return caught.value.reason


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    save_file({"a": numpy.arange(6, dtype=numpy.float32), "b": numpy.ones((2, 2), numpy.float32)}, file, {"format": "pt"})
    return file


def with_header(file: Path, header: bytes, tensors: bytes = b"") -> Path:
    file.write_bytes(struct.pack("<Q", len(header)) + header + tensors)
    return file


@pytest.mark.parametrize("check", [check_start, read_text, read_json, read_safetensors_header])
def test_what_is_no_file_at_all(check: Any, tmp_path: Path) -> None:
    file = tmp_path / "a file"
    assert reason_of(check, file) == "is missing"
    file.mkdir()
    assert reason_of(check, file) == "is a directory, not a file"
    assert reason_of(check, file.with_name("a file") / "below") == "is missing"
    file.rmdir()
    file.write_bytes(b"")
    assert reason_of(check, file) == "is empty"
    file.write_text(POINTER)
    assert reason_of(check, file) == "is a Git LFS pointer, not the file itself"


def test_the_cure_of_a_git_lfs_pointer(tmp_path: Path) -> None:
    file = tmp_path / "my models" / "tokenizer.json"
    file.parent.mkdir()
    file.write_text(POINTER)
    with pytest.raises(DamagedFile) as caught:
        check_start(file)
    assert caught.value.cure == f"fetch the files that Git LFS keeps: git -C '{file.parent}' lfs pull"


def test_json(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"a": 1}')
    assert read_json(file) == {"a": 1}
    reasons = {
        '{"a": ': "is damaged: not JSON: Expecting value: line 1 column 7 (char 6)",
        "[1]": "is damaged: a JSON object is expected, and this is a list",
        "[" * 100_000: "is damaged: not JSON: ",
    }
    for text, reason in reasons.items():
        file.write_text(text)
        assert reason_of(read_json, file).startswith(reason)
    file.write_bytes(b'{"a": "\xff"}')
    assert reason_of(read_json, file) == "is damaged: it is not UTF-8 (byte 7)"


def test_the_header_of_safetensors(weights: Path) -> None:
    header, tensors = read_safetensors_header(weights)
    assert json.loads(header)["__metadata__"] == {"format": "pt"}
    assert tensors["a"] == {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}
    assert tensors["b"] == {"dtype": "F32", "shape": [2, 2], "data_offsets": [24, 40]}


def test_safetensors_of_every_shorter_length(weights: Path) -> None:
    whole = weights.read_bytes()
    for size in range(1, len(whole)):
        weights.write_bytes(whole[:size])
        assert reason_of(read_safetensors_header, weights).startswith(("is cut off", "is not a safetensors file"))
    weights.write_bytes(whole + b"x")
    reason = f"has bytes after its end: it has {len(whole) + 1} bytes, and its header tells of {len(whole)}"
    assert reason_of(read_safetensors_header, weights) == reason


def test_other_content_in_the_place_of_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("<html>" + "x" * 100)
    assert reason_of(read_safetensors_header, file) == "is not a safetensors file"
    reasons = {
        b"[]": "is damaged: in its header, a JSON object is expected, and this is a list",
        b'{"a": {}': "is damaged: in its header, not JSON: ",
        b'{"a": {}}': "is damaged: its header has no place for the tensor a",
        b'{"a": 1}': "is damaged: its header has no place for the tensor a",
        b'{"a": {"data_offsets": [4, 0]}}': "is damaged: its header has no place for the tensor a",
        b'{"a": {"data_offsets": [0, "4"]}}': "is damaged: its header has no place for the tensor a",
        b'{"\xff": 1}': "is damaged: its header is not UTF-8",
    }
    for header, reason in reasons.items():
        assert reason_of(read_safetensors_header, with_header(file, header)).startswith(reason)


def test_errors_of_a_library_are_the_file_s(tmp_path: Path) -> None:
    def fail(error: BaseException) -> None:
        with reading_foreign(tmp_path):
            raise error

    for error, told in ((KeyError("hidden_size"), "KeyError: 'hidden_size'"), (ValueError("odd\nmore"), "odd")):
        with pytest.raises(DamagedFile) as caught:
            fail(error)
        assert caught.value.reason == f"cannot be read: {told}"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), MemoryError(), MachineError("no GPU"), KeyboardInterrupt()]
)
def test_errors_of_the_machine_pass(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)), reading_foreign(tmp_path):
        raise error
