"""The libraries that llmft uses: silencing them, keeping them off the network, and their versions."""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import importlib.util
import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from llmft_cli import __version__

MANY_MODULES = 100
RECORDED = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers", "safetensors")


def configure_libraries() -> None:
    """Silence and configure the libraries. A command calls this before it imports any of them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # OpenMP threads that wait for each other spin for 0.3 ms before they sleep: longer than the gap between two
    # operations, and much shorter than another process keeps a core (benchmarks/LOG.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # Expandable segments leave almost no GPU memory reserved but unused (8 sequences of 8,192 tokens: 20% without them).
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    # With the package `kernels` installed, transformers would download and run compute kernels from the Hub.
    os.environ.setdefault("USE_HUB_KERNELS", "NO")
    warnings.filterwarnings("ignore", module=r"(torch|transformers|peft|bitsandbytes|accelerate|datasets)\b")


def import_transformers() -> ModuleType:
    """transformers without its weight-loading progress bars; without torch, it has tokenizers and configs."""
    with collector_paused():
        import transformers

        if transformers.is_torch_available():
            with compiling_when_called():
                import transformers.modeling_utils  # every model and every config imports it
    transformers.utils.logging.disable_progress_bar()
    return transformers


def import_bitsandbytes() -> ModuleType:
    """Import bitsandbytes without its messages, and without loading code from the Hub.

    On CPUs with AVX512-BF16 it asks the package `kernels` for a kernel from the Hub, and warns if
    that package is missing.
    """
    loaded = sys.modules.get("bitsandbytes")
    if loaded is not None:
        return loaded
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    kernels = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]
    logger.setLevel(logging.CRITICAL)
    try:
        with collector_paused(), compiling_when_called():
            import bitsandbytes
    finally:
        logger.setLevel(level)
        if kernels is None:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = kernels
    return bitsandbytes


def import_training_libraries() -> None:
    """Import what a training run needs at once, so that this is no part of the time of what it does."""
    with collector_paused():
        import_bitsandbytes()
        transformers = import_transformers()
        import datasets  # noqa: F401
        import peft  # noqa: F401

        _ = transformers.Trainer, transformers.AutoModelForCausalLM  # imported when they are first named


@contextmanager
def collector_paused() -> Iterator[None]:
    """Inside the block, which imports libraries, Python's garbage collector does not run.

    Modules stay, but the collector would look through all their objects again and again: a quarter of the time of the
    imports. If many were imported, it ignores what exists at the end of the block from then on.
    """
    if not gc.isenabled():
        yield
        return
    imported = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) - imported > MANY_MODULES:
            gc.freeze()
        gc.enable()


@contextmanager
def compiling_when_called() -> Iterator[None]:
    """Inside the block, functions are compiled, or excepted from it, when they are first called instead of when defined.

    bitsandbytes and transformers define such functions, and torch imports its compiler for each: two seconds, mostly for
    functions that nobody calls. Without torch, there is nothing to put off.
    """
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    compiled, excepted = torch.compile, torch.compiler.disable
    torch.compile = compiled_when_called(compiled)  # type: ignore[assignment]
    # What torch itself uses for its own functions; not in every version.
    torch.compiler.disable = getattr(torch, "_disable_dynamo", excepted) if "torch._dynamo" not in sys.modules else excepted
    try:
        yield
    finally:
        torch.compile, torch.compiler.disable = compiled, excepted


def compiled_when_called(compiler: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` that compiles when the function is first called."""

    def put_off(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(put_off, **options)
        compiled = functools.cache(lambda: compiler(function, **options))

        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            return compiled()(*arguments, **keywords)

        return call

    return put_off


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of everything a stage's result depends on, for the ledger."""
    return {"python": platform.python_version(), "llmft": __version__, **{package: version_of(package) for package in RECORDED}}


def hardware() -> dict[str, str | int | None]:
    """The machine a stage ran on, for the ledger."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }
