"""The libraries print nothing and load nothing from the Hub."""

from __future__ import annotations

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
