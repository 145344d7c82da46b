"""Finds near-duplicate rows by MinHash with LSH banding.

A row is the set of its shingles (three consecutive words). `rensa` computes a signature of each
set; the share of slots in which two signatures agree estimates the Jaccard similarity of the two
sets. Signatures are divided into bands, and only rows that agree in some whole band are compared.

Signatures are on disk, one file per band, and are read one band at a time: memory use is
about 70 bytes per row.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmft_cli.data.words import UNSPACED

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Signatures = NDArray[numpy.uint16]
    Indices = NDArray[numpy.int32]
    Hashes = NDArray[numpy.uint64]

# The share of slots that must agree. Four of five shingles in common: one changed name or number in a paragraph.
THRESHOLD = 0.8
# 16 bands of 8: rows with 90% similarity agree in a band in all but 1 of 10,000 cases, rows with 50% in 6 of 100.
BANDS = 16
BAND_SLOTS = 8
SLOTS = BANDS * BAND_SLOTS
SHINGLE_WORDS = 3
SEED = 1
# Slots are stored as 16 bits: unrelated ones agree once in 65,536, which is negligible.
AT_ONCE = 100_000
# Above 255 rows or 65,535 shingles rensa starts threads, and a process forked later, which lacks them, hangs at its
# first call. Rows that can be trained on are shorter; of a longer one only the beginning is used.
ROWS_AT_ONCE = 200
SHINGLES_AT_ONCE = 60_000

# ASCII punctuation of prose separates words; operators and signs in names (+ - * / = < > % $ # @ _) are part of words.
SEPARATORS = bytes(range(33)) + b"\x7f.,;:!?\"'()[]{}`"
TO_WORDS = bytes(32 if code in SEPARATORS else code for code in range(256))
# Odd constants without a pattern, from the digits of pi, e and the golden ratio.
MULTIPLIERS = (0x9E3779B97F4A7C15, 0x243F6A8885A308D3, 0xB7E151628AED2A6B, 0x13198A2E03707345)


class NearDuplicates:
    """Collects signatures of rows on disk, and finds near-duplicates.

    Args:
        folder: for the signatures, 256 bytes per row; older ones are overwritten.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [folder / f"band-{band:02}.u16" for band in range(BANDS)]
        for file in self._files:
            file.write_bytes(b"")
        self._rows = 0

    def add(self, texts: Sequence[str]) -> None:
        """Add the texts of a batch of rows, in row order."""
        batch = signatures(texts)
        self._rows += len(batch)
        for band, file in enumerate(self._files):
            with file.open("ab") as end:
                end.write(batch[:, band * BAND_SLOTS : (band + 1) * BAND_SLOTS].tobytes())

    def groups(self) -> NDArray[numpy.int64]:
        """For each row the index of the first row of its group, which is its own index if it has no near-duplicates.

        A group is everything connected by a chain of near-duplicates.
        """
        import numpy

        group = numpy.arange(self._rows, dtype=numpy.int32)
        for band in range(BANDS):
            for first, second in candidates(self._band_hashes(band)):
                apart = group[first] != group[second]
                first, second = first[apart], second[apart]
                alike = self._are_similar(first, second)
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
                hashes[start : start + AT_ONCE] = mix_hashes(halves[:, 0], halves[:, 1])
        return hashes

    def _are_similar(self, first: Indices, second: Indices) -> NDArray[numpy.bool_]:
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

    hashes, offsets = shingle_hashes([words_of(text) for text in texts])
    slots = array("I")
    start = 0
    while start < len(texts):
        end = int(numpy.searchsorted(offsets, offsets[start] + SHINGLES_AT_ONCE, side="right")) - 1
        end = min(max(end, start + 1), start + ROWS_AT_ONCE, len(texts))
        bounds = numpy.minimum(offsets[start : end + 1] - offsets[start], SHINGLES_AT_ONCE).astype(numpy.uint64)
        part = hashes[offsets[start] : offsets[start] + int(bounds[-1])]
        for row in RMinHash.digest_matrix_from_flat_token_hashes(part, bounds, SLOTS, SEED).to_rows():
            slots.fromlist(row)
        start = end
    return numpy.frombuffer(slots, numpy.uint32).astype(numpy.uint16).reshape(-1, SLOTS)


