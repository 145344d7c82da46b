"""Searches for the settings that make refused rows usable."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmft_cli.data.cures.candidates import Candidate, candidates
from llmft_cli.data.cures.sampled import SampledRows
from llmft_cli.data.cures.trials import TOO_LONG, Trial, attempt, encoder_for, makes_sense
from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.encoding.template_files import PLAIN
from llmft_cli.data.reading.rows import Row
from llmft_cli.settings.config import FIELDS, Config

MOST_CURES, MOST_FURTHER = 2, 2
NEARLY_ALL = 0.9
LENGTH_STEP = 256
# Reasons that another format or other columns may help against. Others are about what a row means.
ABOUT_FORMATS = re.compile(
    "no known format|preference pair|is missing|not text|must be|not an object|is empty|unknown (role|speaker)"
    "|no assistant turn|last message is from|not valid JSON"
)
ABOUT_LENGTH = re.compile(f"^{TOO_LONG}$")
# Settings that may help beside a format and columns, with the reasons that they help against.
FURTHER: tuple[tuple[str, Any, re.Pattern[str]], ...] = (
    (
        "merge_turns",
        True,
        re.compile(r"message \d+ is from (user|assistant|tool)|; expected |would join messages of the same role"),
    ),
    ("on_unrendered", "keep", re.compile("the chat template (leaves out|ignores)")),
    ("chat_template", PLAIN, re.compile(r"the chat template|the text rendered")),
)


@dataclass(frozen=True)
class Search:
    """What cures are tried on.

    Attributes:
        positions: the longest row that the model was made for; None if that is not known.
        usable: the share of the unusable rows that a cure must make usable.
    """

    rows: SampledRows
    encoder: ConversationEncoder
    config: Config
    positions: int | None = None
    usable: float = NEARLY_ALL

    def cures(self) -> list[Candidate]:
        """The best settings that make nearly all rows usable, at most two; one if it is certain."""
        found: list[Candidate] = []
        for candidate in self.working():
            found.append(candidate)
            if candidate.certain or len(found) == MOST_CURES:
                break
        return found

    def working(self) -> Iterator[Candidate]:
        """All candidates that work, most likely first."""
        if not self.rows.unusable:
            return
        others: Iterable[Candidate] = ()
        if self.trial({}).share_of(ABOUT_FORMATS) > 0.5:
            others = candidates([row.value for row in self.rows.unusable], self.config)
        for candidate in (Candidate(), *others):
            if works := self.mended(candidate):
                yield works

    def mended(self, candidate: Candidate) -> Candidate | None:
        """A candidate that works, with further settings where formats and columns alone do not do; None if nothing does."""
        trial = self.trial(candidate.changes)
        for _ in range(MOST_FURTHER + 1):
            if self.works(trial, candidate):
                return candidate
            better = None
            for changes in self.further_changes(candidate.changes, trial):
                changed = replace(candidate, changes={**candidate.changes, **changes})
                following = self.trial(changed.changes)
                if following.usable >= self.usable or following.progress > trial.progress:
                    better = changed, following
                    break
            if better is None:
                return None
            candidate, trial = better
        return None

    def further_changes(self, changes: Mapping[str, Any], trial: Trial) -> Iterator[dict[str, Any]]:
        """The settings that may help against most of the reasons."""
        if trial.share_of(ABOUT_LENGTH) > 0.5:
            length = -(-trial.longest // LENGTH_STEP) * LENGTH_STEP
            if self.positions is None or length <= self.positions:
                yield {"max_seq_length": length}
            yield {"on_overlength": "split"}
        for name, value, helps in FURTHER:
            if name in FIELDS and name not in changes and trial.share_of(helps) > 0.5:
                yield {name: value}

    def trial(self, changes: Mapping[str, Any]) -> Trial:
        return self.attempt(self.rows.unusable, changes)

    def attempt(self, rows: Sequence[Row], changes: Mapping[str, Any]) -> Trial:
        config = replace(self.config, **changes)
        return attempt(rows, encoder_for(self.encoder, self.config, config), config)

    def works(self, trial: Trial, candidate: Candidate) -> bool:
        """Whether enough rows become usable, and those stay so that are."""
        return (
            bool(candidate.changes)
            and trial.usable >= self.usable
            and makes_sense(trial.examples, candidate)
            and self.attempt(self.rows.usable, candidate.changes).usable >= NEARLY_ALL
        )
