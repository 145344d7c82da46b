"""What helps a command that runs out of memory, where only a library says that it has."""

from __future__ import annotations

from llmft_cli.base.errors import LlmftError, OutOfMemory

LESS_MEMORY = {
    "gpu-check": "use a smaller --rows-per-step or --max-seq-length, or --gradient-checkpointing",
    "prepare": "read fewer rows with --max-rows, or use a machine with more RAM",
    "train": "use a smaller --rows-per-step or --max-seq-length, or --gradient-checkpointing",
    "merge": "use --device cpu if a GPU is full; llmft gpu-check --run RUN shows the RAM that merging needs",
    "eval": "use a smaller --eval-batch-size or --max-new-tokens, or --device cpu",
    "chat": "use a smaller --max-new-tokens, or --device cpu",
}


def with_memory_hint(error: LlmftError | None, arguments: list[str]) -> LlmftError | None:
    """The error, with a hint that fits the command line if memory ran out and nothing better is known."""
    if isinstance(error, OutOfMemory) and not error.hint and arguments:
        error.hint = LESS_MEMORY.get(arguments[0], "")
    return error
