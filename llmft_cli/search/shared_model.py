"""One model for all trials: each begins with the same adapter, on the layout of its own plan."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmft_cli.base.reporter import Reporter, Unit
from llmft_cli.models.model_source import ModelSource
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    import torch
    from peft import PeftModel

    from llmft_cli.base.reporter import Advance
    from llmft_cli.training.plan import Plan


@dataclass(frozen=True)
class SharedModel:
    """A base model with an adapter that is trained several times from its beginning.

    Attributes:
        beginning: values of the adapter's weights before the first step, on the CPU, by name.
        own_attention: the implementation that transformers chose for the base.
        kept_on_cpu: whether a base on the CPU keeps its 4-bit weights dequantised, whatever the plans say.
    """

    model: PeftModel
    beginning: dict[str, torch.Tensor]
    own_attention: str | None
    kept_on_cpu: bool

    def make_ready(self, plan: Plan) -> None:
        """Give back the memory of the trial before, lay the model out by the plan, and reset the adapter."""
        import torch

        from llmft_cli.training.step.tuned_model import apply_plan

        for weights in self.model.parameters():
            weights.grad = None
        gc.collect()  # a trainer and its callbacks refer to each other
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        kept = plan.dequantized_weights or self.kept_on_cpu
        apply_plan(self.model, replace(plan, dequantized_weights=kept, embeddings_on_cpu=False))
        with torch.no_grad():
            for name, weights in self.model.named_parameters():
                if name in self.beginning:
                    weights.copy_(self.beginning[name])


def load_shared(
    source: ModelSource, config: Config, plans: Iterable[Plan], device: torch.device, reporter: Reporter
) -> SharedModel:
    """Load the base and add the adapter, as a training with the first of these plans does.

    Where one of them keeps the embeddings on the CPU, all do: they cannot be moved back.
    """
    from llmft_cli.training.fast.architectures import keeps_dequantized
    from llmft_cli.training.step.built_model import build, load

    first, *others = plans
    on_cpu = any(plan.embeddings_on_cpu for plan in (first, *others))
    base = load(source, config, device, reporter)
    own_attention = base.config._attn_implementation
    model = build(base, source.name, config, replace(first, embeddings_on_cpu=on_cpu), None, reporter)
    beginning = {name: weights.detach().cpu().clone() for name, weights in model.named_parameters() if weights.requires_grad}
    return SharedModel(model, beginning, own_attention, device.type == "cpu" and keeps_dequantized(model))


@dataclass(frozen=True)
class TrialReporter:
    """Shows of a trial's training only warnings and progress, with its number."""

    reporter: Reporter
    label: str

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None:
        self.reporter.warn(f"{self.label}: {message}")

    def track(self, description: str, total: int, done: int = 0, unit: Unit = "steps") -> AbstractContextManager[Advance]:
        return self.reporter.track(f"{self.label}: {description}", total, done, unit)
