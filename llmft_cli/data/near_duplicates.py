"""Rows that are nearly the same, found by MinHash.

A row is the set of its runs of three words. `rensa` makes a signature of each set; the share of
slots in which two signatures agree estimates the share of runs that two rows have in common
(Jaccard). Signatures are cut into bands, and only rows that are the same in some band are compared.

Signatures lie on disk, one file a band, and are read a band at a time: what is held in memory is
some 70 bytes a row.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Signatures = NDArray[numpy.uint16]
    Indices = NDArray[numpy.int32]
    Hashes = NDArray[numpy.uint64]

# The share of slots that must agree. Alike in four of five runs of words: one changed name or number in a paragraph.
THRESHOLD = 0.8
# 16 bands of 8: rows alike in 90% meet in a band in all but 1 of 10,000 cases, rows alike in 50% in 6 of 100.
BANDS = 16
BAND_SLOTS = 8
SLOTS = BANDS * BAND_SLOTS
RUN = 3
SEED = 1
# Slots are kept as 16 bits: unrelated ones then agree once in 65,536, which moves no estimate.
AT_ONCE = 100_000
# Above 255 rows or 65,535 runs rensa starts threads, and a process forked later, which lacks them, hangs at its first
# call. No row that can be trained on is longer; of one that is, the beginning stands for all.
ROWS_AT_ONCE = 200
RUNS_AT_ONCE = 60_000

# ASCII punctuation of prose separates words; signs that calculate or name things (+ - * / = < > % $ # @ _) are part of them.
SEPARATORS = bytes(range(33)) + b"\x7f.,;:!?\"'()[]{}`"
TO_WORDS = bytes(32 if code in SEPARATORS else code for code in range(256))
# Scripts that put no space between words (Thai to Khmer, Chinese, Japanese): each character is a word.
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
# Odd constants without a pattern, from the digits of pi, e and the golden ratio.
MULTIPLIERS = (0x9E3779B97F4A7C15, 0x243F6A8885A308D3, 0xB7E151628AED2A6B, 0x13198A2E03707345)


class NearDuplicates:
    """Collects signatures of rows, on disk, and finds those that are nearly the same.

    Args:
        folder: where the signatures are kept, 256 bytes a row; those of an earlier search are overwritten.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [folder / f"band-{band:02}.u16" for band in range(BANDS)]
        for file in self._files:
            file.write_bytes(b"")
        self._rows = 0

    def add(self, texts: Sequence[str]) -> None:
        """Take in a batch of rows' texts, in row order."""
        batch = signatures(texts)
        self._rows += len(batch)
        for band, file in enumerate(self._files):
            with file.open("ab") as end:
                end.write(batch[:, band * BAND_SLOTS : (band + 1) * BAND_SLOTS].tobytes())

    def groups(self) -> NDArray[numpy.int64]:
        """For each row the index of the first row of its group: its own where it stands alone.

        A group is everything that a chain of near-duplicates connects.
        """
        import numpy

        group = numpy.arange(self._rows, dtype=numpy.int32)
        for band in range(BANDS):
            for first, second in candidates(self._band_hashes(band)):
                apart = group[first] != group[second]
                first, second = first[apart], second[apart]
                alike = self._alike(first, second)
                join(group, first[alike], second[alike])
        return group.astype(numpy.int64)

    def _band(self, band: int) -> Signatures:
        import numpy

        return numpy.fromfile(self._files[band], numpy.uint16).reshape(-1, BAND_SLOTS)

    def _band_hashes(self, band: int) -> Hashes:
        import numpy

        hashes = numpy.empty(self._rows, numpy.uint64)
        with self._files[band].open("rb") as file:
            for start in range(0, self._rows, AT_ONCE):
                halves = numpy.fromfile(file, numpy.uint64, 2 * AT_ONCE).reshape(-1, 2)
                hashes[start : start + AT_ONCE] = mixed(halves[:, 0], halves[:, 1])
        return hashes

    def _alike(self, first: Indices, second: Indices) -> NDArray[numpy.bool_]:
        """Which pairs of rows agree in enough slots."""
        import numpy

        agreeing = numpy.zeros(len(first), numpy.uint8)
        for band in range(BANDS if len(first) else 0):
            slots = self._band(band)
            for start in range(0, len(first), AT_ONCE):
                part = slice(start, start + AT_ONCE)
                agreeing[part] += (slots[first[part]] == slots[second[part]]).sum(axis=1, dtype=numpy.uint8)
        return agreeing >= THRESHOLD * SLOTS


