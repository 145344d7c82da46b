"""An adapter to train further: the run's own, or one from elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ConfigError, ModelError, StageError
from llmft_cli.base.file_checks import DamagedFile, read_json, read_safetensors_header
from llmft_cli.base.files import hash_path, replacing_directory
from llmft_cli.models.adapters import WEIGHTS_FILE
from llmft_cli.models.fingerprint import is_recorded
from llmft_cli.models.model_files import ADAPTER_CONFIG_FILE
from llmft_cli.models.model_source import ModelSource
from llmft_cli.run_dir.checkpoints import Identity
from llmft_cli.run_dir.ledger import PREVIOUS
from llmft_cli.run_dir.run import RunDir
from llmft_cli.run_dir.stages import StageRecord, write_entry
from llmft_cli.settings import config as settings
from llmft_cli.settings.config import Config
from llmft_cli.training.resume import new_identity

if TYPE_CHECKING:
    from peft import PeftModel

RESTORE = "restore it, or give another adapter"
LONGEST_QUOTE = 60
# PEFT's names of the settings that an adapter's weights depend on.
PEFT_NAMES = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "target_modules": "target_modules",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
# What PEFT can do with an adapter and llmft does not train.
UNSUPPORTED = ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "target_parameters", "lora_bias")


@dataclass(frozen=True)
class StartingAdapter:
    """An adapter whose training goes on.

    Attributes:
        folder: its PEFT directory.
        settings: those that its weights depend on, by llmft's names.
        sha256: of the directory.
        base_name: its base model.
        base_fingerprint: the same by content; None if the adapter is not from an llmft run.
        of_this_run: whether it is the adapter of the run that is trained.
    """

    folder: Path
    settings: dict[str, Any]
    sha256: str
    base_name: str
    base_fingerprint: str | None
    of_this_run: bool = False


def starting_adapter(run: RunDir, own: bool, path: Path | None) -> StartingAdapter | None:
    """The run's own adapter, the one at `path`, or None for neither; raises as `own_adapter` and `adapter_at`."""
    if own:
        return own_adapter(run)
    return adapter_at(path) if path else None


def own_adapter(run: RunDir) -> StartingAdapter:
    """The adapter of a finished training, for `train --continue`; if that stopped before its first checkpoint, the same again.

    Raises:
        StageError: the run is not trained, or its adapter has changed since.
    """
    entry = run.entry("train")
    set_aside = run.adapter_to_continue(entry) if entry else None
    if entry is None or set_aside is None:
        return adapter_of_run(run, of_this_run=True)
    number = Path(set_aside).parent.name
    return adapter_in(run, set_aside, run.entries()[f"train/{number}"], of_this_run=True)


def adapter_at(path: Path) -> StartingAdapter:
    """The adapter of a run, or in a PEFT directory, for `train --from-adapter`.

    Raises:
        StageError: the run is not trained, or its adapter has changed since.
        ModelError: there is no adapter, or none that llmft can train.
    """
    if RunDir(path).exists():
        return adapter_of_run(RunDir(path))
    if path.name == "adapter" and RunDir(path.parent).exists():
        return adapter_of_run(RunDir(path.parent))
    return read_adapter(path)


def adapter_of_run(run: RunDir, of_this_run: bool = False) -> StartingAdapter:
    entry = run.entry("train")
    if entry is None or entry["status"] != "done":
        run.require("train")  # explains what is missing
    assert entry is not None
    return adapter_in(run, "adapter", entry, of_this_run)


def adapter_in(run: RunDir, place: str, entry: Mapping[str, Any], of_this_run: bool) -> StartingAdapter:
    """The adapter at a path in a run; `entry` is that of its training."""
    if lost := run.lost_output({"outputs": {name: sha256 for name, sha256 in entry["outputs"].items() if name == place}}):
        again = f"recreate it: {run.command_for('train')} --overwrite"
        raise StageError(f"{run.path / lost} is missing or has changed since it was trained", again)
    found = read_adapter(run.path / place)
    own = {name: entry["config"][name] for name in PEFT_NAMES if name in entry["config"]}
    model = entry["model"]
    return StartingAdapter(found.folder, own, found.sha256, model["name"], model["fingerprint"], of_this_run)


