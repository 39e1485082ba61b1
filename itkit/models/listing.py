"""The zoo as a table: every configuration with its size, cost, memory and licence, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from itkit.models.zoo import configurations

COSTS = Path(__file__).with_name("zoo_costs.json")
"""What ``tools/measure_zoo.py`` found: input, multiply-adds and peak memory of one forward pass."""

HEADINGS = (
    "configuration", "class", "dims", "parameters", "GMACs", "MiB", "at input (C, Z, Y, X)", "licence of the original",
)  # fmt: skip
RIGHT = ("parameters", "GMACs", "MiB")
LEGEND = (
    "GMACs: 10^9 multiply-adds of convolutions, matrix products and attention; + selective scans, 10^9 operations. MiB: peak "
    "memory of one forward pass\nof a batch of one (float32, no gradients, weights included); ~ estimated from half the "
    "size. Build one: itkit.models.reference(configuration)"
)


def zoo_entries() -> list[dict[str, Any]]:
    """Return one dictionary for each configuration, in the order of the zoo.

    Keys: ``configuration``, ``class`` (the registered name), ``title``, ``paper``, ``licence``, ``dims`` (of this
    configuration), ``parameters``, ``input`` (C, Z, Y, X) or (C, Y, X), ``gmacs``, ``scan_gflops``, ``memory_mib``, and
    ``memory``: ``"measured"`` or ``"estimated"``. What was not measured is None.
    """
    costs = json.loads(COSTS.read_text(encoding="utf-8"))
    entries = []
    for name, (card, made) in configurations().items():
        cost = costs.get(name, {})
        size = cost.get("input")
        entries.append(
            {
                "configuration": name,
                "class": card.name,
                "title": card.title,
                "paper": card.paper,
                "licence": card.licence,
                "dims": len(size) - 1 if size else None,
                "parameters": made.parameters,
                "input": size,
                "gmacs": cost.get("gmacs"),
                "scan_gflops": made.scan_gflops,
                "memory_mib": cost.get("memory_mib"),
                "memory": cost.get("memory"),
            }
        )
    return entries


def zoo_table() -> str:
    """Return the table as text."""
    rows = [HEADINGS]
    for entry in zoo_entries():
        scan = f" + {entry['scan_gflops']:.3g}" if entry["scan_gflops"] else ""
        mark = "~" if entry["memory"] == "estimated" else ""
        rows.append(
            (
                entry["configuration"],
                entry["class"],
                f"{entry['dims']}D" if entry["dims"] else "",
                f"{entry['parameters']:,}",
                "" if entry["gmacs"] is None else f"{entry['gmacs']:.4g}{scan}",
                "" if entry["memory_mib"] is None else f"{mark}{entry['memory_mib']:,}",
                " x ".join(map(str, entry["input"] or ())),
                entry["licence"],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS) - 1)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if heading in RIGHT else cell.ljust(width)
            for cell, width, heading in zip(row, widths, HEADINGS, strict=False)
        ]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join([*lines, "", LEGEND, ""])


def zoo_document() -> str:
    """Return the entries as a JSON document ``{"models": [...]}``."""
    return json.dumps({"models": zoo_entries()}, indent=1) + "\n"
