"""Waiting for free GPUs: which cards count, what is said meanwhile, and when the wait ends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from llmft_cli.base.errors import ConfigError, LlmftError, MachineError, OutOfMemory
from llmft_cli.base.reporter import Silent
from llmft_cli.gpu import eligible, waiting
from llmft_cli.gpu.eligible import visible_gpus
from llmft_cli.gpu.gpus import Gpu, Listing
from llmft_cli.gpu.problem import Problem
from llmft_cli.gpu.waiting import Ready, Wanted, free_gpus, read_wanted, wait_for_gpus

GIB = 2**30
DEAD = Listing([], Problem("nvidia-smi: NVIDIA-SMI has failed", "see what `nvidia-smi` says"))


def card(index: int, free_gib: float | None, load: float | None = 0.0, total_gib: float | None = 80, **more: Any) -> Gpu:
    total, free = (None if size is None else int(size * GIB) for size in (total_gib, free_gib))
    return Gpu(index, "NVIDIA H100", f"GPU-{index}aaa", total, free, load, 41.0, "570.86.15", **more)


BUSY = card(0, 3.14, 0.97)
FREE = card(0, 79)


class Clock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(waiting, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def no_restriction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def polls(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that sets what nvidia-smi shows in each poll; the last listing repeats."""

    def answer(*listings: Sequence[Gpu] | Listing) -> None:
        def run() -> Iterator[Listing]:
            for listing in listings:
                yield listing if isinstance(listing, Listing) else Listing(list(listing))
            while True:
                yield shown

        last = listings[-1]
        shown = last if isinstance(last, Listing) else Listing(list(last))
        answers = run()
        monkeypatch.setattr(eligible, "list_gpus", lambda: next(answers))

    return answer


def refused(kind: type[LlmftError], wanted: Wanted, reporter: Silent | None = None) -> tuple[str, str]:
    with pytest.raises(kind) as caught:
        wait_for_gpus(wanted, reporter or Silent())
    return caught.value.message, caught.value.hint


class TestWhatIsFree:
    def indices(self, wanted: Wanted, *gpus: Gpu) -> list[int]:
        return [gpu.index for gpu in free_gpus(gpus, wanted)]

    def test_memory_is_at_least(self) -> None:
        gpus = [card(0, 20), card(1, 20 - 1 / 1024), card(2, 20 + 1 / 1024)]
        assert self.indices(Wanted(min_free_bytes=20 * GIB), *gpus) == [2, 0]

    def test_load_is_at_most(self) -> None:
        gpus = [card(0, 79, 0.1), card(1, 79, 0.11), card(2, 79, 0.0), card(3, 79, 1.0)]
        assert self.indices(Wanted(max_load=0.1), *gpus) == [0, 2]
        assert self.indices(Wanted(max_load=0.0), *gpus) == [2]
        assert self.indices(Wanted(max_load=1.0), *gpus) == [0, 1, 2, 3]

    def test_without_a_size_nine_tenths_of_the_card(self) -> None:
        gpus = [card(0, 71), card(1, 73), card(2, 22, total_gib=24), card(3, 21, total_gib=24)]
        assert self.indices(Wanted(), *gpus) == [1, 2]

    def test_most_free_memory_first(self) -> None:
        gpus = [card(0, 30), card(1, 50), card(2, 40), card(3, 50)]
        assert self.indices(Wanted(min_free_bytes=GIB), *gpus) == [1, 3, 2, 0]

    def test_a_card_that_does_not_tell_its_load_counts_by_its_memory(self) -> None:
        gpus = [card(0, 79, None), card(1, 3, None)]
        assert self.indices(Wanted(min_free_bytes=20 * GIB, max_load=0), *gpus) == [0]

    def test_a_full_card_is_free_for_who_wants_nothing(self) -> None:
        assert self.indices(Wanted(min_free_bytes=0), card(0, 0)) == [0]


