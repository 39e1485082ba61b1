"""A work folder as `mmrun` leaves it, made up in a second: two tested models, one failed, one half done."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np

from itkit.process.figures import overlay_figure

CLASSES = ("background", "Anterior", "Posterior")
NAME = "1.0.Hippocampus"


def make_experiment(root: Path, *, cases: int = 20, seed: int = 0, hostile: bool = False) -> tuple[Path, Path]:
    """Write the folders of an experiment below `root`; return the experiment's work folder and its test folder.

    Args:
        root: An existing folder.
        cases: Number of test cases.
        seed: Of all made-up numbers.
        hostile: Names and messages hold markup and quotes, as a page must survive them.
    """
    rng = np.random.default_rng(seed)
    work, test = root / "work" / NAME, root / "test" / NAME
    difficulty = rng.gamma(2.0, 0.018, cases)
    prefix = "<script>alert(1)</script>'\"&" if hostile else "hippocampus"
    ids = [f"{prefix.replace('/', '∕')}_{number:03d}" for number in range(cases)]
    models = {"unet_small": (0.875, 0.012, 1_187_000, 4.6, 800), "unet_strong": (0.895, 0.009, 4_730_000, 27.8, 3000)}
    for name, (level, noise, parameters, minutes, steps) in models.items():
        folder, tested = work / name, test / name
        best = steps - steps // 10
        checkpoint = {"step": best, "checkpoint": f"checkpoints/best_iter_{best}.pth"}
        dice = np.clip(level + 0.03 - difficulty[:, None] + rng.normal(0, noise, (cases, 2)) + [0.006, -0.006], 0, 1)
        hd95 = np.clip(1.0 + 18 * (0.93 - dice) + rng.normal(0, 0.1, dice.shape), 0.8, None)
        run = {
            "schema": 1,
            "experiment": NAME,
            "model": name,
            "state": "trained",
            "step": steps,
            "max_steps": steps,
            "best": {**checkpoint, "metric": "Dice", "value": round(float(dice.mean()) + 0.004, 4)},
            "last": {"step": steps, "checkpoint": f"checkpoints/iter_{steps}.pth"},
            "cpu_minutes": minutes,
            "wall_minutes": minutes * 1.04,
            "parameters": parameters,
            "flops": parameters * 2300,
            "failure": None,
            "provenance": _provenance(name),
        }
        _json(folder / "run.json", run)
        _config(folder / "config.py", name, steps)
        _scalars(folder / "scalars.jsonl", steps, level, rng)
        rows = []
        for number, case in enumerate(ids):
            row: dict[str, object] = {"case_id": case}
            for index, label in enumerate(CLASSES[1:]):
                row[f"Dice/{label}"] = round(float(dice[number, index]), 5)
                row[f"IoU/{label}"] = round(float(dice[number, index] / (2 - dice[number, index])), 5)
                row[f"HD95/{label}"] = round(float(hd95[number, index]), 4)
            rows.append(row)
        _table(tested / "cases.csv", rows)
        _json(
            tested / "result.json",
            {
                "schema": 1,
                "experiment": NAME,
                "model": name,
                **checkpoint,
                "sha256": "0" * 64,
                "cpu_minutes": 0.3,
                "classes": list(CLASSES[1:]),
                "metrics": {metric: _summary(rows, metric) for metric in ("Dice", "IoU", "HD95")},
                "cases": cases,
            },
        )
        for number in np.argsort(dice.mean(1))[:4]:
            picture = _picture(ids[number], int(number), float(dice[number].mean()), rng)
            path = tested / "overlays" / f"{ids[number]}.png"
            if "/" not in ids[number]:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture)
    message = "loss is not finite (nan) at step 140; lower the learning rate, or run with --detect-anomaly."
    if hostile:
        message = "<script>alert('message')</script> " + message
    _json(
        work / "swin_tiny" / "run.json",
        {
            "schema": 1,
            "experiment": NAME,
            "model": "swin_tiny",
            "state": "failed",
            "step": 100,
            "max_steps": 2000,
            "best": None,
            "last": {"step": 100, "checkpoint": "checkpoints/iter_100.pth"},
            "cpu_minutes": 1.2,
            "wall_minutes": 1.3,
            "parameters": 9_400_000,
            "flops": None,
            "failure": {"message": message, "traceback_file": "logs/20250301_101500.traceback.txt", "step": 140},
            "provenance": _provenance("swin_tiny"),
        },
    )
    _scalars(work / "swin_tiny" / "scalars.jsonl", 140, 0.3, rng, every=5)
    partial = {
        "schema": 1,
        "experiment": NAME,
        "model": "unet_long",
        "state": "partial",
        "step": 1200,
        "max_steps": 6000,
    }
    best = {"step": 1000, "metric": "Dice", "value": 0.861, "checkpoint": "checkpoints/best_iter_1000.pth"}
    last = {"step": 1200, "checkpoint": "checkpoints/iter_1200.pth"}
    _json(
        work / "unet_long" / "run.json",
        {**partial, "best": best, "last": last, "cpu_minutes": 11.0, "parameters": 4_730_000},
    )
    _scalars(work / "unet_long" / "scalars.jsonl", 1200, 0.87, rng)
    return work, test


def _summary(rows: list[dict], metric: str) -> dict:
    values = np.array([[row[f"{metric}/{name}"] for name in CLASSES[1:]] for row in rows])
    rng = np.random.default_rng(1)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(300)]
    per_class = dict(zip(CLASSES[1:], values.mean(0).tolist(), strict=True))
    return {
        "mean": float(values.mean()),
        "per_class": per_class,
        "ci95": [float(q) for q in np.quantile(means, [0.025, 0.975])],
    }


def _scalars(path: Path, steps: int, level: float, rng: np.random.Generator, every: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(every, steps + 1, every):
        loss = 0.16 + 1.3 * math.exp(-step / (0.09 * steps)) + abs(rng.normal(0, 0.05))
        lr = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        lines.append(
            {"step": step, "split": "train", "time": 1.7e9 + step, "loss": None if step == 50 else loss, "lr": lr}
        )
        lines[-1].update(iter_time=0.22 + rng.normal(0, 0.01), data_time=0.004 + 0.05 * (step < 40))
        if step % max(every, steps // 12 // every * every) == 0:
            dice = level * (1 - math.exp(-step / (0.13 * steps))) + rng.normal(0, 0.003)
            lines.append(
                {"step": step, "split": "val", "time": 1.7e9 + step, "Dice": dice, "Dice/Anterior": dice + 0.01}
            )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text + '{"step": 99999, "split": "tr')  # a crash cut the last line short


def _provenance(model: str) -> dict:
    return {
        "command": f"mmrun 1.0 --models {model} --all",
        "started": "2025-03-01T10:15:00+00:00",
        "git": "4f0c1de (clean)",
        "seed": 42,
        "python": "3.11.9",
        "hardware": {"cpu": "AMD EPYC 7B13", "cores": 2, "memory_gb": 15.6, "gpu": None},
        "dataset": {"fingerprint": "b1946ac92492d234", "cases": {"train": 180, "val": 20, "test": 20}},
        "packages": {"itkit": "0.1.0", "torch": "2.6.0", "monai": "1.4.0", "numpy": "2.1.3"},
    }


def _config(path: Path, model: str, steps: int) -> None:
    channels = "(16, 32, 64, 128)" if model == "unet_small" else "(32, 64, 128, 256)"
    text = f"""max_iters = {steps}
