"""Work in a background thread that does not keep the program alive."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def run_in_background(work: Callable[[], T]) -> Future[T]:
    """Start `work` in a daemon thread: unlike an executor's threads, it does not delay the program's exit."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future
