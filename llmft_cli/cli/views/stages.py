"""The results of a run's stages, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmft_cli.cli.views.search import search
from llmft_cli.cli.views.sections import Section, gibibytes, named, next_command
from llmft_cli.evaluation.results import LABELS
from llmft_cli.settings.quantities import format_count

if TYPE_CHECKING:
    from llmft_cli.data.report.summary import PrepareResult
    from llmft_cli.evaluation.evaluate import EvalResult
    from llmft_cli.merging.merge import MergeResult
    from llmft_cli.training.judgement.result import TrainResult
    from llmft_cli.training.profiling.profiling import Profile

MOST_KEYS_SHOWN = 8


def prepare(run: str, result: PrepareResult) -> list[Section]:
    rows = result.rows
    near = rows["near_duplicates"]
    sections = [
        named(
            f"Prepared {run}",
            {
                "rows": f"{rows['kept']:,} kept of {rows['read']:,} read",
                "rejected": f"{rows['rejected']:,} (see {run}/data/rejected.jsonl)" if rows["rejected"] else None,
                "duplicates": f"{rows['duplicates']:,} dropped" if rows["duplicates"] else None,
                "near-duplicates": f"{near:,}, kept on the same side of the split" if near else None,
                "too long": overlength(run, result.overlength) if result.overlength["rows"] else None,
                "documents split": f"{result.documents_split:,}" if result.documents_split else None,
                "ignored keys": ignored_keys(run, result.ignored_keys),
                "rows per answer": answer_rows(result.answer_rows) if result.answer_rows.get("conversations") else None,
                "formats": ", ".join(f"{form} {count:,}" for form, count in result.forms.items()),
                "tokens": f"{result.tokens['total']:,}, of which {result.tokens['supervised']:,} supervised",
                "row lengths": "min {min}, median {median:g}, p95 {p95}, max {max} tokens".format(**result.lengths),
                "split": f"{result.splits['train']:,} training, {result.splits['validation']:,} held out",
                "packing": packing(result.packing),
                "end of turn": result.template.get("end_of_turn"),
            },
        )
    ]
    if len(result.sources) > 1:
        columns = ("read", "kept", "rejected")
        sources = [(source["name"], *(f"{source[column]:,}" for column in columns)) for source in result.sources]
        sections.append(Section("Sources", sources, ("source", *columns)))
    if result.rejected_reasons:
        reasons = [(item["reason"], str(item["count"]), ", ".join(item["first"])) for item in result.rejected_reasons[:5]]
        sections.append(Section("Rejected", reasons, ("reason", "rows", "first")))
    for level in ("error", "warning"):
        found = [check for check in result.checks if check["level"] == level]
        if found:
            title = format_count(len(found), level)
            sections.append(Section(title, [finding(check) for check in found], ("check", "found", "meaning")))
    notes = [f"{words(check['check'])} {check['count']:,}" for check in result.checks if check["level"] == "note"]
    ending = {"notes": ", ".join(notes) or None, "report": f"{run}/data/report.html"}
    return [*sections, named("", ending), next_command("train", run)]


def packing(forecast: Mapping[str, Any]) -> str:
    """How full sequences would be; `train` packs them."""
    sequences = format_count(forecast["rows"], "sequence")
    return f"{sequences} of {forecast['length']:,} tokens would be {forecast['efficiency']:.1%} full"


def ignored_keys(run: str, keys: Sequence[Mapping[str, Any]]) -> str | None:
    """The keys that are not read and not known to be harmless; None if there are none."""
    told = [item for item in keys if not item["harmless"]]
    if not told:
        return None
    shown = ", ".join(f"{item['key']} ({format_count(item['rows'], 'row')})" for item in told[:MOST_KEYS_SHOWN])
    more = len(told) - MOST_KEYS_SHOWN
    return f"{shown} and {format_count(more, 'more key')} (see {run}/data/report.json)" if more > 0 else shown


def answer_rows(counts: Mapping[str, Any]) -> str:
    """How many conversations became several rows."""
    became = f"{format_count(counts['conversations'], 'conversation')} became {format_count(counts['rows'], 'row')}"
    reason = "one for each answer" if counts["policy"] == "on" else "since the template renders answers in another way later"
    return f"{became}, {reason}"


def overlength(run: str, lost: Mapping[str, Any]) -> str:
    """How many rows were too long, what was done with them, and what was lost."""
    tokens, ends = f"{lost['tokens_lost']:,} tokens", f"{lost['end_of_turns_lost']:,} ends of turn"
    if lost["policy"] == "drop":
        return f"{lost['rows']:,} dropped with {tokens} (see {run}/data/rejected.jsonl)"
    dropped = lost.get("dropped", 0)
    done = f"{lost['rows'] - dropped:,} {'truncated' if lost['policy'] == 'truncate' else 'split'}"
    if dropped:
        done += f", {dropped:,} dropped without an answer left (see {run}/data/rejected.jsonl)"
    return f"{done}, which lost {tokens} and {ends}" if lost["tokens_lost"] else f"{done}, nothing lost"


def finding(check: Mapping[str, Any]) -> tuple[str, str, str]:
    """A check's name, count and meaning, with the place of the first example."""
    first = "".join(f" (first: {example['source']}:{example['line']})" for example in check["examples"][:1])
    return words(check["check"]), f"{check['count']:,}", check["meaning"] + first


