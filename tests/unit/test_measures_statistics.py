"""Means, intervals and comparisons of tables of cases."""

from __future__ import annotations

import numpy as np
import pytest

from itkit.errors import UsageError
from itkit.measures import statistics
from itkit.measures.statistics import (
    adjust_holm,
    bootstrap_interval,
    case_table,
    compare_paired,
    mean_over_cases,
    median_interval,
    overall_mean,
    signed_rank_test,
    summarise,
)

NAN = np.nan


def test_mean_is_over_cases_then_over_classes():
    table = np.array([[1.0, 0.0, NAN], [NAN, 0.5, NAN], [NAN, 1.0, NAN]])
    np.testing.assert_array_equal(mean_over_cases(table), [1.0, 0.5, NAN])
    assert overall_mean(table) == 0.75
    assert np.isnan(overall_mean(np.full((2, 2), NAN)))


def test_interval_matches_a_plain_loop():
    generator = np.random.default_rng(1)
    table = generator.random((15, 3))
    table[generator.random((15, 3)) < 0.2] = NAN
    means = [overall_mean(table[generator.integers(0, 15, 15)]) for _ in range(20_000)]
    np.testing.assert_allclose(
        bootstrap_interval(table, resamples=20_000), np.quantile(means, [0.025, 0.975]), atol=0.005
    )


def test_interval_is_seeded_and_widens_with_its_level():
    table = np.random.default_rng(0).random((20, 2))
    assert bootstrap_interval(table) == bootstrap_interval(table)
    assert bootstrap_interval(table) != bootstrap_interval(table, seed=1)
    low, high = bootstrap_interval(table)
    wider = bootstrap_interval(table, level=0.99)
    assert wider[0] < low < overall_mean(table) < high < wider[1]


def test_interval_does_not_depend_on_the_chunks(monkeypatch):
    table = np.random.default_rng(0).random((9, 2))
    whole = bootstrap_interval(table, resamples=500)
    monkeypatch.setattr(statistics, "_CHUNK", 9 * 500)
    assert bootstrap_interval(table, resamples=500) == whole


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_interval(generator.normal(0.5, 0.1, 40), resamples=400)
        hits += low <= 0.5 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_no_interval_from_fewer_than_two_cases():
    assert bootstrap_interval(np.array([[0.5]])) is None
    assert bootstrap_interval(np.array([[0.5], [NAN]])) is None
    assert bootstrap_interval(np.zeros((0, 2))) is None


def test_interval_refusals():
    with pytest.raises(UsageError, match="level of a confidence interval must lie between 0 and 1"):
        bootstrap_interval(np.ones(3), level=95)
    with pytest.raises(UsageError, match="resamples must be at least 1"):
        bootstrap_interval(np.ones(3), resamples=0)


def test_paired_comparison_sees_a_small_constant_gain():
    generator = np.random.default_rng(0)
    first = generator.random((20, 2))
    found = compare_paired(first, first + 0.01 + 0.001 * generator.random((20, 2)))
    assert 0.01 < found["difference"] < 0.011
    assert found["interval"][0] > 0.01
    assert found["p_value"] < 1e-4
    assert found["cases"] == 20


def test_paired_comparison_of_equal_models_and_of_one_case():
    same = compare_paired(np.ones((5, 2)), np.ones((5, 2)))
    assert (same["difference"], same["p_value"], same["interval"]) == (0, 1, (0, 0))
    single = compare_paired(np.array([[0.5, NAN], [NAN, 1]]), np.array([[0.75, 1], [1, NAN]]))
    assert single == {"difference": 0.25, "interval": None, "p_value": None, "cases": 1}


def test_paired_comparison_refuses_other_cases():
    with pytest.raises(UsageError, match=r"needs the same cases and classes.*\(3, 1\) and \(4, 1\)"):
        compare_paired(np.ones(3), np.ones(4))


def test_summary_of_rows():
    rows = [{"case_id": "a", "Dice/x": 0.5, "Dice/y": None}, {"case_id": "b", "Dice/x": 1.0}]
    np.testing.assert_array_equal(case_table(rows, "Dice", ["x", "y"]), [[0.5, NAN], [1, NAN]])
    found = summarise(rows, "Dice", ["x", "y"])
    assert found["mean"] == 0.75
    assert found["per_class"] == {"x": 0.75, "y": None}
    assert found["ci95"] == [0.5, 1.0]
    assert summarise([], "Dice", ["x"]) == {"mean": None, "per_class": {"x": None}, "ci95": None}


def test_kept_draws_change_nothing(monkeypatch):
    table = np.random.default_rng(0).random((9, 2))
    kept = bootstrap_interval(table), median_interval(table[:, 0])
    monkeypatch.setattr(statistics, "_KEPT", 0)
    assert (bootstrap_interval(table), median_interval(table[:, 0])) == kept


@pytest.mark.parametrize("cases", [20, 21])
def test_median_interval_matches_a_plain_loop(cases):
    generator = np.random.default_rng(3)
    values = generator.normal(size=cases)
    medians = [np.median(generator.choice(values, cases)) for _ in range(20_000)]
    np.testing.assert_allclose(
        median_interval(np.append(values, NAN), resamples=20_000), np.quantile(medians, [0.025, 0.975]), atol=0.03
    )
    assert median_interval(np.array([1.0, NAN])) is None
    with pytest.raises(UsageError, match="resamples must be at least 1"):
        median_interval(values, resamples=0)


@pytest.mark.parametrize(
    "differences, expected",
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2 / 2**5),  # only one of 32 sign patterns is as extreme, at either end
        ([-1.0, 2.0, 3.0, 4.0, 5.0], 4 / 2**5),  # rank sums 0 and 1
        ([1.0, 2.0, -3.0, 4.0, 5.0], 10 / 2**5),  # 0, 1, 2, 3 = 1 + 2
        ([1.0, 1.0, 1.0], 2 / 2**3),  # all tied
        ([-1.0, 1.0, 1.0, 2.0], 8 / 2**4),  # ranks 2, 2, 2, 4: none or one of the three, at either end
        ([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 2 / 2**5),  # zeros are left out
        ([0.0, NAN, 0.0], 1.0),
        ([1.0, -1.0], 1.0),
    ],
)
def test_signed_rank_test_by_counting_sign_patterns(differences, expected):
    assert signed_rank_test(np.array(differences)) == pytest.approx(expected, rel=1e-12)
    assert signed_rank_test(-np.array(differences)) == pytest.approx(expected, rel=1e-12)


def test_signed_rank_test_does_not_rank_rounding_errors():
    same = np.array([0.1 + 0.2 - 0.3, 0.0, 0.5, 0.5 + 1e-16, 0.3 + 0.2, -0.5])
    assert signed_rank_test(same) == signed_rank_test(np.array([0.5, 0.5, 0.5, -0.5]))
    assert signed_rank_test(np.array([0.5])) is None


def test_holm_by_hand_and_monotone():
    assert adjust_holm([0.01, 0.04, 0.03, None]) == [
        pytest.approx(0.03),
        pytest.approx(0.06),
        pytest.approx(0.06),
        None,
    ]
    assert adjust_holm([0.5, 0.9]) == [1.0, 1.0]
    assert adjust_holm([]) == []

    found = adjust_holm([0.001, 0.008, 0.039, 0.041, 0.042, 0.060, 0.074, 0.205])
    assert found == pytest.approx([0.008, 0.056, 0.234, 0.234, 0.234, 0.234, 0.234, 0.234])
