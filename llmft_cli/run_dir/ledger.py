"""The content of a run's ledger, `run.json`: the schema version, and an entry per stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any

from llmft_cli.base.errors import StageError, from_os_error
from llmft_cli.settings.config import is_valid

SCHEMA_VERSION = 1
CREATE_ONE = "create one with: llmft prepare DATA --run RUN"
RESTORE = "restore it from a backup, or create a new run"

# In the entry of a running stage: the entry that it replaces, as long as nothing of it is lost.
PREVIOUS = "previous"
STATUSES = ("running", "done", "failed", "interrupted")
# What every entry has; then what its parts have, where it has them.
ENTRY: dict[str, type | UnionType] = {"status": str, "config": dict, "inputs": dict}
PARTS: dict[str, dict[str, type | UnionType]] = {
    "outputs": {},
    "model": {"name": str, "revision": str | None},
    "model_files": {},
    "plan": {},
    "training": {"id": str},
    "trackers": {},
    "search": {"recipes": int, "metric": str},
    PREVIOUS: ENTRY,
}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_ledger() -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, "created": now(), "stages": {}}


def read_ledger(file: Path) -> dict[str, Any]:
    """The content of a ledger.

    Raises:
        StageError: there is no run here, its ledger is damaged, or a newer llmft wrote it.
        MachineError: it must not be read.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StageError(f"{file.parent} is not a run (it has no run.json)", CREATE_ONE) from None
    except OSError as error:
        raise from_os_error(error) or StageError(f"{file} cannot be read: {error}", RESTORE) from error
    except (ValueError, RecursionError) as error:
        raise StageError(f"{file} cannot be read: {error}", RESTORE) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int) or not isinstance(content.get("stages"), dict):
        raise StageError(f"{file} is not an llmft ledger", RESTORE)
    if version > SCHEMA_VERSION:
        raise StageError(f"{file} was written by a newer llmft (schema {version})", "upgrade llmft")
    if not isinstance(content.get("updated", ""), str):
        raise StageError(f"{file} is damaged: `updated` is not a time", RESTORE)
    for stage, entry in content["stages"].items():
        if fault := fault_of(entry):
            raise StageError(f"{file} is damaged: in the entry of {stage}, {fault}", RESTORE)
    return content


def entries_before(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that running stages replace and have not lost yet, by name."""
    running = {name: entry for name, entry in entries.items() if entry["status"] == "running"}
    return {name: entry[PREVIOUS] for name, entry in running.items() if PREVIOUS in entry}


def fault_of(entry: Any) -> str:
    """What is wrong with an entry of a ledger, in what other commands read; empty if nothing."""
    shape = ENTRY | ({"outputs": dict} if isinstance(entry, dict) and entry.get("status") == "done" else {})
    if fault := fault_of_shape(entry, shape):
        return fault
    if entry["status"] not in STATUSES:
        return f"`status` is {entry['status']!r}"
    for part, keys in PARTS.items():
        if part in entry and (fault := fault_of_shape(entry[part], keys)):
            return f"in `{part}`, {fault}"
    for part in ("inputs", "outputs"):
        if not all(isinstance(sha256, str) for sha256 in entry.get(part, {}).values()):
            return f"`{part}` must hold hashes"
    wrong = [f"{name} is {value!r}" for name, value in entry["config"].items() if not is_valid(name, value)]
    return f"in `config`, {wrong[0]}" if wrong else ""


def fault_of_shape(value: Any, keys: Mapping[str, type | UnionType]) -> str:
    """What a JSON object lacks, or has of the wrong type."""
    if not isinstance(value, dict):
        return f"{value!r} is not an object"
    wrong = [key for key, kind in keys.items() if not isinstance(value.get(key), kind)]
    return f"`{wrong[0]}` is missing or of the wrong type" if wrong else ""


def settings_of(entries: Mapping[str, Any], *stages: str) -> dict[str, Any]:
    """The settings of these stages, by name; later stages take precedence."""
    used = [entries.get(stage, {}) for stage in stages]
    return {name: value for entry in used for name, value in entry.get("config", {}).items()}
