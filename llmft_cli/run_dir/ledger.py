"""The content of a run's ledger, `run.json`: the schema version, and an entry per stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmft_cli.base.errors import StageError

SCHEMA_VERSION = 1
# In the entry of a running stage: the entry that it replaces, as long as nothing of it is lost.
PREVIOUS = "previous"
CREATE_ONE = "create one with: llmft prepare DATA --run RUN"
RESTORE = "restore it from a backup, or create a new run"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_ledger() -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, "created": now(), "stages": {}}


def read_ledger(file: Path) -> dict[str, Any]:
    """The content of a ledger.

    Raises:
        StageError: there is no run here, its ledger is damaged, or a newer llmft wrote it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StageError(f"{file.parent} is not a run (it has no run.json)", CREATE_ONE) from None
    except (ValueError, OSError) as error:
        raise StageError(f"{file} cannot be read: {error}", RESTORE) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int) or not isinstance(content.get("stages"), dict):
        raise StageError(f"{file} is not an llmft ledger", RESTORE)
    if version > SCHEMA_VERSION:
        raise StageError(f"{file} was written by a newer llmft (schema {version})", "upgrade llmft")
    return content


def entries_before(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that running stages replace and have not lost yet, by name."""
    running = {name: entry for name, entry in entries.items() if entry["status"] == "running"}
    return {name: entry[PREVIOUS] for name, entry in running.items() if PREVIOUS in entry}


def settings_of(entries: Mapping[str, Any], *stages: str) -> dict[str, Any]:
    """The settings of these stages, by name; later stages take precedence."""
    used = [entries.get(stage, {}) for stage in stages]
    return {name: value for entry in used for name, value in entry.get("config", {}).items()}
