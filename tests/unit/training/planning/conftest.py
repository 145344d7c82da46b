"""Planning follows each step once; where torch is not installed (`make test-light`), these tests are not there."""

from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]


@pytest.fixture(autouse=True)
def steps_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    from ...followed_once import remember

    remember(monkeypatch)
