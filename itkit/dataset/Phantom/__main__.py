"""The command that writes the phantoms: ``python -m itkit.dataset.Phantom DST``."""

from __future__ import annotations

import sys

from itkit.dataset.Phantom.generate import main

if __name__ == "__main__":
    sys.exit(main())