def signatures(texts: Sequence[str]) -> Signatures:
    """MinHash signatures of texts, one row of slots each; starts no threads."""
    import numpy
    from rensa import RMinHash

    hashes, offsets = run_hashes([in_words(text) for text in texts])
    slots = array("I")
    start = 0
    while start < len(texts):
        end = int(numpy.searchsorted(offsets, offsets[start] + RUNS_AT_ONCE, side="right")) - 1
        end = min(max(end, start + 1), start + ROWS_AT_ONCE, len(texts))
        bounds = numpy.minimum(offsets[start : end + 1] - offsets[start], RUNS_AT_ONCE).astype(numpy.uint64)
        part = hashes[offsets[start] : offsets[start] + int(bounds[-1])]
        for row in RMinHash.digest_matrix_from_flat_token_hashes(part, bounds, SLOTS, SEED).to_rows():
            slots.fromlist(row)
        start = end
    return numpy.frombuffer(slots, numpy.uint32).astype(numpy.uint16).reshape(-1, SLOTS)


def in_words(text: str) -> bytes:
    """A text in small letters with nothing but words and spaces; one that has no words is a word itself."""
    lowered = text.lower()
    if not lowered.isascii():
        lowered = UNSPACED.sub(lambda match: f" {' '.join(match[0])} ", lowered)
    encoded = lowered.encode("utf-8", "surrogatepass")
    words = encoded.translate(TO_WORDS)
    return words if words and not words.isspace() else b"\xff" + b"".join(encoded.split())


def run_hashes(rows: Sequence[bytes]) -> tuple[Hashes, NDArray[numpy.int64]]:
    """Hashes of every row's runs of words, or of its words where they make no run, and where each row begins."""
    import numpy

    words, counts = word_hashes(rows)
    short = counts < RUN
    following = numpy.concatenate([words, numpy.zeros(RUN - 1, numpy.uint64)])
    runs = mixed(*(following[place : place + len(words)] for place in range(RUN)))
    from_end = numpy.repeat(numpy.cumsum(counts), counts) - numpy.arange(len(words))
    alone = numpy.repeat(short, counts)
    hashes = numpy.where(alone, words, runs)[alone | (from_end >= RUN)]
    kept = numpy.where(short, counts, counts - (RUN - 1))
    return hashes, numpy.concatenate([[0], numpy.cumsum(kept)])


def word_hashes(rows: Sequence[bytes]) -> tuple[Hashes, NDArray[numpy.intp]]:
    """Hashes of all words in order, and how many each row has.

    A word is hashed by its length, its first 16 bytes and, where it is longer, its last 8.
    """
    import numpy

    margin = b" " * 16
    text = margin + b" ".join(rows) + margin
    inside = numpy.frombuffer(text, numpy.uint8) > 32
    edges = numpy.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    lengths = ends - starts
    windows = numpy.ndarray(len(text) - 7, "<u8", text, strides=(1,))
    low_bytes = numpy.array([(1 << 8 * count) - 1 for count in range(9)], numpy.uint64)
    head = windows[starts] & low_bytes[numpy.minimum(lengths, 8)]
    middle = windows[starts + 8] & low_bytes[numpy.clip(lengths - 8, 0, 8)]
    tail = windows[ends - 8] & low_bytes[numpy.where(lengths > 16, 8, 0)]
    row_starts = len(margin) + numpy.cumsum([0, *(len(row) + 1 for row in rows)])
    return mixed(head, middle, tail, lengths.astype(numpy.uint64)), numpy.diff(numpy.searchsorted(starts, row_starts))


def mixed(*parts: Hashes) -> Hashes:
    """One hash of up to four, every bit of which depends on all."""
    import numpy

    value = numpy.zeros(len(parts[0]), numpy.uint64)
    for part, multiplier in zip(parts, MULTIPLIERS, strict=False):
        value += part * numpy.uint64(multiplier)
    for shift in (32, 29):
        value ^= value >> numpy.uint64(shift)
        value *= numpy.uint64(MULTIPLIERS[0])
    return value ^ (value >> numpy.uint64(32))


def candidates(hashes: Hashes) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of rows with the same hash: each row with the first such row, then each with the one before it.

    So that thousands of equal rows make thousands of pairs, not millions.
    """
    import numpy

    order = numpy.argsort(hashes, kind="stable").astype(numpy.int32)
    repeats = numpy.zeros(len(hashes), numpy.bool_)
    ordered = hashes[order]
    numpy.equal(ordered[1:], ordered[:-1], out=repeats[1:])
    del ordered
    # The place where the run of equal hashes begins in which a place lies.
    beginning = numpy.where(repeats, 0, numpy.arange(len(hashes), dtype=numpy.int32))
    numpy.maximum.accumulate(beginning, out=beginning)
    places = numpy.flatnonzero(repeats).astype(numpy.int32)
    beginning = beginning[places]
    yield order[beginning], order[places]
    later = places[places - 1 != beginning]
    yield order[later - 1], order[later]


def join(group: Indices, first: Indices, second: Indices) -> None:
    """Join the groups of pairs of rows, in place; a group is named by its smallest row."""
    import numpy

    while True:
        low, high = numpy.minimum(group[first], group[second]), numpy.maximum(group[first], group[second])
        apart = low != high
        if not apart.any():
            return
        numpy.minimum.at(group, high[apart], low[apart])
        while not numpy.array_equal(shorter := group[group], group):
            group[:] = shorter
