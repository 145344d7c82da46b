"""Planning simulates each step once."""

import pytest


@pytest.fixture(autouse=True)
def steps_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    from ...followed_once import remember

    remember(monkeypatch)
