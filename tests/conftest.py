"""Fixtures for all tests: a quiet, offline environment, and a tiny model made on the spot.

torch and transformers are imported inside the fixtures: some unit tests run where they are not installed.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from . import tiny_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TESTS = Path(__file__).parent
# By file, what several have in common that takes minutes: a run on the built-in model, and predictions.
TRAINED_RUN = "trained run"
GROUPS = {f"test_{name}.py": TRAINED_RUN for name in ("workflow", "older_processor", "plain_libraries")}
GROUPS |= {f"test_{name}.py": "recorded trainings" for name in ("memory", "speed", "required_memory")}
# No test may fail because the machine is busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

if "PYTEST_XDIST_WORKER" in os.environ:  # read when torch is imported: several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier; where several processes run them, put the longest first."""
    for item in items:
        item.add_marker(item.path.relative_to(TESTS).parts[0])
        assert ("workspace" in getattr(item, "fixturenames", ())) <= (group_of(item.nodeid) == TRAINED_RUN), item.nodeid
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}

        def place(item: pytest.Item) -> tuple[bool, bool, bool]:
            return group_of(item.nodeid) != TRAINED_RUN, not item.get_closest_marker("integration"), item.path not in slow

        items.sort(key=place)


@pytest.hookimpl(optionalhook=True)  # pytest-xdist is not everywhere
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadgroup`, one process runs all tests of a group, so that fixtures are made once.

    pytest-xdist 3.8 has marks for this, which do nothing in pytest 9.2: it writes groups into a field that is gone.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log) if config.getoption("dist") == "loadgroup" else None


def group_of(nodeid: str) -> str:
    """A test's group: its file, or what its file shares with others."""
    file = nodeid.partition("::")[0]
    return GROUPS.get(Path(file).name, file)


@pytest.fixture(autouse=True, scope="module")
def little_garbage() -> None:
    """Leave what is alive by now out of garbage collection, which takes half a second each time otherwise.

    Trainings collect often, and the libraries and collected tests are millions of objects.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home of its own, no network, no colours, 80 columns; what a test sets besides, of signals too, is gone after it."""
    before, on_interrupt = dict(os.environ), signal.getsignal(signal.SIGINT)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("LLMFT_DEBUG", raising=False)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    signal.signal(signal.SIGINT, on_interrupt)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    return tiny_model.tokenizer()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model.write(folder)
    return folder
