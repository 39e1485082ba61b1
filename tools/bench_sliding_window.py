"""Measure itkit's sliding window side by side with MONAI's: same network, same windows, alternating runs."""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from monai.inferers import sliding_window_inference as monai_window
from monai.networks.nets import UNet
from rich.console import Console
from rich.table import Table

from itkit.ops.sliding_window import sliding_window_inference


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, nargs=3, default=[160, 256, 256], metavar=("Z", "Y", "X"))
    parser.add_argument("--patch", type=int, nargs=3, default=[64, 96, 96], metavar=("Z", "Y", "X"))
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--batch", type=int, default=2, help="windows in one forward")
    parser.add_argument("--blending", choices=["constant", "gaussian"], default="constant")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-network", action="store_true", help="a network that costs nothing: the overhead alone")
    return parser.parse_args()


def seconds(call, device: torch.device) -> tuple[float, float, torch.Tensor]:
    """Return wall seconds, CPU seconds and the result of `call`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu, result


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    inputs = torch.randn(1, 1, *options.size, device=device)
    network = UNet(3, 1, options.classes, options.channels, [2] * (len(options.channels) - 1), num_res_units=2)
    network = network.eval().to(device)
    if options.no_network:
        network = lambda windows: windows.expand(-1, options.classes, *windows.shape[2:]).clone()  # noqa: E731
    stride = [int(p * (1 - options.overlap)) for p in options.patch]

    def ours():
        return sliding_window_inference(
            inputs,
            network,
            patch_size=options.patch,
            patch_stride=stride,
            forward_batch_windows=options.batch,
            blending=options.blending,
        )

    def theirs():
        return monai_window(
            inputs, options.patch, options.batch, network, overlap=options.overlap, mode=options.blending
        )

    timings: dict[str, list[tuple[float, float]]] = {"itkit": [], "monai": []}
    with torch.inference_mode():
        warm = inputs[(..., *(slice(0, p) for p in options.patch))]
        network(warm.expand(options.batch, -1, -1, -1, -1).contiguous())
        for repeat in range(options.repeats):
            pairs = [("itkit", ours), ("monai", theirs)]
            results = {}
            for name, call in pairs if repeat % 2 == 0 else reversed(pairs):
                wall, cpu, results[name] = seconds(call, device)
                timings[name].append((wall, cpu))
    difference = (results["itkit"] - results["monai"]).abs().max().item()

    table = Table(
        title=f"{options.size} in windows of {options.patch}, overlap {options.overlap}, batch {options.batch}, "
        f"{options.blending}, {device}, {options.threads} thread(s)"
    )
    for column in ("", "best wall s", "median wall s", "best CPU s"):
        table.add_column(column)
    for name, values in timings.items():
        walls, cpus = zip(*values, strict=True)
        table.add_row(name, f"{min(walls):.3f}", f"{statistics.median(walls):.3f}", f"{min(cpus):.3f}")
    Console().print(table)
    wall = {name: min(wall for wall, _ in values) for name, values in timings.items()}
    cpu = {name: min(cpu for _, cpu in values) for name, values in timings.items()}
    Console().print(
        f"ratio itkit / monai: {wall['itkit'] / wall['monai']:.3f} of the best wall time, "
        f"{cpu['itkit'] / cpu['monai']:.3f} of the best CPU time; largest difference of the results {difference:.2e}"
    )


if __name__ == "__main__":
    main()
