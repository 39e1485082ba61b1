"""Charts: well-formed SVG for every input, and curves that respect gaps, resumes and extreme values."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from itkit._support.charts import MOST_DOTS, Line, Strip, interval_bar, line_chart, quantile, stack_charts, strip_chart
from itkit.experiment.charts import curve, learning_curves

NAN, INF = float("nan"), float("inf")


def _rows(values, split="train", name="loss", start=10):
    return [{"step": start * (n + 1), "split": split, name: value} for n, value in enumerate(values)]


def test_a_resumed_run_replaces_what_it_repeats():
    rows = _rows([5, 4, 3, 2]) + _rows([9, 8], start=10)[1:] + [{"step": 30, "split": "train", "loss": 7}]
    assert curve(rows, "train", "loss") == [(10, 5), (20, 8), (30, 7)]


def test_curve_takes_one_split_and_makes_gaps_of_what_is_not_finite():
    rows = [*_rows([1, None, NAN, INF, "x", True, 2]), *_rows([0.5], "val", "loss")]
    assert [value for _, value in curve(rows, "train", "loss")] == [1, None, None, None, None, None, 2]
    assert curve(rows, "val", "loss") == [(10, 0.5)]


@pytest.mark.parametrize(
    "values",
    [
        [],
        [None],
        [1.0],
        [NAN, INF],
        [0.0] * 5,
        [1e-12, 2e-12],
        [-3, 5, None, 1e30],
        [1e300, 1],
        list(range(5000)),
        [5, -5],
    ],
)
def test_charts_are_well_formed_for_any_values(values):
    points = [(step, value) for step, value in enumerate(values)]
    for log in (False, True):
        text = line_chart([Line("<b>'&\"", points, mark=(0, 1.0), dots=True)], title="<i>'\"", log=log)
        ElementTree.fromstring(text)
        assert "nan" not in text
        assert "inf" not in text.replace("in validation", "")
    text = strip_chart(
        [Strip("<b>", [(f"<case'{k}>", value) for k, value in enumerate(values[:300])])], title="t", unit="mm"
    )
    ElementTree.fromstring(text)


def test_learning_curves_mark_the_best_and_leave_out_what_was_not_logged():
    rows = _rows([3, 2, 1]) + _rows([0.5, 0.8, 0.7], "val", "Dice")
    charts = learning_curves({"a": rows}, {"a": {"step": 20, "metric": "Dice", "value": 0.8}})
    assert list(charts) == ["training loss", "validation Dice"]
    assert charts["validation Dice"].count("class='ring'") == 1
    assert "a, best: 0.8 at 20" in charts["validation Dice"]
    assert learning_curves([]) == {}
    assert list(learning_curves(_rows([0.5], "val", "IoU"))) == ["validation IoU"]


def test_gaps_are_not_bridged():
    text = line_chart([Line("a", [(0, 1), (1, 2), (2, None), (3, 2), (4, 1)])], title="t")
    assert len(re.findall("<polyline", text)) == 2


def test_one_exploded_value_does_not_flatten_the_curve():
    values = [1 - k / 200 for k in range(100)] + [1e9]
    heights = [float(y) for _, y in re.findall(r"([\d.]+),([-\d.]+)", _path(values))]
    assert max(heights[:100]) - min(heights[:100]) > 40


def _path(values):
    return re.search("points='([^']*)'", line_chart([Line("a", list(enumerate(values)))], title="t"))[1]


def test_higher_values_are_drawn_higher():
    (_, low), (_, high) = (tuple(map(float, part.split(","))) for part in _path([1, 2]).split())
    assert low > high


def test_waiting_share_comes_from_the_engine_or_from_durations():
    rows = [{"step": 1, "split": "train", "iter_time": 2.0, "data_time": 0.5}]
    assert "share of time spent waiting for data" in learning_curves(rows)
    assert "0.25" in learning_curves(rows)["share of time spent waiting for data"]
    rows[0]["data_wait"] = 0.75
    assert "0.75" in learning_curves(rows)["share of time spent waiting for data"]


def test_quantile_matches_numpy():
    import numpy as np

    values = sorted([3.0, 1.0, 4.0, 1.5, 9.0])
    for share in (0, 0.25, 0.5, 0.9, 1):
        assert quantile(values, share) == pytest.approx(np.quantile(values, share))


def test_interval_bar_orders_its_marks():
    text = interval_bar(0.5, (0.4, 0.7), (0.0, 1.0))
    ElementTree.fromstring(text)
    low, high = (float(x) for x in re.search(r"x1='([\d.]+)' x2='([\d.]+)' y1='9' y2='9' stroke=", text).groups())
    assert low < float(re.search(r"cx='([\d.]+)'", text)[1]) < high
    assert math.isclose((high - low) / 138, 0.3, abs_tol=0.01)


def test_differences_are_drawn_beside_zero():
    text = strip_chart([Strip("a", [("x", 2.0), ("y", 3.0)])], title="t", zero=True)
    (line,) = (e for e in ElementTree.fromstring(text).iter() if e.get("class") == "z")
    dots = [float(e.get("cx")) for e in ElementTree.fromstring(text).iter() if e.tag.endswith("circle")]
    assert float(line.get("x1")) < min(dots), "zero is on the axis although no case is near it"
    assert "class='z'" not in strip_chart([Strip("a", [("x", 2.0)])], title="t")


def test_of_many_cases_only_the_outermost_are_dots():
    cases = [(f"c{number}", float(number)) for number in range(MOST_DOTS + 400)]
    text = strip_chart([Strip("a", cases)], title="t")
    assert text.count("<circle") == MOST_DOTS
    assert "c0: 0<" in text
    assert f"c{len(cases) - 1}: " in text
    assert "c500: " not in text


def test_stacked_charts_are_one_picture_with_fixed_colours():
    charts = [strip_chart([Strip("a", [("x", 1.0), ("y", 2.0)])], title=title) for title in ("one", "two")]
    text = stack_charts(charts)
    tree = ElementTree.fromstring(text)
    parts = [element for element in tree if element.tag.endswith("svg")]
    assert [part.get("aria-label") for part in parts] == ["one", "two"]
    assert float(parts[1].get("y")) == float(parts[0].get("height"))
    assert float(tree.get("height")) == sum(float(part.get("height")) for part in parts)
    assert "var(" not in text
