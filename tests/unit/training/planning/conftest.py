"""Planning simulates each step once; without torch (`make test-light`), these tests are skipped."""

from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]


@pytest.fixture(autouse=True)
def steps_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    from ...followed_once import remember

    remember(monkeypatch)
