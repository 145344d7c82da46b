"""Planning simulates each step once."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_plans_of_other_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def steps_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    from ...followed_once import remember

    remember(monkeypatch)
