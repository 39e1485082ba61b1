"""Every network of the zoo trains 20 iterations on the phantoms through ``mmrun --smoke``, and its loss falls."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from itkit.experiment.names import find_experiment
from itkit.models.zoo import CARD_MODULES, cards

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("smoke_zoo", ROOT / "tools/smoke_zoo.py")
SMOKE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(SMOKE)
RUNS = [(version, model) for version in SMOKE.EXPERIMENTS for model in find_experiment(version, SMOKE.CONFIGS).models]


def test_every_network_has_a_config():
    texts = [
        path.read_text(encoding="utf-8")
        for version in SMOKE.EXPERIMENTS
        for path in find_experiment(version, SMOKE.CONFIGS).models.values()
    ]
    assert len(cards()) == len(CARD_MODULES)
    missing = [name for name in cards() if not any(re.search(rf'type="?(itkit\.)?{name}"?,', text) for text in texts)]
    assert missing == []


@pytest.mark.parametrize("version, model", RUNS)
def test_its_loss_falls_in_20_iterations(version, model, tmp_path, capsys):
    ((_, _, iterations, first, last, _),) = SMOKE.smoke(version, [model], tmp_path)
    assert iterations == 20
    assert last < first


def test_the_loss_of_a_queue_is_counted_from_where_it_is_full():
    assert SMOKE.steps_to_fill("type='MoCo', queue_size=33, dim=8)") == 3
    assert SMOKE.steps_to_fill("type='UNETR'") == 0
    assert SMOKE.first_and_last([0.0, 0.0, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2], 2) == (3, 2)
