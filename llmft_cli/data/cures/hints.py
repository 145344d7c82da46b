"""The hint of an error about refused rows: the options that were found to read them, or what a row needs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ModelError
from llmft_cli.data.cures.candidates import Candidate
from llmft_cli.data.cures.keys import columns_of
from llmft_cli.data.cures.search import NEARLY_ALL, Search
from llmft_cli.data.cures.trials import encoder_for
from llmft_cli.data.encoding.template_files import PLAIN
from llmft_cli.data.forms.preferences import comparison_in
from llmft_cli.settings.config import FIELDS, Config, flag_of

if TYPE_CHECKING:
    from llmft_cli.data.encoding.encoder import ConversationEncoder
    from llmft_cli.data.ingested import IngestedRows

TURNS = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]
FEWEST_CURED = 0.5
# What settings do whose names do not say it.
GOALS = {
    "chat_template": "to use plain text turns instead of the model's template",
    "on_unrendered": "to keep the rows without the part that is left out",
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "messages": {"messages": TURNS},
    "prompt-completion": {"prompt": "...", "completion": "..."},
    "text": {"text": "..."},
}


def hint_for_refused(ingested: IngestedRows, encoder: ConversationEncoder, config: Config, positions: int | None) -> str:
    """What to do about rows that cannot be used, some or all of them.

    Args:
        positions: the longest row that the model was made for, if that is known.
    """
    if not len(ingested.spool):
        cures = cures_of(Search(ingested.samples, encoder, config, positions))
        return ", or ".join(shown(cure, config) for cure in cures).replace(", or add ", ", or ") or needed(ingested)
    # As many rows as --max-rejected allows may stay unusable.
    enough = 1 - config.max_rejected * ingested.read / ingested.bad
    cures = cures_of(Search(ingested.samples, encoder, config, positions, usable=min(NEARLY_ALL, max(FEWEST_CURED, enough))))
    percent, others = -(-100 * ingested.bad // ingested.read), ingested.read - ingested.bad
    first = shown(cures[0], config) if cures else "fix the rows"
    return f"{first}, or set --max-rejected {percent}% to use the other {others:,}"


def cures_of(search: Search) -> list[Candidate]:
    """The settings to suggest; with plain text turns if they need a chat template and the model has none."""
    if search.encoder.tokenizer.chat_template:
        with suppress(ModelError):  # it is not valid
            return search.cures()
        return []
    config = replace(search.config, chat_template=PLAIN)
    plain = replace(search, config=config, encoder=encoder_for(search.encoder, search.config, config))
    return [with_template(cure, search) for cure in plain.cures()]


def with_template(cure: Candidate, search: Search) -> Candidate:
    try:
        search.trial(cure.changes)
    except ModelError:  # it has no template
        return replace(cure, changes={**cure.changes, "chat_template": PLAIN})
    return cure


def shown(cure: Candidate, config: Config) -> str:
    """A cure as options to paste, in place of those that were given."""
    given = {name: getattr(config, name) for name in cure.changes if getattr(config, name) != FIELDS[name].default}
    replaced = f" instead of {as_options(given)}" if given else ""
    goal = cure.goal or (GOALS.get(next(iter(cure.changes)), "") if len(cure.changes) == 1 else "")
    return f"{f'{goal}, ' if goal else ''}{'use' if given else 'add'} {as_options(cure.changes)}{replaced}"


def as_options(settings: Mapping[str, Any]) -> str:
    words: list[str] = []
    for name, value in settings.items():
        words += [flag_of(name)] if value is True else [flag_of(name), str(value)]
    return shlex.join(words)


def needed(ingested: IngestedRows) -> str:
    """What a row needs, by the format that is nearest to the rows."""
    if not ingested.read:
        return f"give a source with rows such as {json.dumps(EXAMPLES['messages'])}"
    form = nearest_form([row.value for row in ingested.samples.unusable])
    return f"fix the rows; a usable one looks like {json.dumps(EXAMPLES[form])}"


def nearest_form(rows: Sequence[Any]) -> str:
    columns = columns_of(rows)
    texts = [column for column in columns if column.is_text]
    if any(comparison_in(row) for row in rows[:1] if isinstance(row, dict)):
        return "prompt-completion"
    if not texts or any(column.has_turns for column in columns):
        return "messages"
    return "prompt-completion" if len(texts) > 1 else "text"
