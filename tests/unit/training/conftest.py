"""Training needs torch; without it (`make test-light`), these tests are skipped."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

collect_ignore_glob = [] if find_spec("torch") else ["*"]


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tiny models do not get faster with more threads, which only wait for each other on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    from .weather import write_rows

    return write_rows(tmp_path / "weather.jsonl")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces torch's kernel by attention computed by its definition."""
    from torch.nn.attention import varlen as torch_varlen

    from .attention_by_definition import by_definition

    monkeypatch.setattr(torch_varlen, "varlen_attn", by_definition)
