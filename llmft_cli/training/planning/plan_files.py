"""Plans from files, and the checks of plan and optimizer that need no model."""

from __future__ import annotations

import difflib
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from llmft_cli.base.errors import ConfigError, first_line
from llmft_cli.recipe.settle import counts_rows, with_counts
from llmft_cli.settings.config import FIELDS, Config
from llmft_cli.settings.quantities import format_count
from llmft_cli.settings.values import switch
from llmft_cli.settings.yaml_files import Value, read_mapping
from llmft_cli.training.plan import PLAN_KINDS, Plan

NEEDED = [field.name for field in fields(Plan) if field.default is MISSING]
SWITCHES = [field.name for field in fields(Plan) if field.default is False]
LARGEST = 10**9
AS_GIVEN = "given"


def check_choices(config: Config) -> None:
    """Check the optimizer and the plan file by themselves, which needs no model.

    Raises:
        ConfigError: transformers has no such optimizer, or cannot create it here; `--plan` is neither a kind of plan nor a
            plan file, or its steps have another size than those of the settings.
    """
    check_optimizer(config.optim, "--optim")
    is_kind = config.plan in (*PLAN_KINDS, AS_GIVEN)
    if not is_kind and not Path(config.plan).is_fifo():  # a pipe can be read only once
        plan = read_plan(Path(config.plan))
        if config.tokens_per_batch is None and not counts_rows(config):
            check_effective_batch(plan, with_counts(config))


def plan_in_file(config: Config, resumed: bool) -> Plan:
    """The plan in the file that `--plan` names.

    Raises:
        ConfigError: the file cannot be read or is not a plan; its batch size differs from what `--tokens-per-batch` allows;
            its steps have another size than those of the settings; or its optimizer differs from that of the training to
            resume.
    """
    plan = read_plan(Path(config.plan))
    if resumed and plan.optim != config.optim:
        raise ConfigError(
            f"optim in {config.plan} is {plan.optim}, but the training to resume has state of {config.optim}",
            f"set optim to {config.optim} there, or omit --plan",
        )
    if config.tokens_per_batch is not None and plan.batch_size != config.batch_size:
        raise ConfigError(
            f"batch_size in {config.plan} is {plan.batch_size}, but --tokens-per-batch {config.tokens_per_batch} holds "
            f"{config.batch_size} of the longest sequences",
            f"set batch_size to {config.batch_size} there, or omit --tokens-per-batch",
        )
    check_effective_batch(plan, config)
    return plan


def read_plan(path: Path) -> Plan:
    """A plan from a YAML file, with the fields of a plan in `llmft gpu-check --json`.

    Raises:
        ConfigError: it cannot be read, or is not a plan.
    """
    try:
        pairs = read_mapping(path, "plan")
    except ConfigError as error:
        raise ConfigError(
            error.message, error.hint or f"--plan takes {', '.join(PLAN_KINDS[:-1])}, {PLAN_KINDS[-1]} or a file"
        ) from None
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ConfigError(f"{path} is not a plan: it has a key twice")
    if set(content) - set(SWITCHES) != set(NEEDED):
        raise ConfigError(
            f"{path} is not a plan: it must have {', '.join(NEEDED)}, may have {', '.join(SWITCHES)}, and no other keys"
        )
    plan = Plan(**{name: plan_value(name, value, f"{name} in {path}") for name, value in content.items()})
    check_optimizer(plan.optim, f"optim in {path}")
    return plan


def plan_value(name: str, value: Value, origin: str) -> Any:
    """The value of a plan's field.

    Raises:
        ConfigError: it is not of the field's type.
    """
    if name == "optim":
        return value if isinstance(value, str) else str(value)
    if name in SWITCHES:
        try:
            return switch(value)
        except ValueError:
            raise ConfigError(f"{origin}: {value!r} is not true or false") from None
    least = 0 if name == "checkpointed_layers" else 1
    if not isinstance(value, str) or not re.fullmatch("[0-9]{1,10}", value) or not least <= int(value) <= LARGEST:
        raise ConfigError(f"{origin}: {value!r} is not a whole number of {least} or more")
    return int(value)


def check_effective_batch(plan: Plan, config: Config) -> None:
    """Check that a step of the plan has as many sequences as the settings ask for: they shape the result, a plan does not.

    Raises:
        ConfigError: it has more or fewer.
    """
    planned = plan.batch_size * plan.gradient_accumulation_steps
    asked = config.batch_size * config.gradient_accumulation_steps
    if planned != asked and counts_rows(config):
        raise ConfigError(
            f"{config.plan} has {format_count(planned, 'row')} per step ({plan.batch_size} x "
            f"{plan.gradient_accumulation_steps}), but the settings have {asked}",
            f"change batch_size and gradient_accumulation_steps there, or add --rows-per-step {planned}",
        )
    if planned != asked:
        passes, rows = f"--gradient-accumulation-steps {plan.gradient_accumulation_steps}", f"--batch-size {plan.batch_size} "
        raise ConfigError(
            f"{config.plan} has {format_count(planned, 'sequence')} per step "
            f"({plan.batch_size} x {plan.gradient_accumulation_steps}), but the settings have {asked} "
            f"({config.batch_size} x {config.gradient_accumulation_steps})",
            "change batch_size and gradient_accumulation_steps there, or add "
            f"{rows if config.tokens_per_batch is None else ''}{passes}",
        )


def check_optimizer(name: str, origin: str) -> None:
    """Check that transformers has an optimizer and can create it here.

    Args:
        origin: the flag or the key of a file that names it, for messages.

    Raises:
        ConfigError: it does not, or a package is missing.
    """
    if name in FIELDS["optim"].setting.suggestions:  # always there, and transformers takes seconds to import
        return
    from transformers.training_args import OptimizerNames

    known = [item.value for item in OptimizerNames]
    if name not in known:
        near = [item for item in known if item.startswith(name)] or difflib.get_close_matches(name[:60], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"for example adamw_torch_fused; all: {', '.join(known)}"
        raise ConfigError(f"{origin}: {name!r} is not the name of an optimizer in transformers", hint)
    from transformers import Trainer, TrainingArguments

    try:
        Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(output_dir="unused", optim=name, report_to=[]))
    except Exception as error:  # each optimizer has its own kinds
        raise ConfigError(
            f"{origin}: {name} cannot be used here: {first_line(error)}", "use another one, such as adamw_torch_fused"
        ) from error