model = dict(
    backbone=dict(
        channels={channels},
        num_res_units=2,
        type='monai.UNet'),
    criterion=[
        dict(type='DiceCELoss', weight=1.0),
    ],
    num_classes=3,
    type='SemSeg3D')
optim_wrapper = dict(
    optimizer=dict(lr=0.003, type='AdamW', weight_decay=0.0001),
    type='OptimWrapper')
train_dataloader = dict(batch_size=2, num_workers=1)
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _picture(case: str, number: int, score: float, rng: np.random.Generator) -> bytes:
    z, y, x = np.meshgrid(np.linspace(-1, 1, 36), np.linspace(-1, 1, 50), np.linspace(-1, 1, 35), indexing="ij")
    bend = 0.35 * np.sin(2.2 * y + number)
    body = ((x - bend) / 0.32) ** 2 + (y / 0.72) ** 2 + ((z + 0.2 * y) / 0.34) ** 2
    truth = np.where(body < 1, np.where(y < -0.05, 1, 2), 0)
    shift = 1 + round(20 * (0.93 - score))
    prediction = np.where(np.roll(body, (shift % 2, 0, shift // 2), (0, 1, 2)) < 0.95, np.where(y < 0.02, 1, 2), 0)
    tissue = 90 * np.exp(-body) + 25 * np.sin(5 * x + 3 * z) * np.cos(4 * y)
    coarse = np.kron(rng.normal(0, 12, (18, 25, 18)), np.ones((2, 2, 2)))[:36, :50, :35]
    return overlay_figure(tissue + coarse, truth, prediction, CLASSES, (1.0, 1.0, 1.0), case)


def _table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _json(path: Path, document: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
