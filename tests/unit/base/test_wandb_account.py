"""Whether W&B can be used follows from what `wandb login` stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmft_cli.base import wandb_account
from llmft_cli.base.wandb_account import can_log_online, is_disabled, login


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wandb_account, "is_reachable", lambda url: True)


def test_nothing_there() -> None:
    assert login() == "no account"
    assert not can_log_online()


def test_a_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert login() == "logged in"
    assert can_log_online()
    monkeypatch.setattr(wandb_account, "is_reachable", lambda url: False)
    assert not can_log_online()


@pytest.mark.parametrize("mode", ["offline", "disabled", "dryrun"])
def test_the_mode_comes_first(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    monkeypatch.setenv("WANDB_MODE", mode)
    assert login() == "offline"
    assert not can_log_online()


@pytest.mark.parametrize(
    ("url", "state"),
    [(None, "logged in"), ("https://api.wandb.ai/", "logged in"), ("https://wandb.example.org", "no account")],
)
def test_a_key_in_netrc_is_for_its_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str | None, state: str) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
    assert login() == state


def test_a_netrc_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert login() == "no account"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("WANDB_MODE", "disabled", True),
        ("WANDB_MODE", "offline", False),
        ("WANDB_DISABLED", "true", True),
        ("WANDB_DISABLED", "True", True),
        ("WANDB_DISABLED", "false", False),
    ],
)
def test_it_can_be_turned_off(name: str, value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_disabled()
    monkeypatch.setenv(name, value)
    assert is_disabled() is expected
