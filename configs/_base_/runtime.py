"""What never varies between experiments: hooks, logging, one seed."""

from mmengine.hooks import LoggerHook

from itkit.mm.hooks import CheckpointHook, EMAHook, OverlayHook

default_scope = "itkit"
randomness = dict(seed=0)
parallel = "none"
precision = "fp32"
compile = False

default_hooks = dict(
    logger=dict(type=LoggerHook, interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type=CheckpointHook, interval=500, by_epoch=False, save_best="Dice", max_keep_ckpts=2),
)
custom_hooks = [
    dict(type=EMAHook, decay=0.99),
    dict(type=OverlayHook),
]
