"""What the figures of a training say: nothing of a good one, and else what is wrong, with the flag that helps."""

from dataclasses import replace
from pathlib import Path

import pytest

from llmft_cli.training.judgement.advice import advise
from llmft_cli.training.judgement.curve import Curve, Point

from .curves import facts, points

AGAIN = "llmft train runs/mine --overwrite"


def kinds(found):
    return [item.kind for item in advise(found)]


def only(found):
    (advice,) = advise(found)
    return advice.kind, advice.message, advice.hint


# -- good trainings


@pytest.mark.parametrize(
    "held_out",
    [
        [0.69, 0.31, 0.20, 0.19, 0.189],  # it has flattened
        [1.70, 1.66, 1.64, 1.634, 1.633],
        [0.69, 0.31, 0.20, 0.19, 0.194],  # a little too long, of which nothing is lost
        [0.69, 0.31, 0.19, 0.192, 0.195],
        [0.5],  # too few evaluations to tell
    ],
)
def test_a_good_training_gets_no_advice(held_out):
    assert advise(facts(held_out, start=4.29, training=[3.0, *[0.5] * 99])) == []


def test_a_training_that_stopped_early_has_had_what_helps():
    assert advise(facts([0.69, 0.31, 0.50, 0.80], start=4.29, planned_steps=400, training=[1 / n for n in range(1, 81)])) == []


# -- still learning


def test_still_learning():
    """A demo of 2.5 epochs, which has 0.16 with more of them."""
    found = facts([0.6890, 0.3102, 0.1900], start=4.29, every=45, num_epochs=2.5)
    assert only(found) == (
        "still_learning",
        "the held-out loss still fell at the end: from 0.3102 at step 90 to 0.1900 at step 135, the last",
        f"train longer: {AGAIN} --num-epochs 5",
    )


def test_still_learning_of_so_many_steps():
    found = facts([2.9, 2.8, 2.7, 2.62, 2.57], every=9, num_epochs=None)  # a start that was not measured
    assert only(found)[2] == f"train longer: {AGAIN} --max-steps 90"


def test_a_last_evaluation_that_is_a_little_higher_hides_nothing():
    """220 questions of CLINC150, three epochs at 2e-4 and 16 rows a step; at 1e-3 they have 0.57."""
    losses = points([5.6587, 4.3170, 3.3210, 2.7088, 2.3731, 2.1974, 2.1393, 2.1022], 5)
    found = facts(curve=Curve((), (*losses, Point(42, 2.1190)), 7.0), steps=42, planned_steps=42, kept_step=40)
    assert only(found)[1] == "the held-out loss still fell at the end: from 2.1974 at step 30 to 2.1190 at step 42, the last"


def test_the_fall_counts_that_was_in_the_last_fifth_of_the_steps():
    """Evaluated often, each fall is small."""
    slow = [2.0 - 0.01 * step for step in range(50)]
    assert kinds(facts(slow, start=2.5, every=2)) == ["still_learning"]
    assert kinds(facts([*slow[:40], *[slow[39]] * 10], start=2.5, every=2)) == []


def test_a_training_that_goes_on_from_an_adapter_is_begun_again_from_it():
    found = facts([1.4, 1.3, 1.2], start=1.5, starting_adapter=Path("runs/mine/earlier/1/adapter"))
    assert only(found)[2] == f"train longer: {AGAIN} --from-adapter runs/mine/earlier/1/adapter --num-epochs 6"


# -- memorising

# 220 questions of CLINC150, six epochs at 1e-3 and 8 rows a step; every 17 steps.
CLINC = [1.6434, 1.0550, 0.6968, 0.5655, 0.7848, 0.7169, 0.6391, 0.6788, 0.6832, 0.6891]
CLINC_TRAINING = [*[1.5] * 34, *[0.5] * 17, *[0.1521] * 17, *[0.01] * 85, *[0.0011] * 17]


def test_memorising():
    found = facts(CLINC, start=5.0, training=CLINC_TRAINING, every=17, num_epochs=6.0)
    assert only(found) == (
        "memorising",
        "memorising since step 68: the held-out loss rose from 0.5655 to 0.6891 at step 170, while the training loss fell "
        "from 0.1521 to 0.0011; the adapter of step 68 is kept",
        f"train shorter: {AGAIN} --num-epochs 2.4",
    )


def test_memorising_without_keeping_the_best():
    found = facts(CLINC, start=5.0, training=CLINC_TRAINING, every=17, num_epochs=6.0, kept_step=None)
    assert "the adapter of step 68 would be better than that of the last step, which is kept" in only(found)[1]


def test_a_held_out_loss_that_rises_with_the_training_loss_is_not_memorising():
    assert kinds(facts(CLINC, start=5.0, training=[*[0.5] * 68, *[0.6] * 102], every=17)) == []


