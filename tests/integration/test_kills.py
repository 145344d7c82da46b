"""A few kills of every command; tests/kills/kill_commands.py tries as many as one likes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "kills" / "kill_commands.py"


@pytest.mark.slow
def test_killed_commands_end_as_if_they_had_not_been_killed() -> None:
    command = [sys.executable, str(SCRIPT), "--train", "3", "--merge", "1", "--eval", "1", "--prepare", "2", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) kills of \d+ commands in (\d+) trials: (\d+) ended as without a kill", done.stdout)
    assert found is not None
    kills, trials, identical = map(int, found.groups())
    assert kills >= 7
    assert identical == trials
