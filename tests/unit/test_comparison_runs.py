"""Runs side by side: states, stale results, damage, ranks, paired comparisons, and how light it is to ask."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from fake_experiment import NAME, make_experiment

from itkit.experiment.comparison import (
    compare_models,
    load_experiment,
    lower_is_better,
    read_cases,
    read_scalars,
    render_table,
    report_document,
    worst_cases,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_experiment(tmp_path_factory.mktemp("fake"))


@pytest.fixture
def fresh(tmp_path):
    return make_experiment(tmp_path, cases=4)


def _states(work, test, **kwargs):
    return {model.name: model.state for model in load_experiment(work, test, **kwargs).models}


def _edit(path: Path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_model_is_listed_with_its_state(made):
    states = _states(*made, models=["never_run", "unet_small"])
    assert states == {
        "never_run": "new",
        "swin_tiny": "failed",
        "unet_long": "partial",
        "unet_small": "tested",
        "unet_strong": "tested",
    }


def test_the_document_has_exactly_the_promised_form(made):
    document = report_document(*made, models=["never_run"])
    json.dumps(document, allow_nan=False)
    assert list(document) == ["experiments"]
    (experiment,) = document["experiments"]
    assert list(experiment) == ["name", "models"]
    assert experiment["name"] == NAME
    for model in experiment["models"]:
        assert list(model) == ["name", "state", "step", "best", "test", "cpu_minutes"]
    small = next(model for model in experiment["models"] if model["name"] == "unet_small")
    assert list(small["best"]) == ["step", "metric", "value", "checkpoint"]
    assert set(small["test"]["Dice"]) == {"mean", "per_class", "ci95"}
    assert 0 < small["test"]["Dice"]["mean"] < 1
    assert next(model for model in experiment["models"] if model["name"] == "never_run")["best"] is None


@pytest.mark.parametrize("record", ["best", "last"])
def test_a_result_counts_for_the_best_and_for_the_last_checkpoint(fresh, record):
    work, test = fresh
    run = json.loads((work / "unet_small" / "run.json").read_text())
    checkpoint = {key: run[record][key] for key in ("step", "checkpoint")}
    _edit(test / "unet_small" / "result.json", **checkpoint)
    assert _states(work, test)["unet_small"] == "tested"


@pytest.mark.parametrize("change", [{"step": 719}, {"checkpoint": "checkpoints/best_iter_1.pth"}])
def test_a_result_of_a_replaced_checkpoint_is_not_shown(fresh, change):
    work, test = fresh
    _edit(test / "unet_small" / "result.json", **change)
    model = next(model for model in load_experiment(work, test).models if model.name == "unet_small")
    assert (model.state, model.metrics, model.cases()) == ("trained", {}, [])
    assert "no longer the best or last checkpoint. Test again." in render_table(load_experiment(work, test))


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not valid JSON"),
        ("[]", "cannot be used"),
        ('{"state": "dancing"}', "unknown state 'dancing'; expected new, partial, trained or failed"),
        ('{"best": 3}', "'best' must be an object, found 3"),
        ('{"step": null}', "'step' must be a number, found None"),
    ],
)
def test_a_damaged_run_is_shown_as_failed_and_the_others_stay(fresh, text, message):
    work, test = fresh
    (work / "unet_small" / "run.json").write_text(text)
    models = {model.name: model for model in load_experiment(work, test).models}
    assert models["unet_small"].state == "failed"
    assert message in models["unet_small"].failure_message
    assert str(work / "unet_small" / "run.json") in models["unet_small"].failure_message
    assert models["unet_strong"].state == "tested"
    assert message in render_table(load_experiment(work, test))


def test_a_damaged_result_is_named(fresh):
    work, test = fresh
    (test / "unet_small" / "result.json").write_text('{"metrics": {')
    model = next(model for model in load_experiment(work, test).models if model.name == "unet_small")
    assert model.state == "trained"
    assert "result.json: is damaged. Test again." in model.failure_message


def test_folders_that_do_not_exist_give_an_empty_experiment(tmp_path):
    assert report_document(tmp_path / "none", tmp_path / "nowhere") == {"experiments": [{"name": "none", "models": []}]}


def test_best_values_are_marked_and_ranked(made):
    experiment = load_experiment(*made)
    assert experiment.main_metric() == "Dice"
    assert experiment.ranks("Dice") == {"unet_strong": 1, "unet_small": 2}
    assert experiment.ranks("HD95") == {"unet_strong": 1, "unet_small": 2}
    line = next(line for line in render_table(experiment).splitlines() if "unet_strong" in line)
    assert line.count("★") == 3
    assert "★" not in next(line for line in render_table(experiment).splitlines() if "unet_small" in line)


def test_equal_means_share_a_rank(fresh):
    work, test = fresh
    metrics = json.loads((test / "unet_small" / "result.json").read_text())["metrics"]
    _edit(test / "unet_strong" / "result.json", metrics=metrics)
    assert set(load_experiment(work, test).ranks("Dice").values()) == {1}


def test_direction_of_metrics():
    assert [lower_is_better(name) for name in ("HD95", "val/ASSD", "loss", "Dice", "NSD", "IoU")] == [True] * 3 + [
        False
    ] * 3


def test_paired_comparison_uses_the_same_cases_only(fresh):
    work, test = fresh
    rows = (test / "unet_small" / "cases.csv").read_text().splitlines()
    (test / "unet_small" / "cases.csv").write_text(
        "\n".join([*rows[:-1], rows[-1].replace("hippocampus", "other")]) + "\n"
    )
    (pair,) = compare_models(load_experiment(work, test), "Dice")
    assert (pair.better, pair.worse, pair.cases) == ("unet_strong", "unet_small", 3)
    one, two = (
        {
            row["case_id"]: (row["Dice/Anterior"] + row["Dice/Posterior"]) / 2
            for row in read_cases(test / name / "cases.csv")
        }
        for name in ("unet_small", "unet_strong")
    )
    changes = [two[case] - one[case] for case in one if case in two]
    assert pair.difference == pytest.approx(sum(changes) / 3)
    assert (pair.wins, pair.losses) == (sum(c > 0 for c in changes), sum(c < 0 for c in changes))


def test_smaller_distances_win(made):
    (pair,) = compare_models(load_experiment(*made), "HD95")
    assert pair.better == "unet_strong"
    assert pair.difference < 0
    assert pair.wins > pair.losses


def test_worst_cases_come_worst_first(made):
    experiment = load_experiment(*made)
    hard = worst_cases(experiment, "Dice", count=20)
    assert [case.mean for case in hard] == sorted(case.mean for case in hard)
    far = worst_cases(experiment, "HD95", count=20)
    assert [case.mean for case in far] == sorted((case.mean for case in far), reverse=True)
    assert hard[0].mean == pytest.approx(sum(hard[0].values.values()) / 2)


def test_scalars_survive_a_line_cut_short_and_other_rubbish(tmp_path):
    path = tmp_path / "scalars.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo\n[3]\n\xff\n\n{"step": 4}\n{"st')
    assert [row["step"] for row in read_scalars(path)] == [1, 4]
    assert read_scalars(tmp_path / "none.jsonl") == []


def test_cases_read_empty_cells_as_undefined(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text('case_id,Dice/a,Dice/b\n"a,1",0.5,\nx,nan,text\n')
    assert read_cases(path) == [
        {"case_id": "a,1", "Dice/a": 0.5, "Dice/b": None},
        {"case_id": "x", "Dice/a": None, "Dice/b": None},
    ]


def test_asking_for_the_document_loads_nothing_heavy(made):
    code = (
        "import sys; from itkit.experiment.comparison import report_document;"
        f"report_document({str(made[0])!r}, {str(made[1])!r});"
        "print([m for m in ('numpy', 'scipy', 'pandas', 'matplotlib', 'jinja2', 'rich', 'PIL', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