def read_adapter(folder: Path) -> StartingAdapter:
    """A PEFT directory, and the settings in its `adapter_config.json`.

    Raises:
        ModelError: there is no adapter, or none that llmft can train.
    """
    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        raise ModelError(f"{folder} has no adapter (no {ADAPTER_CONFIG_FILE})", "give a run, or a PEFT directory")
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(f"{folder} has no {WEIGHTS_FILE}", "save the adapter as safetensors, with PEFT's save_pretrained")
    try:
        content = read_json(folder / ADAPTER_CONFIG_FILE)
        read_safetensors_header(folder / WEIGHTS_FILE)
    except DamagedFile as error:
        raise ModelError(f"the adapter {folder} cannot be loaded: {error}", error.cure or RESTORE) from error
    kind = content.get("peft_type")
    unsupported = [name for name in UNSUPPORTED if content.get(name)]
    if kind != "LORA" or unsupported or content.get("bias", "none") != "none":
        what = ", ".join(unsupported) or (f"type {kind}" if kind != "LORA" else "trained biases")
        raise ModelError(f"the adapter {folder} has {what}, which llmft does not train", "give a plain LoRA adapter")
    own = {name: content[peft_name] for name, peft_name in PEFT_NAMES.items() if peft_name in content}
    if isinstance(own.get("target_modules"), list):
        own["target_modules"] = ",".join(sorted(map(str, own["target_modules"])))
    for name, value in own.items():
        if not settings.is_valid(name, value):
            raise ModelError(f"{folder / ADAPTER_CONFIG_FILE} is damaged: {PEFT_NAMES[name]} is {value!r}", RESTORE)
    return StartingAdapter(folder, own, hash_path(folder), str(content.get("base_model_name_or_path")), None)


def check_fits(start: StartingAdapter, config: Config, source: ModelSource) -> None:
    """Check that the settings and the base model are those of the adapter.

    Raises:
        ConfigError: a setting that its weights depend on differs.
        ModelError: it belongs to another base model.
    """
    recorded = start.base_fingerprint
    same = is_recorded(recorded, source.fingerprint, source.path) if recorded else start.base_name == source.name
    if not same:
        name = source.name if source.name != start.base_name else f"another model named {source.name}"
        raise ModelError(
            f"the adapter {start.folder} was trained on {start.base_name}, but this run uses {name}",
            f"prepare a run with --model {start.base_name}",
        )
    for name, value in start.settings.items():
        if getattr(config, name) != value:
            flag, own = settings.flag_of(name), shorten(str(value).replace(",", ", "), LONGEST_QUOTE)
            raise ConfigError(
                f"{flag} is {getattr(config, name)}, but the adapter {start.folder} has {own}",
                f"omit {flag}, or train a new adapter without --continue and --from-adapter",
            )


def new_training(start: StartingAdapter | None, config: Config, inputs: Mapping[str, str], source: ModelSource) -> Identity:
    """The identity of a new training.

    Raises:
        ConfigError, ModelError: the adapter to start from does not fit.
    """
    if start is None:
        return new_identity(config, inputs, source)
    check_fits(start, config, source)
    return new_identity(config, {**inputs, "adapter": start.sha256}, source)


def load_into(model: PeftModel, start: StartingAdapter) -> None:
    """Replace a new adapter's weights by those to start from.

    Raises:
        ModelError: their names or shapes differ from the model's.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    file = start.folder / WEIGHTS_FILE
    weights = load_file(file)
    expected = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if differing := sorted(set(expected.items()) ^ set(found.items())):
        name, _ = differing[0]
        raise ModelError(
            f"{file} does not fit the model: {name} is {found.get(name)} there, and {expected.get(name)} in the model",
            f"give an adapter of {start.base_name} with the same --target-modules and --lora-r",
        )
    set_peft_model_state_dict(model, weights)


def recorded_input(start: StartingAdapter, record: StageRecord) -> dict[str, str]:
    """What the ledger records of an adapter to start from: sha256 by path. The run's own is set aside, unless it has been."""
    if not start.of_this_run:
        return {str(start.folder.resolve()): start.sha256}
    if start.folder == record.run.adapter:
        return set_aside(record.run, record.entry[PREVIOUS])
    return {start.folder.relative_to(record.run.path).as_posix(): start.sha256}


def set_aside(run: RunDir, previous: Mapping[str, Any]) -> dict[str, str]:
    """Keep what a continued training replaces: a copy in `earlier/N` and a ledger entry `train/N`.

    Returns: sha256 of the copied adapter by its path in the run.
    """
    entries = {name: entry for name, entry in run.entries(locked_here=True).items() if name.startswith("train/")}
    # A training that was killed right after this has written the entry already.
    written = [name for name, entry in entries.items() if {**entry, "outputs": previous["outputs"]} == previous]
    number = written[0].removeprefix("train/") if written else str(1 + len(entries))
    place = f"earlier/{number}"
    with replacing_directory(run.path / place) as folder:
        shutil.copytree(run.adapter, folder / "adapter")
        for file in (run.metrics, run.loss_chart):
            if file.exists():
                shutil.copy(file, folder)
    moved = {f"{place}/{name}": sha256 for name, sha256 in previous["outputs"].items()}
    write_entry(run, f"train/{number}", {**previous, "outputs": moved})
    return {f"{place}/adapter": previous["outputs"]["adapter"]}
