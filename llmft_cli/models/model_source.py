"""Finds base models: on the Hub, in a local directory, in a GGUF file, or the built-in one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmft_cli.base.errors import ModelError, StageError, first_line
from llmft_cli.base.network import hub_is_reachable
from llmft_cli.base.reporter import Reporter
from llmft_cli.models import builtin
from llmft_cli.models.fingerprint import description, fingerprint, is_recorded
from llmft_cli.models.model_files import check_format, check_model
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings.config import Config

TOKENIZER_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
WEIGHT_FILES = ["*.safetensors"]
BUILTIN_HINT = f"or use the built-in model (prepare, train, gpu-check: --model {builtin.NAME})"


@dataclass(frozen=True)
class ModelSource:
    """A base model that is on this machine.

    Attributes:
        name: as the user gave it; also the base's name in an adapter.
        path: its directory.
        revision: commit of a Hub model, or None.
        fingerprint: as in `fingerprint.py`, to detect another model under the same name; empty if weights are not needed.
        trust_remote_code: whether code of the model's repository may run.
    """

    name: str
    path: Path
    revision: str | None
    fingerprint: str
    trust_remote_code: bool = False

    def facts(self) -> dict[str, Any]:
        """What the ledger records."""
        return {key: value for key, value in asdict(self).items() if key != "path"}


def resolve(
    name: str, reporter: Reporter, *, weights: bool = True, revision: str | None = None, trust_remote_code: bool = False
) -> ModelSource:
    """Find a base model, and download what is missing.

    Args:
        name: Hub id, local directory, `.gguf` file, or `smollm2-135m`.
        weights: whether the weights are needed, or only config and tokenizer.

    Raises:
        ModelError: it does not exist, is gated, has missing or damaged files, or the Hub cannot be reached.
    """
    local = Path(name).expanduser()
    if name == builtin.NAME:
        path = builtin.builtin_directory(reporter)
    elif local.is_file() and local.suffix == ".gguf":
        path = builtin.gguf_directory(local, reporter)
    elif local.is_dir():
        path = local
    elif local.suffix == ".gguf" or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ModelError(f"there is no model at {name}", f"give a Hub id or a local directory, {BUILTIN_HINT}")
    else:
        path = hub_directory(name, revision, weights, trust_remote_code, reporter)
        revision = path.name
    check_model(name, path, weights)
    if not weights and local.is_dir():  # of a Hub model, more than its weights may be missing here
        check_format(name, [file.name for file in path.iterdir()], weights)
    return ModelSource(name, path, revision, fingerprint(name, path) if weights else "", trust_remote_code)


def base_model(run: RunDir, recorded: Mapping[str, Any] | None, config: Config, reporter: Reporter) -> ModelSource:
    """The model that the settings name, or the one that an interrupted training run has recorded."""
    if recorded:
        return resolve_recorded(recorded, reporter)
    return resolve_prepared(run, config, reporter)


def resolve_recorded(facts: Mapping[str, Any], reporter: Reporter) -> ModelSource:
    """The same base model that a ledger entry recorded.

    Raises:
        ModelError: as `resolve`, or the model under that name is now another one.
    """
    source = resolve(facts["name"], reporter, revision=facts["revision"], trust_remote_code=facts["trust_remote_code"])
    if not is_recorded(facts["fingerprint"], source.fingerprint, source.path):
        raise ModelError(
            f"the base model {facts['name']} is not the one this run was trained on (its files differ)",
            "restore the original, or train again with --overwrite",
        )
    return source


def resolve_prepared(run: RunDir, config: Config, reporter: Reporter) -> ModelSource:
    """The base model that the run's data was prepared for, with its weights.

    Raises:
        ModelError: as `resolve`.
        StageError: the model's config or tokenizer has changed since.
    """
    prepared = run.ledger()["stages"]["prepare"]
    revision = prepared["model"]["revision"]
    source = resolve(config.model, reporter, revision=revision, trust_remote_code=config.trust_remote_code)
    now = description(source.path)
    before = prepared.get("model_files", now)  # not in ledgers of the first version
    changed = [file for file in sorted(before | now) if before.get(file) != now.get(file)]
    if changed:
        raise StageError(
            f"{run.path} was prepared for another model {source.name}: {', '.join(changed)} changed since",
            f"restore the model's files, or prepare again: {run.command_for('prepare')} --overwrite",
        )
    return source


def hub_directory(name: str, revision: str | None, weights: bool, code: bool, reporter: Reporter) -> Path:
    """The local snapshot of a Hub model, downloaded if need be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = TOKENIZER_FILES + (WEIGHT_FILES if weights else []) + (["*.py"] if code else [])
    offline = not hub_is_reachable()
    if not offline:
        reporter.note(f"fetching {name} from the Hub" + ("" if weights else " (tokenizer and config)"))
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=offline))
    except GatedRepoError as error:
        hint = f"accept its licence at https://huggingface.co/{name} and run `hf auth login`, {BUILTIN_HINT}"
        raise ModelError(f"the model {name} is gated and this account has no access", hint) from error
    except RepositoryNotFoundError as error:
        hint = f"check the name, or run `hf auth login` if it is private, {BUILTIN_HINT}"
        raise ModelError(f"the Hub has no model {name}", hint) from error
    except LocalEntryNotFoundError as error:
        hint = f"connect to the Hub, give a local directory, {BUILTIN_HINT}"
        raise ModelError(f"the model {name} is not on this machine and the Hub cannot be reached", hint) from error
    except HfHubHTTPError as error:
        raise ModelError(f"the Hub refused {name}: {first_line(error)}") from error
    if not (offline or weights):
        check_format(name, files_on_hub(name, path.name), weights)
    return path


def files_on_hub(name: str, commit: str) -> list[str]:
    """The files of a Hub model, also those that were not downloaded; empty if the Hub does not say."""
    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(name, revision=commit)
    except Exception:  # whatever the network fails with; it is asked only to tell earlier what `train` would tell
        return []
