"""The curve in a training's log, and which evaluation's adapter is kept."""

from types import SimpleNamespace

import pytest

from llmft_cli.training.judgement.curve import Curve, Point, curve_of, step_to_keep


def history(*rows):
    return [dict(zip(("step", name), (step, loss), strict=True)) for step, name, loss in rows]


def test_the_losses_of_a_log():
    found = curve_of(
        history(
            (0, "eval_loss", 4.0),
            (1, "loss", 3.5),
            (2, "loss", float("inf")),
            (2, "eval_loss", 3.0),
            (3, "loss", 2.5),
            (4, "eval_loss", 3.25),
            (4, "train_loss", 3.0),
        )
    )
    assert found == Curve((Point(1, 3.5), Point(3, 2.5)), (Point(2, 3.0), Point(4, 3.25)), 4.0)
    assert found.lowest == Point(2, 3.0)
    assert found.beats_start is True


def test_what_is_unknown():
    assert curve_of(history((1, "loss", 3.5))) == Curve((Point(1, 3.5),), (), None)
    assert curve_of([]).lowest is None
    assert curve_of([]).beats_start is None
    assert curve_of(history((0, "eval_loss", 4.0))).beats_start is None
    assert curve_of(history((2, "eval_loss", 4.0))).beats_start is None  # of a training that was begun by an older version


@pytest.mark.parametrize(
    ("start", "evaluations", "kept"),
    [
        (4.0, [3.0, 3.5], 1),
        (4.0, [4.5, 3.9], 2),
        (3.0, [3.0, 3.5], None),  # as good is no better
        (2.0, [3.0, 3.5], None),
        (None, [3.0, 3.5], 1),
    ],
)
def test_the_best_evaluation_is_kept_if_it_beats_the_start(start, evaluations, kept):
    rows = [] if start is None else [(0, "eval_loss", start)]
    rows += [(step, "eval_loss", loss) for step, loss in enumerate(evaluations, 1)]
    best = evaluations.index(min(evaluations)) + 1
    assert step_to_keep(SimpleNamespace(log_history=history(*rows), best_global_step=best)) == kept
