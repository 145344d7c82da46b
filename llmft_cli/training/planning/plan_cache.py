"""Predicted plans, remembered on disk: the same question, asked again, is answered in milliseconds.

A question is everything that the answer depends on: the model's config, the settings, the batches, the memory, the
libraries' versions and our own sources. An answer is plain JSON with its checksum; one that is damaged is ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.files import write_atomically
from llmft_cli.base.libraries import versions
from llmft_cli.models.builtin import cache_dir
from llmft_cli.settings.config import Config
from llmft_cli.training.plan import Plan
from llmft_cli.training.planning.memory import Breakdown
from llmft_cli.training.planning.options import Option, sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from llmft_cli.settings.compute_types import Abilities
    from llmft_cli.training.planning.simulation import BatchShape

FOLDER = "plans"
MOST_FILES = 64
PACKAGE = Path(__file__).parents[2]
# Settings that say nothing of what a step computes or holds. All others are part of a question, also those to come.
WITHOUT_EFFECT = {"learning_rate", "lr_scheduler", "warmup_ratio", "num_epochs", "max_steps", "seed", "eval_steps"}
WITHOUT_EFFECT |= {"report_to", "wandb_project", "early_stopping_patience", "save_total_limit", "logging_steps"}


def question(
    shape: PreTrainedConfig,
    config: Config,
    batch_of: Callable[[int], BatchShape],
    available_bytes: int | None,
    able: Abilities | None,
) -> str:
    """sha256 of what predicted plans depend on.

    Args:
        shape, config, batch_of, available_bytes, able: as in `decide.predicted_options`.
    """
    fixed = config.tokens_per_batch is not None
    asked = [config.batch_size] if fixed else sizes(config.batch_size * config.gradient_accumulation_steps)
    settings = {name: value for name, value in asdict(config).items() if name not in WITHOUT_EFFECT}
    parts: dict[str, Any] = {
        "model": shape.to_dict(),
        "settings": settings,
        "batches": [asdict(batch_of(size)) for size in asked],
        "available": available_bytes,
        "abilities": able and asdict(able),
        "versions": versions(),
        "sources": sources(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def sources() -> str:
    """sha256 of all our modules: what a step does is spread over many of them."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def remembered(asked: str, predict: Callable[[], list[Option]]) -> list[Option]:
    """The plans that were predicted for a question before, else those predicted now."""
    file = cache_dir() / FOLDER / f"{asked}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # absent or damaged
        return read(file)
    found = predict()
    with suppress(OSError):  # a full disk or a folder that cannot be written only costs time
        file.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps([asdict(option) for option in found])
        write_atomically(file, json.dumps({"sha256": checksum(content), "options": content}))
        newest_first = sorted(file.parent.glob("*.json"), key=lambda one: one.stat().st_mtime, reverse=True)
        for surplus in newest_first[MOST_FILES:]:
            surplus.unlink()
    return found


def read(file: Path) -> list[Option]:
    """The plans in a file.

    Raises:
        OSError, ValueError, KeyError, TypeError: there is no such file, or it is damaged.
    """
    answer = json.loads(file.read_text(encoding="utf-8"))
    if checksum(answer["options"]) != answer["sha256"]:
        raise ValueError(f"{file} is damaged")
    return [option_from(values) for values in json.loads(answer["options"])]


def option_from(values: Mapping[str, Any]) -> Option:
    parts = {"plan": Plan(**values["plan"]), "breakdown": Breakdown(**values["breakdown"])}
    return Option(**{**values, **parts})


def checksum(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
