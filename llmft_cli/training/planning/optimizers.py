"""Which optimizers there are: those of transformers, some of which need packages of their own."""

from __future__ import annotations

import difflib

from llmft_cli.base.errors import ConfigError, first_line
from llmft_cli.settings.fields import FIELDS


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
