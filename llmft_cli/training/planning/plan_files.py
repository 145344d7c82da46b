"""Reading plans from files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from llmft_cli.base.errors import ConfigError
from llmft_cli.training.plan import Plan
from llmft_cli.training.planning.options import PLAN_KINDS


def read_plan(path: Path) -> Plan:
    """A plan from a YAML file, with the fields of a plan in `llmft gpu-check --json`.

    Raises:
        ConfigError: it cannot be read, or is not a plan.
    """
    import yaml

    needed = [field.name for field in fields(Plan) if field.default is MISSING]
    switches = [field.name for field in fields(Plan) if field.default is False]
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the plan {path}: {error}", f"--plan takes {', '.join(PLAN_KINDS)} or a file") from error
    if not isinstance(content, Mapping) or set(content) - set(switches) != set(needed):
        raise ConfigError(
            f"{path} is not a plan: it must have {', '.join(needed)}, may have {', '.join(switches)}, and no other keys"
        )
    plan = Plan(**content)
    for name in switches:
        if not isinstance(getattr(plan, name), bool):
            raise ConfigError(f"{name} in {path}: {getattr(plan, name)!r} is not true or false")
    if not isinstance(plan.optim, str):
        raise ConfigError(f"optim in {path}: {plan.optim!r} is not the name of an optimizer")
    for name, value in asdict(plan).items():
        least = 0 if name == "checkpointed_layers" else 1
        # Not isinstance, because True is also an int.
        if name not in ("optim", *switches) and (type(value) is not int or value < least):
            raise ConfigError(f"{name} in {path}: {value!r} is not a whole number of {least} or more")
    return plan
