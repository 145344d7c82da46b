"""What the figures of a training say, and the flag that would help: nothing where there is nothing to mend.

Each kind has a bound that a good training stays below, so that advice can be trusted. A held-out loss as such is noisy:
other rows would give another. Its change from one evaluation to the next is not, because the rows are the same; so what
is judged here are changes.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from llmft_cli.settings.quantities import format_count
from llmft_cli.training.judgement.curve import Point
from llmft_cli.training.judgement.facts import Facts
from llmft_cli.training.judgement.spikes import spikes_in

# With fewer rows, even a change for the better in all of them may be chance: the exact paired test (of signs, or of all
# 2^n swaps, two-sided) has p = 2 / 2^n at best, which is 0.06 for 5 rows and 0.03 for 6.
FEWEST_ROWS_TO_TELL = 6
# As many rows as it takes if a quarter of them get worse: the same test has p = 0.04 with 15 of 20 rows better.
ENOUGH_ROWS_TO_TELL = 20
MOST_ROWS_HELD_OUT = 0.25  # of all; holding out more would cost more than it tells
# Of the held-out loss: the least fall in the last fifth of the steps that a longer training would go on with. The rate is
# almost 0 by then (that fifth has 1.3% of the sum of a cosine's rates, and 4% of a line's), so little is much.
STILL_FALLING = 0.01
LAST_PART = 0.2
# Of the lowest held-out loss: the least rise after it that more steps have done harm with.
HARMFUL_RISE = 0.05
# Of all steps: the fewest after the lowest loss that were a waste.
WASTED_STEPS = 0.2
# Of a held-out loss: at the end of a schedule, it goes up and down by so much.
NO_CHANGE = 0.01
# Of all rows: as many as may be rejected (`--max-rejected`) before `prepare` takes them for a mistake.
MANY_ROWS = 0.05


@dataclass(frozen=True)
class Advice:
    """Something that the figures of a training say.

    Attributes:
        kind: no_improvement, still_learning, memorising, loss_spikes, no_held_out_rows, few_held_out_rows or
            no_end_of_turn.
        message: the figures, and what they mean.
        hint: the command that would help.
    """

    kind: str
    message: str
    hint: str


def advise(facts: Facts) -> list[Advice]:
    """All that the figures say, what matters most first."""
    return [advice for judge in JUDGES if (advice := judge(facts)) is not None]


def no_improvement(facts: Facts) -> Advice | None:
    """The adapter that is kept is no better than what the training began with."""
    start, lowest = facts.curve.start, facts.curve.lowest
    if start is None or lowest is None or (kept := kept_point(facts)).loss < start:
        return None
    had = f"{facts.start_name} has {start:.4f}"
    if lowest.loss < start:
        return Advice(
            "no_improvement",
            f"the adapter of the last step is kept with a held-out loss of {kept.loss:.4f}, but {had}, and step "
            f"{lowest.step} had {lowest.loss:.4f}",
            f"keep the best: {facts.train_again} --load-best-model-at-end",
        )
    wasted = lowest.loss < start * (1 + NO_CHANGE)
    mend = facts.length_flag(2) if wasted else f"--learning-rate {facts.learning_rate / 4:.1g}"
    return Advice(
        "no_improvement",
        f"no evaluation beats {facts.start_name}: the lowest held-out loss is {lowest.loss:.4f} at step {lowest.step}, {had}; "
        f"the adapter of the last step ({kept.loss:.4f}) is kept",
        f"train {'longer' if wasted else 'at a lower rate'}: {facts.train_again} {mend}",
    )


def kept_point(facts: Facts) -> Point:
    """The evaluation of the adapter that is kept; there is one."""
    evaluations = facts.curve.held_out
    return next((point for point in evaluations if point.step == facts.kept_step), evaluations[-1])


def still_learning(facts: Facts) -> Advice | None:
    """The held-out loss fell until the end."""
    points, lowest = with_start(facts), facts.curve.lowest
    if len(points) < 3 or lowest is None or facts.curve.beats_start is False or too_few(facts):
        return None
    last, begin = points[-1], points[-1].step * (1 - LAST_PART)
    fall = loss_at(points, begin) - last.loss
    if fall < STILL_FALLING * last.loss or last.loss > lowest.loss * (1 + NO_CHANGE):
        return None
    earlier = next(point for point in reversed(points) if point.step <= begin or point == points[0])
    return Advice(
        "still_learning",
        f"the held-out loss still fell at the end: from {earlier.loss:.4f} at step {earlier.step} to {last.loss:.4f} at "
        f"step {last.step}, the last",
        f"train longer: {facts.train_again} {facts.length_flag(2)}",
    )


def with_start(facts: Facts) -> list[Point]:
    """The evaluations, and that before the first step."""
    start = facts.curve.start
    return [*([] if start is None else [Point(0, start)]), *facts.curve.held_out]


def loss_at(points: list[Point], step: float) -> float:
    """The held-out loss at a step, on the line between the evaluations around it; the first one's before that."""
    for one, other in pairwise(points):
        if one.step <= step <= other.step:
            return one.loss + (other.loss - one.loss) * (step - one.step) / (other.step - one.step)
    return points[0].loss


