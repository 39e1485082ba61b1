"""The table of the zoo names every configuration with its size, cost, memory and licence, on the shell and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from itkit.mm import run
from itkit.models.__main__ import main
from itkit.models.listing import COSTS, zoo_entries, zoo_table
from itkit.models.zoo import configurations


def test_every_configuration_has_all_its_figures():
    entries = {entry["configuration"]: entry for entry in zoo_entries()}
    assert list(entries) == list(configurations())
    for name, (card, made) in configurations().items():
        entry = entries[name]
        assert entry["parameters"] == made.parameters
        assert entry["licence"] == card.licence
        assert entry["memory"] in ("measured", "estimated")
        assert entry["dims"] in card.dims
        assert len(entry["input"]) == entry["dims"] + 1
        assert entry["gmacs"] > 0
        assert entry["memory_mib"] > 0.9 * 4 * made.parameters / 2**20, "the weights alone take as much"
        if made.gmacs is not None:
            assert entry["gmacs"] == pytest.approx(made.gmacs, rel=1e-5)
            assert entry["input"] == list(made.input_size)


def test_nothing_is_listed_that_cannot_be_built():
    assert set(json.loads(COSTS.read_text(encoding="utf-8"))) == set(configurations())


def test_a_line_says_it_all():
    lines = zoo_table().splitlines()
    assert lines[0].split()[:3] == ["configuration", "class", "dims"]
    line = next(line for line in lines if line.startswith("UNETR_btcv "))
    assert line.split()[:5] == ["UNETR_btcv", "UNETR", "3D", "92,790,958", "73.22"]
    assert "  1 x 96 x 96 x 96  " in line
    assert "original: Apache-2.0" in line
    mamba = next(line for line in lines if line.startswith("SegMamba_brats "))
    assert "1469 + 29" in mamba, "the scan is stated beside"
    assert "~" in mamba, "an estimate is marked"


def test_both_commands_print_it(capsys):
    assert main([]) == 0
    table = capsys.readouterr().out
    assert run.main(["--list-models"]) == 0
    assert capsys.readouterr().out == table == zoo_table()
    assert run.main(["--list-models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"models": zoo_entries()}


def test_an_experiment_beside_it_is_refused(capsys):
    assert run.main(["0.3", "--list-models"]) == 2
    assert "shows the whole zoo; name no experiment with it" in capsys.readouterr().err


def test_help_loads_no_network():
    code = "import sys; from itkit.mm import run; run.build_parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
