"""What the keys of rows are likely to mean, by the words in them and by their values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from llmft_cli.data.forms.preferences import decoded_or_text

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+")


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# From the most to the least telling, in the singular.
QUESTIONS = words("prompt instruction question query user human input request problem task ask q utterance source src title")
QUESTIONS += words("frage pregunta domanda 问题 指令")
ANSWERS = words("completion response output answer reply assistant gpt bot solution target tgt a label summary generation")
ANSWERS += words("result antwort respuesta risposta réponse 回答 答案")
CONTEXTS = words("context passage paragraph background document article kontext input")
SYSTEMS = words("system sys persona")
TEXTS = words("text content body document article story code passage abstract markdown")
# Keys with one of these words are about the row.
ABOUT = words("id uuid guid hash sha md5 idx index url uri link date time timestamp lang language license version split")
ABOUT += words("score rating path file filename category")
ID = re.compile(r"https?://\S+|[!-~]*\d[!-~]*")
SHARE_OF_ROWS = 0.5
MOST_COLUMNS = 100


@dataclass(frozen=True)
class Column:
    """The values at a key of the sampled rows, or at a dotted path one level deep.

    Attributes:
        values: without nulls.
    """

    path: str
    values: Sequence[Any]

    @property
    def words(self) -> set[str]:
        found = [word.lower() for word in WORD.findall(self.path)]
        return {*found, *(word.removesuffix("s") for word in found)}

    @property
    def texts(self) -> list[str]:
        return [value for value in self.values if isinstance(value, str) and value.strip()]

    @property
    def is_text(self) -> bool:
        """Whether it has texts that may be learned or asked, not ids or numbers."""
        texts = self.texts
        return 2 * len(texts) > len(self.values) and not self.is_about_the_row and not look_like_ids(texts)

    @property
    def is_about_the_row(self) -> bool:
        return self.rank(ABOUT) is not None

    @property
    def has_turns(self) -> bool:
        return all(isinstance(decoded_or_text(value), list) for value in self.values)

    @property
    def usual_length(self) -> int:
        lengths = sorted(len(text) for text in self.texts)
        return lengths[len(lengths) // 2] if lengths else 0

    def rank(self, names: Sequence[str]) -> int | None:
        """The place in `names` of the first one that is a word of the key."""
        return next((place for place, name in enumerate(names) if name in self.words), None)


def look_like_ids(texts: Sequence[str]) -> bool:
    return bool(texts) and 2 * sum(ID.fullmatch(text.strip()) is not None for text in texts) > len(texts)


def columns_of(rows: Sequence[Any]) -> list[Column]:
    """The columns that at least half of the rows have, in order; of a wide table the first."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in row.items() if isinstance(row, dict) else ():
            values.setdefault(str(key), []).append(value)
            for inner, part in value.items() if isinstance(value, dict) else ():
                values.setdefault(f"{key}.{inner}", []).append(part)
    present = {path: [value for value in found if value is not None] for path, found in values.items()}
    common = (Column(path, found) for path, found in present.items() if found and len(found) >= SHARE_OF_ROWS * len(rows))
    return list(islice(common, MOST_COLUMNS))
