"""The libraries print nothing and load nothing from the Hub."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys

import pytest

from llmft_cli import __version__
from llmft_cli.base import libraries

PROGRAM = """
import sys
from llmft_cli.base import libraries
libraries.configure_libraries()
first = libraries.import_bitsandbytes()
print(first.__name__, "kernels" in sys.modules, libraries.import_bitsandbytes() is first)
print(libraries.import_transformers().utils.logging.is_progress_bar_enabled())
"""


@pytest.mark.slow
def test_importing_them_is_silent_and_leaves_no_trace() -> None:
    pytest.importorskip("torch")  # bitsandbytes needs it
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "bitsandbytes False True\nFalse\n", "")


def test_what_the_user_has_set_stays() -> None:
    program = (
        "import os; from llmft_cli.base.libraries import configure_libraries; configure_libraries(); "
        "print(os.environ['TRANSFORMERS_VERBOSITY'])"
    )
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "info"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout == "info\n"


def test_versions_name_what_a_result_depends_on() -> None:
    versions = libraries.versions()
    assert list(versions) == ["python", "llmft", *libraries.RECORDED]
    assert (versions["python"], versions["llmft"]) == (platform.python_version(), __version__)
    assert libraries.version_of("no-such-package") is None


WITHOUT_COMPILER = """
import sys
from llmft_cli.base import libraries
libraries.configure_libraries()
libraries.import_bitsandbytes()
import torch
compiler = torch.compile
libraries.import_transformers()
print([name for name in ("torch._inductor.compile_fx", "torch._inductor.lowering") if name in sys.modules])
print(torch.compile is compiler, torch.compile.__module__, torch.compiler.disable.__module__)
"""


@pytest.mark.slow
def test_importing_them_does_not_import_the_compiler() -> None:
    """bitsandbytes compiles four functions when it is imported, and torch took two seconds for each command then."""
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nTrue torch torch.compiler\n"


def test_a_function_is_compiled_once_and_when_it_is_called() -> None:
    seen = []

    def compiler(function, **options):
        seen.append((function.__name__, options))
        return lambda number: 10 * function(number)

    def double(number: int) -> int:
        """Twice the number."""
        return 2 * number

    put_off = libraries.compiled_when_called(compiler)
    by_call, by_decorator = put_off(double, dynamic=False), put_off(mode="default")(double)
    assert seen == []
    assert (by_call.__name__, by_call.__doc__) == ("double", "Twice the number.")
    assert [by_call(3), by_call(4), by_decorator(5)] == [60, 80, 100]
    assert seen == [("double", {"dynamic": False}), ("double", {"mode": "default"})]


COLLECTIONS = """
import gc
from llmft_cli.base import libraries
libraries.configure_libraries()
before = gc.get_stats()[2]["collections"]
libraries.import_transformers()
print(gc.get_stats()[2]["collections"] - before, gc.isenabled(), gc.get_freeze_count() > 100_000)
frozen = gc.get_freeze_count()
libraries.import_transformers()
print(gc.get_freeze_count() - frozen)
"""


@pytest.mark.slow
def test_the_collector_does_not_run_while_libraries_are_imported() -> None:
    """It took over a second of the start of each training."""
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", COLLECTIONS], capture_output=True, text=True, check=True)
    assert done.stdout == "0 True True\n0\n"


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        with libraries.collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
