"""``python -m itkit.models``: every configuration of the model zoo with its size, cost, memory and licence."""

from __future__ import annotations

import argparse
import sys

from itkit.models.listing import zoo_document, zoo_table


def main(argv: list[str] | None = None) -> int:
    """Print the table, or the JSON document."""
    parser = argparse.ArgumentParser(
        prog="python -m itkit.models",
        description="List the published configurations of the model zoo: parameters, multiply-adds and peak memory of one "
        "forward pass at the canonical input, licence of the original. itkit.models.reference(name) builds one.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    given = parser.parse_args(argv)
    sys.stdout.write(zoo_document() if given.json else zoo_table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
