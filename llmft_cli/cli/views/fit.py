"""Whether a training run fits, as text."""

from __future__ import annotations

from collections.abc import Sequence

from llmft_cli.cli.views.sections import Section, gibibytes, named
from llmft_cli.fit.fit import Fit, PlanOption
from llmft_cli.settings.quantities import format_count

HEADER = ("", "batch size", "passes", "checkpointed", "optimizer", "needs", "tokens/s")


def fit_sections(fit: Fit) -> list[Section]:
    verdict = {True: "yes", False: "no, not even with the most frugal plan", None: None}[fit.fits]
    measured = fit.measured
    summary = named(
        f"Training {fit.model}",
        {
            "fits": verdict,
            "on": fit.card,
            "available": gibibytes(fit.available_bytes),
            "needs": f"{gibibytes(fit.required_bytes)}, including torch's peak of {gibibytes(fit.predicted_peak_bytes)}",
            "measured": None
            if measured is None
            else f"{gibibytes(measured.peak_bytes)} "
            f"(prediction off by {fit.predicted_peak_bytes / measured.peak_bytes - 1:+.1%}), "
            f"{gibibytes(measured.reserved_bytes)} reserved, {gibibytes(measured.context_bytes)} outside torch",
            "rows per step": fit.rows_per_step and f"{fit.rows_per_step:,}",
            "speed": None if fit.tokens_per_second is None else f"about {fit.tokens_per_second:,.0f} tokens/s",
            "time": None if fit.training_seconds is None else f"about {duration(fit.training_seconds)}",
        },
    )
    parts = {name.replace("_", " "): gibibytes(size) for name, size in fit.breakdown.items() if size}
    need = fit.footprint
    disk_and_ram = {
        "download": gibibytes(need.model_download_bytes) if need.model_download_bytes else None,
        "disk to train": gibibytes(need.training_disk_bytes),
        "RAM to train": gibibytes(need.training_ram_bytes),
        "disk to merge": gibibytes(need.merging_disk_bytes),
        "RAM to merge": gibibytes(need.merging_ram_bytes),
    }
    return [
        summary,
        named("GPU memory at the peak", parts),
        plans(fit.options),
        named("Disk and RAM", disk_and_ram),
    ]


def plans(options: Sequence[PlanOption]) -> Section:
    """All plans; without the speed column if there are no speeds."""
    rows, columns = [row(option) for option in options if option.choices or not is_sacrifice(option, options)], len(HEADER)
    if all(option.tokens_per_second is None for option in options):
        columns -= 1
    return Section("Plans", [row[:columns] for row in rows], HEADER[:columns])


def is_sacrifice(option: PlanOption, options: Sequence[PlanOption]) -> bool:
    """Whether a plan changes the requested optimizer or moves embeddings to the CPU; only chosen ones are shown."""
    return bool(option.plan["optim"] != options[0].plan["optim"] or option.plan.get("embeddings_on_cpu"))


def row(option: PlanOption) -> tuple[str, ...]:
    plan, speed = option.plan, option.tokens_per_second
    verdict = ", ".join(option.choices) or {True: "safe", False: "too large", None: ""}[option.fits]
    return (
        verdict,
        str(plan["batch_size"]),
        str(plan["gradient_accumulation_steps"]),
        format_count(plan["checkpointed_layers"], "layer"),
        plan["optim"]
        + (", embeddings on the CPU" if plan.get("embeddings_on_cpu") else "")
        + (", weights kept dequantised" if plan.get("dequantized_weights") else "")
        + (", activations offloaded" if plan.get("activation_offloading") else ""),
        gibibytes(option.required_bytes) or "",
        "" if speed is None else f"{speed:,.0f}",
    )


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes // 60} h {minutes % 60} min" if minutes > 90 else f"{minutes} min"