def memorising(facts: Facts) -> Advice | None:
    """The held-out loss rose again, while the training loss went on to fall."""
    lowest, curve = facts.curve.lowest, facts.curve
    stopped_early = facts.steps < facts.planned_steps  # which is what would help
    if lowest is None or curve.beats_start is False or stopped_early or too_few(facts):
        return None
    last = curve.held_out[-1]
    if last.loss < lowest.loss * (1 + HARMFUL_RISE) or last.step - lowest.step < WASTED_STEPS * facts.steps:
        return None
    width = max(1, facts.steps // 10)
    then, now = (mean_training_loss(facts, step, width) for step in (lowest.step, last.step))
    if then is None or now is None or now >= then:
        return None
    kept = "is kept" if facts.kept_step == lowest.step else "would be better than that of the last step, which is kept"
    return Advice(
        "memorising",
        f"memorising since step {lowest.step}: the held-out loss rose from {lowest.loss:.4f} to {last.loss:.4f} at step "
        f"{last.step}, while the training loss fell from {then:.4f} to {now:.4f}; the adapter of step {lowest.step} {kept}",
        f"train shorter: {facts.train_again} {facts.length_flag(lowest.step / facts.planned_steps)}",
    )


def mean_training_loss(facts: Facts, step: int, width: int) -> float | None:
    """Mean of the logged training losses of the `width` steps until a step; None if there are none."""
    losses = [point.loss for point in facts.curve.training if step - width < point.step <= step]
    return sum(losses) / len(losses) if losses else None


def loss_spikes(facts: Facts) -> Advice | None:
    """The training loss jumped and stayed up for more than a step."""
    spikes = spikes_in(facts.curve.training)
    if not spikes:
        return None
    spike = spikes[0]
    times = "" if len(spikes) == 1 else f", and {format_count(len(spikes) - 1, 'more time')} after that"
    return Advice(
        "loss_spikes",
        f"the training loss jumped from {spike.before:.4f} to {spike.loss:.4f} at step {spike.step}{times}",
        f"train at a lower rate: {facts.train_again} --learning-rate {facts.learning_rate / 2:.2g}",
    )


def no_held_out_rows(facts: Facts) -> Advice | None:
    """Nothing was held out."""
    if facts.held_out_rows:
        return None
    return Advice(
        "no_held_out_rows",
        f"no rows were held out of {format_count(facts.training_rows, 'row')}: whether the adapter has learned more than "
        f"these rows by heart is unknown",
        more_held_out(facts),
    )


def few_held_out_rows(facts: Facts) -> Advice | None:
    """Too few rows were held out for any difference to mean something."""
    if not too_few(facts) or not facts.held_out_rows:
        return None
    rows = format_count(facts.held_out_rows, "held-out row")
    return Advice(
        "few_held_out_rows",
        f"{rows} ({format_count(facts.held_out_tokens, 'learned token')}): with fewer than {FEWEST_ROWS_TO_TELL}, even an "
        "improvement on every one may be chance, and so may the choice of the best step",
        more_held_out(facts),
    )


def too_few(facts: Facts) -> bool:
    return facts.held_out_rows < FEWEST_ROWS_TO_TELL


def more_held_out(facts: Facts) -> str:
    """The command that holds out enough rows, or compares answers to other prompts where there are too few rows."""
    most = int(MOST_ROWS_HELD_OUT * (facts.training_rows + facts.held_out_rows))
    run = shlex.quote(str(facts.run))
    if most < FEWEST_ROWS_TO_TELL:
        return f"compare answers to other questions: llmft eval {run} --prompts questions.jsonl"
    return f"hold out more: llmft prepare DATA --run {run} --val-size {min(most, ENOUGH_ROWS_TO_TELL)} --overwrite"


def no_end_of_turn(facts: Facts) -> Advice | None:
    """Rows were truncated, and with them the ends that the model should learn."""
    rows = facts.training_rows + facts.held_out_rows
    if not facts.lost_ends or min(facts.truncated_rows, facts.lost_ends) < MANY_ROWS * rows:
        return None
    return Advice(
        "no_end_of_turn",
        f"{facts.truncated_rows:,} of {format_count(rows, 'row')} were truncated and lost {facts.lost_ends:,} ends of turn: "
        "answers may not end",
        f"leave them out: llmft prepare DATA --run {shlex.quote(str(facts.run))} --on-overlength drop --overwrite",
    )


JUDGES: tuple[Callable[[Facts], Advice | None], ...] = (
    no_improvement,
    still_learning,
    memorising,
    loss_spikes,
    no_held_out_rows,
    few_held_out_rows,
    no_end_of_turn,
)
