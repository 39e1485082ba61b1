"""Every file under configs/ loads, passes the check, and builds on the meta device."""

from __future__ import annotations

from pathlib import Path

import pytest

from itkit.experiment.names import find_experiment, scan
from itkit.mm.config import load_config
from itkit.mm.config_check import check_config
from itkit.mm.plan import build_on_meta, channels_of, count_flops, patch_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODELS = [(name, model) for name in scan(CONFIGS)[0] for model in find_experiment(name, CONFIGS).models]


def test_no_folder_breaks_the_naming_rule():
    assert scan(CONFIGS)[1] == []


@pytest.mark.parametrize("experiment,model", MODELS)
def test_config_is_valid_and_its_model_can_be_built_and_counted(experiment, model):
    cfg = load_config(find_experiment(experiment, CONFIGS), model)
    check_config(cfg)
    network = build_on_meta(cfg)
    assert all(p.is_meta for p in network.parameters())
    assert count_flops(network, patch_of(cfg), channels_of(network)) > 1e6
