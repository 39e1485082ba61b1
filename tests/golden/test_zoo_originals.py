"""Every network of the zoo has its original's keys, shapes and parameters, and answers as it does."""

from __future__ import annotations

import pytest
from zoo_figures import card_of, check_all_configurations_are_there, check_outputs, check_state, with_outputs

from itkit.models.zoo import CARD_MODULES

CONFIGURATIONS = [(module, name) for module in CARD_MODULES for name in card_of(module).configurations]
ANSWERED = [(module, name) for module in CARD_MODULES for name in with_outputs(module)]


@pytest.mark.parametrize("module", CARD_MODULES)
def test_every_configuration_is_there(module):
    check_all_configurations_are_there(module)


@pytest.mark.parametrize("module, name", CONFIGURATIONS)
def test_keys_shapes_and_parameters(module, name):
    check_state(module, name)


@pytest.mark.parametrize("module, name", ANSWERED)
def test_outputs(module, name):
    check_outputs(module, name)
