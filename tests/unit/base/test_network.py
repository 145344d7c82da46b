"""Whether a server answers is known within two seconds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from llmft_cli.base import network


class Refusing(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Refusing) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def mute_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_any_answer_counts(server: str) -> None:
    assert network.is_reachable(server)


def test_no_answer_is_known_soon(mute_server: str) -> None:
    started = time.monotonic()
    assert not network.is_reachable(mute_server)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no-such-host.invalid", "not an address"])
def test_nothing_there(url: str) -> None:
    assert not network.is_reachable(url)


def test_the_hub_is_not_asked_where_the_user_forbids_it(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server)
    assert network.hub_is_reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not network.hub_is_reachable()
