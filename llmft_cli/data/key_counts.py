"""Counts of the keys that rows have and their formats do not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

MOST_KEYS = 1000
OTHER_KEYS = "other keys"
# Names and descriptions of rows, which have nothing to learn.
HARMLESS_NAMES = """
_id id ids uuid guid idx index row row_id number line hash md5 sha1 sha256 __index_level_0__
dataset dataset_name _dataset_name data_source source sources origin subset split config version license url link
category categories topic topics tag tags domain task task_name task_type type lang language locale
time timestamp date created created_at created_date create_time updated updated_at
model model_name engine generator author user username name
extra_info info meta metadata num_turns num_tokens token_count length usage finish_reason cache_control turn
"""
HARMLESS = frozenset(HARMLESS_NAMES.split()) | {"unnamed: 0"}
MEDIA_NAMES = ("image", "audio", "video")


class KeyCounts:
    """The number of rows with each ignored key; keys beyond the first `MOST_KEYS` are counted together."""

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()

    def add(self, keys: Sequence[str]) -> None:
        """Count the ignored keys of a row, each given once."""
        new = [key for key in keys if key not in self._rows]
        room = max(0, MOST_KEYS - len(self._rows))
        self._rows.update(set(keys).difference(new[room:]))
        if len(new) > room:
            self._rows[OTHER_KEYS] += 1

    def figures(self) -> list[dict[str, Any]]:
        """Each key, its rows and whether it is harmless: harmless ones last, most common first."""
        keys = [{"key": key, "rows": rows, "harmless": is_harmless(key)} for key, rows in self._rows.most_common()]
        return sorted(keys, key=lambda item: bool(item["harmless"]))


def is_harmless(key: str) -> bool:
    """Whether a key of `ignored_keys` only names or describes its row."""
    name = key.rpartition("[].")[2].lower()
    return name in HARMLESS or (name.endswith("_id") and not name.startswith(MEDIA_NAMES))
