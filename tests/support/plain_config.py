"""A plain MMEngine config in the text style."""

custom_imports = dict(imports=["plain_parts"], allow_failed_imports=False)
model = dict(type="LineModel")
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type="LineDataset", size=32),
    sampler=dict(type="DefaultSampler", shuffle=True),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type="LineDataset", size=8),
    sampler=dict(type="DefaultSampler", shuffle=False),
)
test_dataloader = val_dataloader
train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=1)
val_cfg = dict()
test_cfg = dict()
val_evaluator = dict(type="LineError")
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.1))
param_scheduler = dict(type="MultiStepLR", milestones=[2])
default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1))
