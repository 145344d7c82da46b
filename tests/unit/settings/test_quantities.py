"""Sizes and durations: what is taken, what is refused and how, and that they come back as they went."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmft_cli.base.errors import ConfigError
from llmft_cli.settings.quantities import (
    BINARY_UNITS,
    format_count,
    format_duration,
    format_size,
    parse_count,
    parse_duration,
    parse_flag,
    parse_fraction,
    parse_size,
)

BYTES = st.integers(0, 2**50)
SECONDS = st.integers(0, 10**8)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("20GiB", 20 * 2**30),
        ("20 GB", 20 * 10**9),
        ("20G", 20 * 2**30),
        ("20g", 20 * 2**30),
        ("512MiB", 512 * 2**20),
        ("512mb", 512 * 10**6),
        ("0.5GiB", 2**29),
        (" 1.5 TiB ", 3 * 2**39),
        ("4096KiB", 2**22),
        ("7B", 7),
        ("12884901888B", 12 * 2**30),
        (f"{2**60}B", 2**60),
        ("0.1B", 1),
        ("0", 0),
        ("0.0", 0),
        ("0GiB", 0),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("20", "'20' has no unit"),
        ("20.5", "'20.5' has no unit"),
        ("20 GBit", "'20 GBit' has an unknown unit: 'gbit'"),
        ("20Gi", "'20Gi' has an unknown unit: 'gi'"),
        *((text, f"{text!r} is not a size such as 20GiB, 24GB or 512MiB") for text in ("", "GiB", "-1GiB", "1,5GiB", "1e3GiB")),
        *((text, f"{text!r} is not a size such as 20GiB, 24GB or 512MiB") for text in ("nan", "infGiB", "1 2GiB", "1GiB2")),
    ],
)
def test_what_is_no_size(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}$"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 7200),
        ("90m", 5400),
        ("1h30m", 5400),
        ("1H 30M", 5400),
        ("45s", 45),
        ("0.5s", 0.5),
        ("1.5h", 5400),
        ("1d12h", 129_600),
        ("1h5s", 3605),
        ("0", 0),
        ("0s", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("600", "'600' has no unit"),
        *(
            (text, f"{text!r} is not a duration such as 2h, 1h30m or 45s")
            for text in ("", " ", "h", "-1h", "30m1h", "1h1h", "1:30:00", "2 hours", "nan", "inf", "1h30")
        ),
    ],
)
def test_what_is_no_duration(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}$"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "value"), [("0.1", 0.1), ("10%", 0.1), ("0", 0), ("1", 1), ("100%", 1), (" 25 %", 0.25)])
def test_fractions(text: str, value: float) -> None:
    assert parse_fraction(text) == value


@pytest.mark.parametrize("text", ["", "%", "50", "-0.1", "101%", "nan", "inf", "low"])
def test_what_is_no_fraction(text: str) -> None:
    complaint = f"{text!r} is not a fraction from 0 to 1, or a percentage: 0.1 or 10%"
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}$"):
        parse_fraction(text)


def test_a_complaint_says_where_it_stands_and_what_works() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_flag(parse_size, "20", "--min-free", "20GiB")
    assert (caught.value.message, caught.value.hint) == ("--min-free: '20' has no unit", "did you mean --min-free 20GiB?")
    with pytest.raises(ConfigError) as caught:
        parse_flag(parse_size, "much", "--min-free", "20GiB")
    assert caught.value.hint == "for example: --min-free 20GiB"
    assert parse_flag(parse_size, "20GiB", "--min-free", "20GiB") == 20 * 2**30


@pytest.mark.parametrize(
    ("count", "down", "up"),
    [
        (0, "0 B", "0 B"),
        (1023, "1023 B", "1023 B"),
        (20 * 2**30, "20 GiB", "20 GiB"),
        (20 * 2**30 + 1, "20 GiB", "20.1 GiB"),
        (20 * 2**30 - 1, "19.9 GiB", "20 GiB"),
        (512 * 2**20, "512 MiB", "512 MiB"),
        (10**9, "953.6 MiB", "953.7 MiB"),
        (3 * 2**39, "1.5 TiB", "1.5 TiB"),
    ],
)
def test_sizes_written(count: int, down: str, up: str) -> None:
    assert (format_size(count), format_size(count, round_up=True)) == (down, up)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.4, "0s"), (45, "45s"), (59.6, "1m"), (5400, "1h30m"), (7200, "2h"), (90_061, "1d1h1m1s")],
)
def test_durations_written(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "two", "1e3", "\u0663"])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(repr(text))} is not a whole number of 1 or more$"):
        parse_count(text)


def test_counts() -> None:
    assert [parse_count(text) for text in ("1", " 08 ")] == [1, 8]


@given(SECONDS)
def test_a_duration_comes_back(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@given(BYTES)
def test_a_size_comes_back_to_a_tenth_of_its_unit(count: int) -> None:
    down, up = format_size(count), format_size(count, round_up=True)
    tenth = BINARY_UNITS[down.split()[1]] / 10
    # Reading rounds up to whole bytes.
    assert count - tenth < parse_size(down) <= count + 1
    assert count <= parse_size(up) < count + tenth + 1


@given(st.integers(0, 10**6), st.sampled_from([*BINARY_UNITS]))
def test_a_whole_size_comes_back_as_it_was(number: int, unit: str) -> None:
    count = number * BINARY_UNITS[unit]
    assert parse_size(f"{number} {unit}") == count
    assert parse_size(f"{number}{unit.lower()}") == count


@given(BYTES, BYTES)
def test_what_is_wanted_reads_as_more_than_what_falls_short_of_it(one: int, other: int) -> None:
    free, wanted = sorted((one, other))
    if free < wanted:
        assert format_size(free) != format_size(wanted, round_up=True)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_size, parse_duration, parse_fraction, parse_count):
        with contextlib.suppress(ConfigError):
            assert parse_flag(parse, text, "--flag", "1") >= 0


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [(0, ("row",), "0 rows"), (1, ("row",), "1 row"), (1200, ("row",), "1,200 rows"), (2, ("pass", "passes"), "2 passes")],
)
def test_counts_with_their_noun(count: int, noun: tuple[str, ...], text: str) -> None:
    assert format_count(count, *noun) == text
