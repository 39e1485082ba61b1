"""Ways to spread a training over processes: wrappers and strategies chosen by the single value `parallel`."""

from itkit.mm.strategies.ddp import RemasteredDDP
from itkit.mm.strategies.fsdp import RemasteredFSDP
from itkit.mm.strategies.fsdp_strategy import RemasteredFSDP_Strategy

__all__ = ["RemasteredDDP", "RemasteredFSDP", "RemasteredFSDP_Strategy"]
