"""Whether torch and bitsandbytes use compatible versions of CUDA."""

from __future__ import annotations

import os
import re
from pathlib import PurePath
from typing import Any

from llmft_cli.base.errors import first_line
from llmft_cli.base.libraries import version_of
from llmft_cli.gpu.problem import Problem
from llmft_cli.gpu.torch_builds import reinstall_line


def bitsandbytes_library(bitsandbytes: Any) -> str | None:
    """The compiled library that bitsandbytes loaded ("libbitsandbytes_cuda130.so"), or None if it loaded none."""
    library = bitsandbytes.cextension.lib
    if isinstance(library, bitsandbytes.cextension.ErrorHandlerMockBNBNativeLibrary):
        return None
    return PurePath(library._lib._name).name


def bitsandbytes_cuda(bitsandbytes: Any) -> str | None:
    """The CUDA version that bitsandbytes' library was built for ("13.0"), or None for the CPU library."""
    # bitsandbytes, too, takes the first two digits as the major version.
    built_for = re.search(r"_cuda(\d\d)(\d+)\.", bitsandbytes_library(bitsandbytes) or "")
    return f"{built_for[1]}.{built_for[2]}" if built_for else None


def mismatch(torch: Any, bitsandbytes: Any) -> Problem | None:
    """Why bitsandbytes cannot use torch's GPU, or None if it can.

    The minor versions of CUDA may differ: they are compatible.
    """
    cuda, built_for = torch.version.cuda, bitsandbytes_cuda(bitsandbytes)
    if built_for and major(built_for) == major(cuda):
        return None
    who = f"bitsandbytes {version_of('bitsandbytes')}"
    override = os.environ.get("BNB_CUDA_VERSION")
    if built_for:
        what = f"{who} uses its CUDA {built_for} library, but torch {torch.__version__} is built for CUDA {cuda}"
    elif bitsandbytes_library(bitsandbytes):
        what = f"{who} uses its CPU library, although torch sees a GPU"
    else:
        what = f"{who} cannot load a library for CUDA {cuda}: {first_line(bitsandbytes.cextension.lib.error_msg)}"
    if override is not None:
        return Problem(f"{what} (BNB_CUDA_VERSION is {override!r})", "unset BNB_CUDA_VERSION")
    if "cannot open shared object file" in what:
        folder = f"the lib folder of CUDA {major(cuda)}.x"
        return Problem(what, f"{reinstall_line(torch.__version__)}, or add {folder} to LD_LIBRARY_PATH")
    return Problem(what, "pip install --upgrade --force-reinstall --no-deps bitsandbytes")


def major(version: str) -> str:
    return version.partition(".")[0]