def words_of(text: str) -> bytes:
    """The lower-case words of a text, separated by spaces; a text without words counts as one word.

    In scripts without spaces between words, each character counts as one.
    """
    lowered = text.lower()
    if not lowered.isascii():
        lowered = UNSPACED.sub(lambda match: f" {' '.join(match[0])} ", lowered)
    encoded = lowered.encode("utf-8", "surrogatepass")
    words = encoded.translate(TO_WORDS)
    return words if words and not words.isspace() else b"\xff" + b"".join(encoded.split())


def shingle_hashes(rows: Sequence[bytes]) -> tuple[Hashes, NDArray[numpy.int64]]:
    """Hashes of every row's shingles (of its words if there are fewer than three), and the offset of each row."""
    import numpy

    words, counts = word_hashes(rows)
    short = counts < SHINGLE_WORDS
    following = numpy.concatenate([words, numpy.zeros(SHINGLE_WORDS - 1, numpy.uint64)])
    shingles = mix_hashes(*(following[place : place + len(words)] for place in range(SHINGLE_WORDS)))
    from_end = numpy.repeat(numpy.cumsum(counts), counts) - numpy.arange(len(words))
    alone = numpy.repeat(short, counts)
    hashes = numpy.where(alone, words, shingles)[alone | (from_end >= SHINGLE_WORDS)]
    kept = numpy.where(short, counts, counts - (SHINGLE_WORDS - 1))
    return hashes, numpy.concatenate([[0], numpy.cumsum(kept)])


def word_hashes(rows: Sequence[bytes]) -> tuple[Hashes, NDArray[numpy.intp]]:
    """Hashes of all words in order, and the number of words in each row.

    The hash covers a word's length, its first 16 bytes and, if it is longer, its last 8.
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
    return mix_hashes(head, middle, tail, lengths.astype(numpy.uint64)), numpy.diff(numpy.searchsorted(starts, row_starts))


def mix_hashes(*parts: Hashes) -> Hashes:
    """Combine up to four hashes into one whose bits depend on all of them."""
    import numpy

    value = numpy.zeros(len(parts[0]), numpy.uint64)
    for part, multiplier in zip(parts, MULTIPLIERS, strict=False):
        value += part * numpy.uint64(multiplier)
    for shift in (32, 29):
        value ^= value >> numpy.uint64(shift)
        value *= numpy.uint64(MULTIPLIERS[0])
    return value ^ (value >> numpy.uint64(32))


def candidates(hashes: Hashes) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of rows with the same hash: each row with the first such row, then each with the previous one.

    Thousands of equal rows thus give thousands of pairs, not millions.
    """
    import numpy

    order = numpy.argsort(hashes, kind="stable").astype(numpy.int32)
    repeats = numpy.zeros(len(hashes), numpy.bool_)
    ordered = hashes[order]
    numpy.equal(ordered[1:], ordered[:-1], out=repeats[1:])
    del ordered
    # For each position, the start of its run of equal hashes.
    beginning = numpy.where(repeats, 0, numpy.arange(len(hashes), dtype=numpy.int32))
    numpy.maximum.accumulate(beginning, out=beginning)
    places = numpy.flatnonzero(repeats).astype(numpy.int32)
    beginning = beginning[places]
    yield order[beginning], order[places]
    later = places[places - 1 != beginning]
    yield order[later - 1], order[later]


def join(group: Indices, first: Indices, second: Indices) -> None:
    """Merge the groups of pairs of rows, in place; a group is named by its smallest row."""
    import numpy

    while True:
        low, high = numpy.minimum(group[first], group[second]), numpy.maximum(group[first], group[second])
        apart = low != high
        if not apart.any():
            return
        numpy.minimum.at(group, high[apart], low[apart])
        while not numpy.array_equal(shorter := group[group], group):
            group[:] = shorter
