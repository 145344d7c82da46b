import itertools

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmft_cli.evaluation.comparison import Comparison, compare


def share_of_sign_flips_as_extreme(differences: list[float]) -> float:
    flips = numpy.array(list(itertools.product((1, -1), repeat=len(differences))))
    means = numpy.abs((flips * numpy.array(differences)).mean(axis=1))
    return float((means >= abs(numpy.mean(differences)) - 1e-12).mean())


@pytest.mark.parametrize(
    "differences", [[0.5, 0.25, -0.1, 0.7, 0.3], [1, 1, 1, 0, 0, -1], [0.2, 0.2, 0.2], [-0.4, -0.1, 0.05, -0.3]]
)
def test_p_value_is_that_of_all_sign_flips(differences: list[float]) -> None:
    result = compare("token_f1", "base", "tuned", [0.0] * len(differences), differences, seed=1)
    assert result.p_value == pytest.approx(share_of_sign_flips_as_extreme(differences))
    assert result.delta == pytest.approx(numpy.mean(differences))


def test_the_interval_is_that_of_all_resamples() -> None:
    differences = [0.1, 0.4, -0.2, 0.6, 0.3]
    means = numpy.array(list(itertools.product(differences, repeat=5))).mean(axis=1)
    result = compare("chrf", "base", "tuned", [0.3] * 5, [0.3 + each for each in differences], seed=3)
    assert result.ci95 == pytest.approx(numpy.percentile(means, [2.5, 97.5]), abs=0.02)


def test_many_prompts_are_tested_at_random_but_repeatably() -> None:
    generator = numpy.random.default_rng(5)
    base, tuned = generator.random(200), generator.random(200) + 0.3
    result = compare("token_f1", "base", "tuned", base, tuned, seed=7)
    normal = 1.96 * numpy.std(tuned - base, ddof=1) / 200**0.5
    assert result.ci95 == pytest.approx((result.delta - normal, result.delta + normal), abs=0.01)
    assert result.p_value is not None
    assert 0 < result.p_value < 0.001
    assert result == compare("token_f1", "base", "tuned", base, tuned, seed=7)
    assert result.ci95 != compare("token_f1", "base", "tuned", base, tuned, seed=8).ci95


def test_chance_differences_are_no_finding() -> None:
    generator = numpy.random.default_rng(11)
    base = generator.random(60)
    result = compare("token_f1", "base", "tuned", base, base + generator.choice([-0.2, 0.2], 60), seed=0)
    assert result.ci95 is not None
    assert result.p_value is not None
    assert result.ci95[0] < 0 < result.ci95[1]
    assert result.p_value > 0.05


def test_degenerate_pairs() -> None:
    assert compare("m", "a", "b", [0.5, 0.1], [0.5, 0.1], 0) == Comparison("m", "a", "b", 0.0, (0.0, 0.0), 1.0)
    assert compare("m", "a", "b", [0.25], [0.75], 0) == Comparison("m", "a", "b", 0.5, None, None)
    assert compare("m", "a", "b", [0.5], [0.5], 0) == Comparison("m", "a", "b", 0.0, None, None)
    assert compare("m", "a", "b", [0, 0], [1, 1], 0) == Comparison("m", "a", "b", 1.0, (1.0, 1.0), 0.5)
    with pytest.raises(ValueError, match="shape"):
        compare("m", "a", "b", [0.5, 0.1, 0.2], [0.5, 0.1], 0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 0.1, 0.3, 1]), st.sampled_from([0, 0.1, 0.3, 1])), min_size=2, max_size=9))
def test_never_nan_and_the_interval_lies_within_the_differences(pairs: list[tuple[float, float]]) -> None:
    values_a, values_b = zip(*pairs, strict=True)
    result = compare("m", "a", "b", values_a, values_b, seed=0)
    differences = numpy.subtract(values_b, values_a)
    assert result.ci95 is not None
    assert result.p_value is not None
    assert differences.min() - 1e-9 <= result.ci95[0] <= result.delta + 1e-9
    assert result.delta - 1e-9 <= result.ci95[1] <= differences.max() + 1e-9
    assert 0 < result.p_value <= 1
