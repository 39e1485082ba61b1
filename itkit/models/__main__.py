"""``python -m itkit.models``: every configuration of the model zoo with its size and cost."""

from __future__ import annotations

import sys

from itkit.models.zoo import configurations


def main() -> int:
    """Print the table."""
    rows = [
        ("configuration", "class", "dims", "parameters", "GMACs", "at input (C, Z, Y, X)", "licence of the original")
    ]
    for name, (card, made) in configurations().items():
        size = " x ".join(map(str, made.input_size)) if made.input_size else ""
        cost = "" if made.gmacs is None else f"{made.gmacs:.4g}"
        dims = f"{len(made.input_size) - 1}D" if made.input_size else "/".join(f"{dims}D" for dims in card.dims)
        rows.append((name, card.name, dims, f"{made.parameters:,}", cost, size, card.licence))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [
            cell.rjust(width) if 3 <= at <= 4 else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        sys.stdout.write("  ".join([*cells, row[-1]]).rstrip() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
