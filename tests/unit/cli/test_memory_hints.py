"""Where memory runs out in a library, the hint names what the command has; chat was told of --batch-size."""

import pytest

from llmft_cli.base.errors import DataError, OutOfMemory
from llmft_cli.cli.memory_hints import LESS_MEMORY, with_memory_hint


@pytest.mark.parametrize("command", ["gpu-check", "prepare", "train", "merge", "eval", "chat"])
def test_the_hint_is_of_the_command(command: str) -> None:
    error = with_memory_hint(OutOfMemory("out of memory"), [command, "run"])
    assert error is not None
    assert error.hint == LESS_MEMORY[command]


def test_a_better_hint_and_other_errors_are_left_alone() -> None:
    for known in (OutOfMemory("x", "better"), DataError("x")):
        hint = known.hint
        assert with_memory_hint(known, ["chat"]) is known
        assert known.hint == hint
    assert with_memory_hint(None, ["chat"]) is None
