"""The table of `mmrun --list`: experiments, models and how far each is."""

from __future__ import annotations

from typing import Any

_HEADER = ("experiment", "model", "state", "step", "best", "test", "CPU min")


def state_table(document: dict[str, Any]) -> str:
    """Return the ``--json`` document as a text table, one model a row, the experiment's name on its first row."""
    rows = [_HEADER]
    for experiment in document["experiments"]:
        for i, model in enumerate(experiment["models"]):
            rows.append((experiment["name"] if i == 0 else "", *_cells(model)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines) + "\n"


def _cells(model: dict[str, Any]) -> tuple[str, ...]:
    best, test = model["best"], model["test"]
    best_text = f"{best['metric']} {best['value']:.4f} at {best['step']}" if best else ""
    name = ("Dice" if "Dice" in test else next(iter(test))) if test else None
    mean = test[name]["mean"] if name else None
    test_text = f"{name} {mean:.4f}" if mean is not None else ""
    minutes = f"{model['cpu_minutes']:.1f}" if model["cpu_minutes"] else ""
    return model["name"], model["state"], str(model["step"] or ""), best_text, test_text, minutes
