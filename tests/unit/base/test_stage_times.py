"""Wall time by stage, with a clock that moves when it is told to."""

from __future__ import annotations

import subprocess
import sys
import time

from llmft_cli.base.stage_times import StageTimes, process_started


class Clock:
    def __init__(self) -> None:
        self.moment = 100.0

    def __call__(self) -> float:
        return self.moment


def test_stages_add_up_to_the_whole_time() -> None:
    clock = Clock()
    times = StageTimes("imports", started=98.0, now=clock)
    clock.moment += 1
    times.enter("steps")
    clock.moment += 10
    with times.during("evaluations"):
        clock.moment += 4
    clock.moment += 20
    with times.during("evaluations"):
        clock.moment += 5
        with times.during("saves"):
            clock.moment += 2
    times.enter("end")
    clock.moment += 0.5
    assert times.seconds == {"imports": 3, "steps": 30, "evaluations": 9, "saves": 2, "end": 0.5}
    assert sum(times.seconds.values()) == clock.moment - 98


def test_time_goes_on_after_it_was_read() -> None:
    clock = Clock()
    times = StageTimes("steps", now=clock)
    clock.moment += 1
    assert times.seconds == {"steps": 1}
    clock.moment += 2
    assert times.seconds == {"steps": 3}


def test_a_stage_ends_even_if_it_fails() -> None:
    clock = Clock()
    times = StageTimes("steps", now=clock)
    try:
        with times.during("saves"):
            clock.moment += 1
            raise OSError
    except OSError:
        clock.moment += 2
    assert times.seconds == {"steps": 2, "saves": 1}


def test_a_process_knows_when_it_started() -> None:
    """Also the time before any of our code ran: here a sleep."""
    program = "import time; time.sleep(1); from llmft_cli.base.stage_times import process_started; "
    program += "print(time.monotonic() - process_started())"
    before = time.monotonic()
    age = float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    whole = time.monotonic() - before
    if sys.platform == "linux":
        assert 1 <= age <= whole + 0.02  # the system tells in hundredths
    assert process_started() <= time.monotonic()
