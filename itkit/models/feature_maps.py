"""What a classifier needs to serve as an encoder: which of its maps are asked for, and checkpoints of the whole classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from itkit.errors import ConfigError


def checked_indices(network: str, out_indices: Sequence[int] | None, count: int) -> tuple[int, ...] | None:
    """Return the numbers of the maps that are asked for, or None for a classifier.

    Args:
        network: The name that messages begin with.
        out_indices: Rising numbers of maps, 0 the finest.
        count: Number of maps that there are.

    Raises:
        ConfigError: If a map does not exist or the order is another.
    """
    if out_indices is None:
        return None
    chosen = tuple(out_indices)
    if not chosen or list(chosen) != sorted(set(chosen) & set(range(count))):
        raise ConfigError(
            f"{network}: out_indices must be rising numbers out of {list(range(count))} (0 is the finest map), found "
            f"{list(chosen)}."
        )
    return chosen


def leave_out_on_load(module: nn.Module, *prefixes: str) -> None:
    """Let `module` load state dicts strictly that also hold entries beginning with `prefixes`, which it has no use for.

    So the checkpoint of a whole classifier loads into its encoder, which lacks the head.
    """

    def leave_out(_, state: dict, prefix: str, *__) -> None:
        starts = tuple(prefix + start for start in prefixes)
        for key in [key for key in state if key.startswith(starts)]:
            del state[key]

    module.register_load_state_dict_pre_hook(leave_out)