def words(name: str) -> str:
    return name.replace("_", " ")


def train(run: str, result: TrainResult, timings: bool = False) -> list[Section]:
    """A finished training run.

    Args:
        timings: whether to show the wall time by stage.
    """
    speed = result.tokens_per_second
    return [
        named(
            f"Trained {run}",
            {
                "steps": result.steps,
                "training loss": f"{result.train_loss:.4f}",
                "held-out loss": held_out_loss(result),
                "best step": result.best_step,
                "speed": None if speed is None else f"{speed:,.0f} tokens/s",
                "peak memory": gibibytes(result.peak_memory_bytes),
                "out of memory": smaller_passes(result),
                "time": f"{result.seconds:,.0f} s",
                "trainable": f"{result.trainable_parameters:,} parameters",
                "adapter": result.adapter,
            },
        ),
        *search(result.search),
        *([] if result.profile is None else profile(result.profile)),
        *([time_by_stage(result.timings)] if timings and result.timings else []),
        *advice(result),
        next_command("eval", run),
    ]


def time_by_stage(seconds: Mapping[str, float]) -> Section:
    """Wall time by stage, and in all."""
    total = sum(seconds.values())
    rows = [(stage, f"{spent:,.1f}", f"{spent / total:.1%}") for stage, spent in {**seconds, "in all": total}.items()]
    return Section("Wall time", rows, ("", "s", "share"))


def held_out_loss(result: TrainResult) -> str | None:
    """The loss of the adapter that is kept, and what it was before training."""
    if result.eval_loss is None:
        return None
    before = {"base": result.base_eval_loss, "starting adapter": result.starting_adapter_eval_loss}
    known = [f" ({name}: {loss:.4f})" for name, loss in before.items() if loss is not None]
    return "".join([f"{result.eval_loss:.4f}", *known])


def advice(result: TrainResult) -> list[Section]:
    """What the losses say, and the flag that would help; nothing where there is nothing to mend."""
    if not result.advice:
        return []
    return [Section("Advice", [(words(item.kind), f"{item.message}\n{item.hint}") for item in result.advice])]


def profile(found: Profile) -> list[Section]:
    """How the time of a step is spent, and its lower bound (roofline)."""
    last = found.first_step + found.steps - 1
    steps = f"step {last}" if found.steps == 1 else f"steps {found.first_step} to {last}"
    computing = sum(found.group_seconds.values())
    rest = "operators" if found.device == "cpu" else "kernels"
    times = {words(group): seconds for group, seconds in found.group_seconds.items()}
    times |= {f"between {rest}": max(0.0, found.step_seconds - computing), "step": found.step_seconds}
    rows = [(name, f"{1000 * seconds:,.1f}", f"{seconds / found.step_seconds:.1%}") for name, seconds in times.items()]
    line = found.roofline
    least = (
        f"none: {found.why_no_roofline}"
        if line is None
        else (
            f"the step took {1000 * found.step_seconds:,.0f} ms; the roofline is {1000 * line.seconds:,.0f} ms "
            f"({line.seconds / found.step_seconds:.0%})"
        )
    )
    return [
        Section(f"Profile of {steps} on {found.device}", rows, ("", "ms per step", "share")),
        named("", {"busy": f"{found.busy_share:.1%} of the step", "roofline": least, "trace": found.trace}),
    ]


def smaller_passes(result: TrainResult) -> str | None:
    """How often memory ran out, and the size of passes since then; None if it did not."""
    times, tokens = result.out_of_memory_retries, result.largest_pass_tokens
    if not times:
        return None
    ending = "" if tokens is None else f"; batches in passes of at most {tokens:,} tokens"
    return f"{format_count(times, 'time')}{ending}"


def merge(run: str, result: MergeResult) -> list[Section]:
    proof = result.verification
    return [
        named(
            f"Merged {run}",
            {
                "merged": f"{result.merged} ({result.base_choice})",
                "verified": f"top-1 agreement {proof.top1_agreement:.2%}, mean KL {proof.mean_kl:.1e}, {proof.tokens} tokens",
                "effect of the adapter": f"mean KL {proof.mean_kl_of_base:.2f} from the base",
                "peak memory": gibibytes(result.peak_rss_bytes),
                "time": f"{result.seconds:,.0f} s",
            },
        ),
        next_command("chat", run),
    ]


def evaluate(run: str, result: EvalResult) -> list[Section]:
    # Answers that were cut or are empty: of interest only where there are some.
    counts = [name for name in ("cut", "empty") if any(getattr(scores, name) for scores in result.arms.values())]
    rows = [
        [
            arm,
            *("-" if (value := getattr(scores, metric)) is None else f"{value:.3f}" for metric in LABELS),
            *(f"{getattr(scores, name):,}" for name in counts),
        ]
        for arm, scores in result.arms.items()
    ]
    unscored = "" if result.scored_prompts == result.prompts else f", {result.scored_prompts:,} with an expected answer"
    title = f"Evaluated {run}: {result.name}, {format_count(result.prompts, 'prompt')}{unscored}"
    return [Section(title, rows, ["", *LABELS, *counts]), named("", {"": result.headline, "report": result.report})]
