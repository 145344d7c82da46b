"""Spikes of a training loss: what a bad update does is one, and what a hard batch does is none."""

import random
import statistics

import pytest

from llmft_cli.training.judgement.curve import Point
from llmft_cli.training.judgement.spikes import Spike, spikes_in


def losses(*values):
    return [Point(step, value) for step, value in enumerate(values, 1)]


def noisy(level, count, seed=0, sigma=0.5):
    """Losses of small batches: their logarithms are normal."""
    chance = random.Random(seed)
    return [level * chance.lognormvariate(0, sigma) for _ in range(count)]


def test_a_loss_that_jumps_and_stays_up_is_a_spike():
    calm = [1.0 + 0.1 * (step % 2) for step in range(20)]
    found = spikes_in(losses(*calm, 5.0, 4.0, 3.0, *calm))
    assert found == [Spike(21, 5.0, statistics.median(calm))]


def test_a_training_that_never_recovers_has_one_spike():
    assert spikes_in(losses(*[0.5] * 15, *[9.0] * 40)) == [Spike(16, 9.0, 0.5)]


def test_a_hard_batch_is_no_spike():
    assert spikes_in(losses(*[1.0, 1.1] * 10, 9.0, 9.0, *[1.0, 1.1] * 10)) == []


def test_losses_of_rows_that_are_known_by_heart_are_no_spikes():
    assert spikes_in(losses(*[0.001] * 20, 0.3, 0.4, 0.4, *[0.001] * 20)) == []


def test_too_few_losses_tell_nothing():
    assert spikes_in([]) == []
    assert spikes_in(losses(*[1.0] * 9, 9.0, 9.0, 9.0)) == []


@pytest.mark.parametrize("sigma", [0.2, 0.5, 0.8])
def test_no_false_alarms_in_the_noise_of_small_batches(sigma):
    """100 trainings of 1,000 steps whose batches differ by a factor of up to e^(3 * 0.8) in either direction."""
    alarms = sum(len(spikes_in(losses(*noisy(1.0, 1000, seed, sigma)))) for seed in range(100))
    assert alarms <= 3
