"""Train the 3D networks of the zoo on the hippocampus for equal CPU time, test them, and print their Dice.

    ITKIT_DATA=<folder of datasets> python tools/bench_zoo.py --minutes 3

For each model of 1.1.HippocampusZoo the cost of an iteration is measured first (a few steps on drawn numbers), which gives the
number of iterations; then ``tools/bench_hippocampus.py`` trains, tests and counts in a process of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import bench_hippocampus
import torch
from mmengine.registry import DefaultScope

from itkit import registry
from itkit.errors import UsageError
from itkit.experiment.comparison import load_model as load_run
from itkit.experiment.names import Experiment, find_experiment, select_models
from itkit.mm.config import load_config
from itkit.structures import Seg3DDataSample, VolumeData

EXPERIMENT = "1.1"
STEPS = 3
PIPELINE_S = 0.03
"""CPU seconds that reading and augmenting a batch of this experiment takes."""


def seconds_per_iteration(experiment: Experiment, model: str) -> float:
    """Return CPU seconds of one training step on a batch of drawn numbers, the pipeline added."""
    cfg = load_config(experiment, model)
    with DefaultScope.overwrite_default_scope("itkit"):
        network = registry.MODELS.build(cfg.model).train()
    optimizer = torch.optim.AdamW(network.parameters())
    batch = cfg.train_dataloader.batch_size
    images = torch.randn(batch, 1, *cfg.patch_size)
    samples = [Seg3DDataSample() for _ in range(batch)]
    for sample in samples:
        sample.gt_sem_seg = VolumeData(data=torch.randint(cfg.num_classes, (1, *cfg.patch_size)))
    times = []
    for _ in range(STEPS + 1):
        begin = time.process_time()
        optimizer.zero_grad()
        sum(network(images, samples, mode="loss").values()).backward()
        optimizer.step()
        times.append(time.process_time() - begin)
    return min(times[1:]) + PIPELINE_S


def main() -> int:
    """Read the command line, train each model, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0, help="CPU minutes of training for each (default 3)")
    parser.add_argument("--models", nargs="+", metavar="M", help="only these models")
    parser.add_argument("--work-dir-root", type=Path, metavar="D", help="where runs go (default: a temporary folder)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    experiment = find_experiment(EXPERIMENT, bench_hippocampus.CONFIGS)
    models = select_models(experiment, given.models)
    root = (given.work_dir_root or Path(tempfile.mkdtemp(prefix="bench_zoo_"))).resolve()
    try:
        bench_hippocampus.require_data()
        bench_hippocampus.require_new(experiment, models, root)
    except UsageError as error:
        sys.stderr.write(f"bench_zoo.py: {error}\n")
        return error.exit_code
    for model in models:
        cost = seconds_per_iteration(experiment, model)
        count = max(1, round(60 * given.minutes / cost))
        sys.stderr.write(f"{model}: {cost:.3f} CPU seconds an iteration, {count} iterations\n")
        lengths = ("train_cfg.max_iters", "train_cfg.val_interval", "default_hooks.checkpoint.interval")
        schedule = ("param_scheduler.0.end", "param_scheduler.0.T_max")
        bench_hippocampus.measure(experiment, model, root, [f"{key}={count}" for key in (*lengths, *schedule)])
    found = [load_run(root / experiment.name / model, root / "test" / experiment.name / model) for model in models]
    bench_hippocampus.print_tables(experiment, found, markdown=True)
    return 0 if all(run.state == "tested" for run in found) else 1


if __name__ == "__main__":
    sys.exit(main())
