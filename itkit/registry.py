"""Child registries (scope ``itkit``) of MMEngine's: parts depend on the registry, never the reverse.

`locations` are strings: a registry imports the rooms that hold its parts only when a name is looked up. Components of
MONAI, transforms included, answer to ``monai.<ClassName>`` wherever a name is allowed; encoders of timm to ``timm.<name>``.
"""

from __future__ import annotations

import functools
import importlib

from mmengine import registry as root
from mmengine.registry import Registry

SCOPE = "itkit"


def _child(name: str, parent: Registry, *locations: str) -> Registry:
    return Registry(name, parent=parent, scope=SCOPE, locations=list(locations))


RUNNERS = _child("runner", root.RUNNERS, "itkit.mm.runner")
LOOPS = _child("loop", root.LOOPS, "itkit.mm.loops")
HOOKS = _child("hook", root.HOOKS, "itkit.mm.hooks")
STRATEGIES = _child("strategy", root.STRATEGIES, "itkit.mm.strategies")
DATASETS = _child("dataset", root.DATASETS, "itkit.dataset")
DATA_SAMPLERS = _child("data sampler", root.DATA_SAMPLERS, "itkit.mm.samplers")
TRANSFORMS = _child("transform", root.TRANSFORMS, "itkit.transforms")
MODELS = _child("model", root.MODELS, "itkit.mm.task_models", "itkit.mm.pretraining", "itkit.models", "itkit.criterion")
MODEL_WRAPPERS = _child("model wrapper", root.MODEL_WRAPPERS, "itkit.mm.strategies")
OPTIMIZERS = _child("optimizer", root.OPTIMIZERS, "itkit.mm.muon")
OPTIM_WRAPPERS = _child("optim wrapper", root.OPTIM_WRAPPERS, "itkit.mm.optim", "itkit.mm.precision")
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    "optim wrapper constructor", root.OPTIM_WRAPPER_CONSTRUCTORS, "itkit.mm.optim", "itkit.mm.muon"
)
PARAM_SCHEDULERS = _child("parameter scheduler", root.PARAM_SCHEDULERS)
METRICS = _child("metric", root.METRICS, "itkit.metrics")
EVALUATOR = _child("evaluator", root.EVALUATOR, "itkit.metrics")
FUNCTIONS = _child("function", root.FUNCTIONS, "itkit.dataset")
VISUALIZERS = _child("visualizer", root.VISUALIZERS, "itkit.mm.visualization")
VISBACKENDS = _child("vis_backend", root.VISBACKENDS, "itkit.mm.visualization")
LOG_PROCESSORS = _child("log_processor", root.LOG_PROCESSORS, "itkit.mm.visualization")

EXPORTERS = Registry("exporter", scope=SCOPE, locations=["itkit.deploy.trained_export"])
"""What `mmrun --export` can write: the engine asks by name, as it and prediction do not know each other."""


class LibraryRegistry(Registry):
    """A registry scope whose names are the public classes of another library's modules.

    Args:
        name: Kind of component, as in every registry.
        parent: MMEngine's root registry of that kind.
        scope: The prefix under which the classes are found, e.g. ``"monai"``.
        modules: Modules that are searched in this order, imported at the first look-up.
    """

    def __init__(self, name: str, *, parent: Registry, scope: str, modules: tuple[str, ...]):
        super().__init__(name, parent=parent, scope=scope)
        self._modules = modules

    def get(self, key: str):
        """Return the class called `key` (with or without the scope in front), or None."""
        key = key.removeprefix(f"{self._scope}.")
        for module in self._modules:
            found = getattr(importlib.import_module(module), key, None)
            if isinstance(found, type):
                return found
        return None

    def names(self) -> list[str]:
        """Return the names of all public classes, sorted."""
        return sorted(
            {
                n
                for m in self._modules
                for n, v in vars(importlib.import_module(m)).items()
                if isinstance(v, type) and n[0] != "_"
            }
        )


class FamilyRegistry(Registry):
    """A registry scope in which every name is one of a family that one class builds, with the name as first argument.

    Args:
        name: Kind of component, as in every registry.
        parent: MMEngine's root registry of that kind.
        scope: The prefix in front of the names, e.g. ``"timm"``.
        factory: ``module:class``, imported at the first look-up.
    """

    def __init__(self, name: str, *, parent: Registry, scope: str, factory: str):
        super().__init__(name, parent=parent, scope=scope)
        self._factory = factory

    def get(self, key: str):
        """Return what builds the member called `key` (with or without the scope in front); whether there is one, it says."""
        module, _, factory = self._factory.partition(":")
        return functools.partial(getattr(importlib.import_module(module), factory), key.removeprefix(f"{self._scope}."))


MONAI_MODELS = LibraryRegistry(
    "model", parent=root.MODELS, scope="monai", modules=("monai.networks.nets", "monai.losses", "monai.networks.blocks")
)
MONAI_TRANSFORMS = LibraryRegistry("transform", parent=root.TRANSFORMS, scope="monai", modules=("monai.transforms",))
TIMM_MODELS = FamilyRegistry("model", parent=root.MODELS, scope="timm", factory="itkit.models.timm_encoder:TimmEncoder")
