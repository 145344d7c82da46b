"""A training as planned: its sequences, its plan, and the settings with the plan's values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmft_cli.base.reporter import Reporter
from llmft_cli.data.store import training_rows
from llmft_cli.models.model_source import ModelSource
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings.config import Config
from llmft_cli.training.batches.sequences import Sequences, training_sequences
from llmft_cli.training.planning.decide import ChosenPlan, decide

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Planned:
    """What a training goes through, and how."""

    config: Config
    sequences: Sequences
    chosen: ChosenPlan


def planned(
    run: RunDir,
    source: ModelSource,
    config: Config,
    device: torch.device,
    reporter: Reporter,
    recorded: Mapping[str, Any] | None = None,
) -> Planned:
    """Plan a training on a run's rows; arguments and errors as of `decide`."""
    sequences = training_sequences(training_rows(run.data), config)
    chosen = decide(source, config, sequences, device, reporter, recorded)
    config = chosen.applied_to(config)
    if sequences.passes is not None:
        sequences = sequences.in_passes(config.gradient_accumulation_steps)
    return Planned(config, sequences, chosen)
