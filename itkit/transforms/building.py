"""From the config of one transform to the transform."""

from __future__ import annotations

from typing import Any

from mmengine.config import ConfigDict

from itkit._support.suggestions import did_you_mean
from itkit.errors import ConfigError
from itkit.registry import TRANSFORMS


def build_from_config(config: dict[str, Any]) -> Any:
    """Return the object that `config` describes.

    Args:
        config: ``type`` (a class, a registered name or ``"monai.<Class>"``) and the arguments of its constructor. Not
            modified.

    Raises:
        ConfigError: If ``type`` is missing or unknown, or does not accept the arguments.
    """
    arguments = dict(config)
    kind = arguments.pop("type", None)
    if kind is None:
        raise ConfigError(f"a transform's config needs 'type'; found only {sorted(config)}.")
    if isinstance(kind, str):
        found = TRANSFORMS.get(kind)
        if found is None:
            names = list(TRANSFORMS.module_dict)
            raise ConfigError(
                f"transform {kind!r} is not registered.{did_you_mean(kind, names)} itkit has: "
                f"{', '.join(sorted(names))}; MONAI's are called 'monai.<Class>'."
            )
        kind = found
    try:
        return kind(**{key: _plain(value) for key, value in arguments.items()})
    except TypeError as error:
        raise ConfigError(f"transform {getattr(kind, '__name__', kind)} cannot be built: {error}.") from error


def _plain(value: Any) -> Any:
    """Return a config as the plain dict that other libraries expect."""
    return value.to_dict() if isinstance(value, ConfigDict) else value