# -- no improvement


def test_a_rate_that_breaks_more_than_it_teaches():
    found = facts([2.9, 2.8, 2.85, 2.95, 3.0], start=2.57)
    assert only(found) == (
        "no_improvement",
        "no evaluation beats the base: the lowest held-out loss is 2.8000 at step 40, the base has 2.5700; the adapter of the "
        "last step (3.0000) is kept",
        f"train at a lower rate: {AGAIN} --learning-rate 0.0003",
    )


def test_a_training_that_taught_nothing():
    found = facts([2.58, 2.575, 2.571], start=2.57, starting_adapter=Path("/else where/adapter"))
    assert only(found) == (
        "no_improvement",
        "no evaluation beats the adapter it began with: the lowest held-out loss is 2.5710 at step 60, the adapter it began "
        "with has 2.5700; the adapter of the last step (2.5710) is kept",
        f"train longer: {AGAIN} --from-adapter '/else where/adapter' --num-epochs 6",
    )


def test_a_last_step_that_is_worse_than_the_base_where_the_best_is_not_kept():
    found = replace(facts([2.4, 2.5, 2.7], start=2.57), kept_step=None)
    assert only(found) == (
        "no_improvement",
        "the adapter of the last step is kept with a held-out loss of 2.7000, but the base has 2.5700, and step 20 had 2.4000",
        f"keep the best: {AGAIN} --load-best-model-at-end",
    )


# -- spikes


def test_loss_spikes():
    calm = [1.0, 1.1] * 20
    assert only(facts([1.4, 1.2, 1.19, 1.185, 1.185], start=3.0, training=[*calm, 6.0, 5.0, 4.0, *calm])) == (
        "loss_spikes",
        "the training loss jumped from 1.0500 to 6.0000 at step 41",
        f"train at a lower rate: {AGAIN} --learning-rate 0.0005",
    )
    twice = [*calm, 6.0, 5.0, 4.0, *calm, 7.0, 7.0, 7.0, *calm]
    message = only(facts([1.4, 1.2, 1.19, 1.185, 1.185], start=3.0, training=twice))[1]
    assert message == "the training loss jumped from 1.0500 to 6.0000 at step 41, and 1 more time after that"


# -- too little to tell


def test_nothing_is_held_out():
    assert only(facts(held_out_rows=0, held_out_tokens=0, training_rows=400)) == (
        "no_held_out_rows",
        "no rows were held out of 400 rows: whether the adapter has learned more than these rows by heart is unknown",
        "hold out more: llmft prepare DATA --run runs/mine --val-size 20 --overwrite",
    )
    assert only(facts(held_out_rows=0, held_out_tokens=0, training_rows=1)) == (
        "no_held_out_rows",
        "no rows were held out of 1 row: whether the adapter has learned more than these rows by heart is unknown",
        "compare answers to other questions: llmft eval runs/mine --prompts questions.jsonl",
    )


def test_too_few_are_held_out():
    few = facts([3.0, 2.0, 1.0], start=4.0, held_out_rows=5, held_out_tokens=43, training_rows=95)
    assert only(few) == (
        "few_held_out_rows",
        "5 held-out rows (43 learned tokens): with fewer than 6, even an improvement on every one may be chance, and so may "
        "the choice of the best step",
        "hold out more: llmft prepare DATA --run runs/mine --val-size 20 --overwrite",
    )
    assert only(replace(few, held_out_rows=1, held_out_tokens=1, training_rows=9))[1:] == (
        "1 held-out row (1 learned token): with fewer than 6, even an improvement on every one may be chance, and so may the "
        "choice of the best step",
        "compare answers to other questions: llmft eval runs/mine --prompts questions.jsonl",
    )
    assert only(replace(few, training_rows=35))[2].endswith("--val-size 10 --overwrite")
    assert kinds(replace(few, held_out_rows=6)) == ["still_learning"]


# -- answers that do not end


def test_truncated_answers():
    good = facts([1.4, 1.2, 1.19, 1.185, 1.185], start=3.0, truncated_rows=120, lost_ends=121)
    assert only(good) == (
        "no_end_of_turn",
        "120 of 400 rows were truncated and lost 121 ends of turn: answers may not end",
        "leave them out: llmft prepare DATA --run runs/mine --on-overlength drop --overwrite",
    )
    assert advise(replace(good, truncated_rows=19)) == []
    assert advise(replace(good, lost_ends=19)) == []  # little but questions was cut off


def test_what_matters_most_comes_first():
    found = facts([2.9, 3.0], start=2.57, held_out_rows=2, training_rows=38)
    assert kinds(found) == ["no_improvement", "few_held_out_rows"]
