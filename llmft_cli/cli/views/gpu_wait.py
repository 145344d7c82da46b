"""The GPUs that gpu-check --wait found, for use in a shell."""

from __future__ import annotations

from llmft_cli.cli.views.sections import Section
from llmft_cli.gpu.waiting import Ready


def ready_sections(ready: Ready) -> list[Section]:
    """Only the indices, for `gpu=$(...)` in a shell."""
    return [Section("", [(",".join(map(str, ready.gpu_indices)), "")])]
