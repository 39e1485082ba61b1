"""Copy the figures that tests need from a folder of reference manifests into ``tests/golden/networks``.

    python tools/copy_network_figures.py ../shared/networks EGE_UNet ege_unet

reads ``EGE_UNet.json`` (parameters, keys, shapes) and ``EGE_UNet.golden.json`` (outputs) and writes ``ege_unet.json``: counts,
one checksum of all keys and shapes, and 16 values of each output. ``--only "MoCo_v3_*"`` takes a part of the manifest, where a
family is more than one module.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

from zoo_figures import FOLDER, state_checksum  # noqa: E402

from itkit._support.files import replace_when_complete  # noqa: E402


def figures(folder: Path, network: str, only: str = "*") -> dict[str, dict]:
    """Return the figures of the configurations in the manifest of `network` whose names match the pattern `only`."""
    manifest = json.loads((folder / f"{network}.json").read_text(encoding="utf-8"))
    outputs = json.loads((folder / f"{network}.golden.json").read_text(encoding="utf-8"))
    found = {}
    for name, stated in manifest.items():
        if not fnmatch.fnmatch(name, only):
            continue
        state = state_checksum(stated["tensors"])
        found[name] = {"network": network, "parameters": stated["params"], "state": state}
        if name in outputs:
            golden = outputs[name]
            kept = [{key: one[key] for key in ("shape", "mean", "std", "values")} for one in golden["outputs"]]
            noise = golden.get("f32_noise_rel", 0.0)
            found[name]["golden"] = {"inputs": golden["inputs"], "noise": noise, "outputs": kept}
    return found


def main() -> None:
    """Read the command line and write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the manifests")
    parser.add_argument("network", help="name of the manifest")
    parser.add_argument("module", help="name of the module in itkit.models")
    parser.add_argument("--only", default="*", help="pattern of names of configurations (default: all)")
    given = parser.parse_args()
    entries = figures(given.folder, given.network, given.only)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
    with replace_when_complete(FOLDER / f"{given.module}.json") as path:
        path.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