class TestVisible:
    GPUS = (card(0, 1), card(1, 2), card(2, 3))

    @pytest.mark.parametrize(
        ("allowed", "indices"),
        [
            (None, [0, 1, 2]),
            ("", []),
            ("1", [1]),
            ("2,0", [2, 0]),
            (" 2 , 0 ", [2, 0]),
            ("0,0", [0]),
            ("0,7,1", [0]),
            ("-1", []),
            ("NoDevFiles", []),
            ("GPU-1aaa", [1]),
            ("GPU-2", [2]),
            ("GPU-2aaa,0", [2, 0]),
            ("GPU-9", []),
            ("MIG-1aaa", []),
        ],
    )
    def test_as_cuda_reads_it(self, allowed: str | None, indices: list[int]) -> None:
        assert [gpu.index for gpu in visible_gpus(self.GPUS, allowed)] == indices

    def test_only_visible_cards_are_waited_for(self, polls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        polls([card(0, 79), card(1, 60), card(2, 70)])
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-2aaa")
        assert wait_for_gpus(Wanted(min_free_bytes=GIB), Silent()).gpu_indices == [2]
        message, hint = refused(MachineError, Wanted(3, GIB))
        assert message.startswith("3 GPUs requested, but CUDA_VISIBLE_DEVICES=1,GPU-2aaa ")
        assert "2 of 3" in message
        assert hint.endswith("unset CUDA_VISIBLE_DEVICES")


class TestTheWait:
    WANTED = Wanted(1, 20 * GIB, timeout_seconds=7200)

    def test_a_free_card_is_reported_immediately(self, polls: Any, clock: Clock) -> None:
        polls([FREE])
        reporter = Notes()
        assert wait_for_gpus(self.WANTED, reporter) == Ready([0], ["GPU-0aaa"], 0.0)
        assert (clock.slept, reporter.said) == ([], [])

    def test_it_goes_on_until_a_card_is_free(self, polls: Any, clock: Clock) -> None:
        polls([BUSY], [BUSY], [BUSY], [FREE])
        assert wait_for_gpus(self.WANTED, Silent()) == Ready([0], ["GPU-0aaa"], 4.75)
        assert clock.slept == [1.0, 1.5, 2.25]

    def test_it_asks_every_five_seconds_in_the_long_run_and_once_more_at_the_end(self, polls: Any, clock: Clock) -> None:
        polls([BUSY])
        refused(OutOfMemory, replace(self.WANTED, timeout_seconds=32))
        assert clock.slept == pytest.approx([1, 1.5, 2.25, 3.375, 5, 5, 5, 5, 3.875])
        assert clock.now == 1032

    def test_several_cards_in_the_order_of_their_indices(self, polls: Any, clock: Clock) -> None:
        polls([card(0, 30), BUSY, card(2, 1), card(3, 50)], [card(0, 30), card(1, 40), card(2, 1), card(3, 50)])
        wanted = replace(self.WANTED, count=2)
        assert wait_for_gpus(wanted, Silent()) == Ready([0, 3], ["GPU-0aaa", "GPU-3aaa"], 0.0)
        assert wait_for_gpus(replace(wanted, count=3), Silent()).gpu_indices == [0, 1, 3]

    def test_time_is_up(self, polls: Any, clock: Clock) -> None:
        polls([BUSY, card(1, 40, None)])
        message, hint = refused(OutOfMemory, Wanted(2, 20 * GIB, 0.1, 5400))
        assert message == (
            "not free within 1h30m: 2 GPUs, each with 20 GiB free and a load of at most 10%: "
            "GPU 0 has 3.1 GiB free, load 97%; GPU 1 has 40 GiB free, load unknown"
        )
        assert [part for part in ("nvidia-smi", "--wait", "--min-free", "--max-load") if part not in hint] == []

    def test_without_a_time_it_asks_once(self, polls: Any, clock: Clock) -> None:
        polls([BUSY], [FREE])
        message, hint = refused(OutOfMemory, Wanted())
        wanted = "1 GPU with 90% of its memory free and a load of at most 10%"
        assert message == f"not free now: {wanted}: GPU 0 has 3.1 GiB free, load 97%"
        assert hint.endswith("--wait 2h")
        assert clock.slept == []


class TestWhatIsSaid:
    WANTED = Wanted(1, 20 * GIB, timeout_seconds=7200)
    LINE = "waiting for 1 GPU with 20 GiB free and a load of at most 10%: GPU 0 has {} GiB free, load {}"

    def test_once_and_when_something_changes(self, polls: Any, clock: Clock) -> None:
        polls([BUSY], [card(0, 3.5, 0.5)], [card(0, 40, 0.5)], [card(0, 41, 0.9)], [card(0, 2, 0)], [FREE])
        reporter = Notes()
        wait_for_gpus(self.WANTED, reporter)
        assert reporter.said == [self.LINE.format("3.1", "97%"), self.LINE.format(40, "50%"), self.LINE.format(2, "0%")]

    def test_every_minute(self, polls: Any, clock: Clock) -> None:
        polls([BUSY])
        reporter = Notes()
        refused(OutOfMemory, replace(self.WANTED, timeout_seconds=200), reporter)
        assert reporter.said == [self.LINE.format("3.1", "97%")] * 4

    def test_no_word_of_a_load_that_may_be_anything(self, polls: Any, clock: Clock) -> None:
        polls([BUSY], [FREE])
        reporter = Notes()
        wait_for_gpus(replace(self.WANTED, max_load=1.0), reporter)
        assert reporter.said == ["waiting for 1 GPU with 20 GiB free: GPU 0 has 3.1 GiB free, load 97%"]


class TestTheImpossible:
    def test_no_card_is_large_enough(self, polls: Any, clock: Clock) -> None:
        polls([card(0, 1, total_gib=8), card(1, 1, total_gib=7.99)])
        message, hint = refused(OutOfMemory, Wanted(1, 20 * 10**9, timeout_seconds=7200))
        assert "1 GPU with 18.7 GiB free and a load of at most 10%: the largest GPU has 8 GiB" in message
        assert "--min-free" in hint
        assert clock.slept == []

    def test_too_few_are_large_enough(self, polls: Any, clock: Clock) -> None:
        polls([card(0, 1, total_gib=8), card(1, 1, total_gib=80), card(2, 1, total_gib=8)])
        message, _ = refused(OutOfMemory, Wanted(2, 20 * GIB, 1.0, 7200))
        assert "2 GPUs, each with 20 GiB free: only 1 of 3 GPUs has " in message

    def test_fewer_cards_than_asked_for(self, polls: Any, clock: Clock) -> None:
        polls([FREE])
        message, hint = refused(MachineError, Wanted(2, timeout_seconds=7200))
        assert message == "2 GPUs requested, but this machine has 1"
        assert hint.endswith("--gpus 1")

    def test_a_card_in_slices(self, polls: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        polls([card(0, 79, None, mig="enabled"), card(1, 79, mig="disabled")])
        assert wait_for_gpus(Wanted(), Silent()).gpu_indices == [1]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-0aaa")
        message, hint = refused(MachineError, Wanted(timeout_seconds=7200))
        assert [part for part in ("1 GPU requested", "0 of 2", "MIG", "--wait") if part not in message] == []
        assert "without --wait" in hint
        assert hint.endswith("nvidia-smi -mig 0")

    def test_a_card_that_does_not_tell_its_memory(self, polls: Any, clock: Clock) -> None:
        polls([card(0, None, total_gib=None)])
        message, _ = refused(MachineError, Wanted(timeout_seconds=7200))
        assert message == "nvidia-smi does not report the free memory of GPU 0 (NVIDIA H100)"

    def test_no_driver(self, polls: Any, clock: Clock) -> None:
        polls(Listing([], Problem("nvidia-smi was not found on the PATH", "")))
        message, hint = refused(MachineError, Wanted(timeout_seconds=7200))
        assert message == "no GPU to wait for: nvidia-smi was not found on the PATH"
        assert hint.startswith("use a machine with an NVIDIA GPU")
        assert clock.slept == []


class TestADriverThatFails:
    WANTED = Wanted(1, 20 * GIB, timeout_seconds=7200)

    def test_some_failures_are_passed_over(self, polls: Any, clock: Clock) -> None:
        polls([BUSY], *[DEAD] * 5, [BUSY], *[DEAD] * 5, [FREE])
        reporter = Notes()
        assert wait_for_gpus(self.WANTED, reporter).gpu_indices == [0]
        line = "no GPU to wait for: nvidia-smi: NVIDIA-SMI has failed; retrying"
        assert reporter.said[1:] == [line] * 10

    def test_a_card_that_is_missing_for_a_moment(self, polls: Any, clock: Clock) -> None:
        polls([BUSY, card(1, 79)], [BUSY], [FREE, card(1, 79)])
        assert wait_for_gpus(replace(self.WANTED, count=2), Silent()).gpu_indices == [0, 1]

    def test_not_for_ever(self, polls: Any, clock: Clock) -> None:
        polls([BUSY], DEAD)
        assert refused(MachineError, self.WANTED) == (
            "no GPU to wait for: nvidia-smi: NVIDIA-SMI has failed",
            "see what `nvidia-smi` says",
        )
        assert len(clock.slept) == 6

    def test_not_beyond_the_time(self, polls: Any, clock: Clock) -> None:
        polls([BUSY], DEAD)
        refused(MachineError, replace(self.WANTED, timeout_seconds=2))
        assert clock.slept == [1.0, 1.0]

    def test_the_first_answer_counts(self, polls: Any, clock: Clock) -> None:
        polls(DEAD, [FREE])
        refused(MachineError, self.WANTED)


class TestFlags:
    def test_defaults(self) -> None:
        assert read_wanted("2h", None, None, None) == Wanted(1, None, 0.1, 7200)

    def test_all(self) -> None:
        assert read_wanted(None, "20GiB", "50%", "2") == Wanted(2, 20 * GIB, 0.5, 0)

    @pytest.mark.parametrize(
        ("flags", "message", "hint"),
        [
            (("120", None, None, None), "--wait: '120' has no unit", "for example: --wait 2h"),
            (("0", "20", None, None), "--min-free: '20' has no unit", "did you mean --min-free 20GiB?"),
            (
                ("0", None, "30", None),
                "--max-load: '30' is not a fraction from 0 to 1, or a percentage: 0.1 or 10%",
                "for example: --max-load 0.1",
            ),
            (("0", None, None, "0"), "--gpus: '0' is not a whole number of 1 or more", "for example: --gpus 2"),
        ],
    )
    def test_malformed(self, flags: Any, message: str, hint: str) -> None:
        with pytest.raises(ConfigError) as caught:
            read_wanted(*flags)
        assert (caught.value.message, caught.value.hint) == (message, hint)


def test_gputil_gets_what_nvidia_smi_said() -> None:
    entry: Any = waiting.gputil_entry(card(3, 60, 0.25))
    assert (entry.id, entry.uuid, entry.load) == (3, "GPU-3aaa", 0.25)
    assert (entry.memoryTotal, entry.memoryFree, entry.memoryUtil) == (80 * 1024, 60 * 1024, 0.25)
    assert math.isnan(waiting.gputil_entry(card(0, 1, None)).load)  # type: ignore[attr-defined]
