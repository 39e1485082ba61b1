"""Measure what inference costs beside the network: time and memory of the sliding window, and the time of each stage.

Each section is one function; run all of them or those that are named. Measurements that must not disturb each other run in
processes of their own, with the same script.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

CONSOLE = Console(width=150)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; all unless named")
    parser.add_argument("--device", default="cpu", help="where the network runs (default: cpu)")
    parser.add_argument("--repeats", type=int, default=3, help="calls in each process; the best counts")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each kind, by turns")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--patch", type=int, default=64, help="section large: edge of the windows, in voxels")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {unknown[0]!r}; choose from {', '.join(SECTIONS)}")
    return options


# ------------------------------------------------------------------------------------------------------ processes


def in_own_process(name: str, options: argparse.Namespace, **environment: str) -> dict:
    """Run the measurement `name` in a process of its own and return what it found."""
    command = [sys.executable, os.path.abspath(__file__), "--child", name]
    for option in ("device", "repeats", "threads", "patch"):
        command += [f"--{option}", str(getattr(options, option))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}, check=False)
    if done.returncode:
        raise SystemExit(f"the measurement {name} failed with exit code {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


def memory_mib(kind: str) -> float:
    """Return ``VmRSS`` (resident now) or ``VmHWM`` (the most so far) of this process."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{kind}:"))


def forget_peak() -> None:
    """Let the most so far begin anew, where the kernel allows it."""
    try:
        with open("/proc/self/clear_refs", "w") as switch:
            switch.write("5")
    except OSError:
        pass


def measured(call: Callable[[], object], repeats: int, device: str) -> tuple[dict, object]:
    """Return the best CPU and wall seconds and the extra memory of `call`, and its last result."""
    import torch

    cuda = device.startswith("cuda")
    best: dict[str, float] = {}
    for repeat in range(repeats):
        result = None
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            on_device = torch.cuda.memory_allocated()
        forget_peak()
        before, usage, wall = memory_mib("VmRSS"), resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        result = call()
        if cuda:
            torch.cuda.synchronize()
        wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
        found = {
            "wall": wall,
            "cpu": after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime,
            "system": after.ru_stime - usage.ru_stime,
        }
        best = {key: min(value, best.get(key, value)) for key, value in found.items()} | {
            key: best[key] for key in ("extra_mib", "cuda_mib") if key in best
        }
        if repeat == 0:
            best["extra_mib"] = memory_mib("VmHWM") - before
            if cuda:
                best["cuda_mib"] = (torch.cuda.max_memory_allocated() - on_device) / 2**20
    return best, result


# ----------------------------------------------------------------------------------------------- section: overhead

SIZE, CLASSES, PATCH, STRIDE = (160, 256, 256), 14, 96, 48
OVERHEAD_KINDS = {
    "monai": "MONAI, logits",
    "monai-labels": "MONAI, logits and argmax",
    "monai-large-pages": "MONAI, logits, large pages",
    "monai-labels-large-pages": "MONAI, logits and argmax, large pages",
    "itkit": "itkit, scores in slabs",
    "itkit-labels": "itkit, scores in slabs, and labels",
    "itkit-labels-gaussian": "itkit, the same, gaussian",
    "network": "the network alone on each window",
}


def overhead(options: argparse.Namespace) -> None:
    """A network of one 1x1x1 convolution: what remains is the sliding window."""
    kinds = OVERHEAD_KINDS
    found: dict[str, dict] = {}
    for _ in range(options.rounds):
        for kind in kinds:
            pages = {"THP_MEM_ALLOC_ENABLE": "1" if kind.endswith("large-pages") or kind == "network" else "0"}
            new = in_own_process(kind, options, **({} if kind.startswith("itkit") else pages))
            old = found.get(kind, new)
            found[kind] = {key: min(value, old[key]) for key, value in new.items()}
    table = Table(
        title=f"{SIZE} voxels, {CLASSES} classes, windows of {PATCH} every {STRIDE}, one a batch; {options.device}, "
        f"{options.threads} thread(s)"
    )
    base = found["monai"]
    for column in ("", "CPU s", "of it system", "wall s", "extra MiB", "CPU / MONAI", "memory / MONAI", "voxels wrong"):
        table.add_column(column, justify="left" if not column else "right")
    for kind, title in kinds.items():
        row = found[kind]
        table.add_row(
            title, f"{row['cpu']:.2f}", f"{row['system']:.2f}", f"{row['wall']:.2f}", f"{row['extra_mib']:.0f}",
            f"{row['cpu'] / base['cpu']:.2f}", f"{row['extra_mib'] / base['extra_mib']:.2f}",
            str(row["wrong"]) if "wrong" in row else "",
        )  # fmt: skip
    CONSOLE.print(table)
    if "cuda_mib" in base:
        for kind, title in kinds.items():
            CONSOLE.print(f"{title}: {found[kind]['cuda_mib']:.0f} MiB extra on the GPU")


def overhead_child(kind: str, options: argparse.Namespace) -> dict:
    """Measure one of the kinds of `overhead`."""
    if kind.startswith("itkit"):
        import itkit.ops  # noqa: F401  # asks torch for large pages, which it must before the first tensor
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    volume = torch.randn(1, 1, *SIZE, device=options.device)
    network = torch.nn.Conv3d(1, CLASSES, 1).eval().to(options.device)
    array = volume[0].cpu().numpy()
    with torch.inference_mode():
        network(volume[:, :, :8, :8, :8])
        if kind.startswith("monai"):
            from monai.inferers import sliding_window_inference

            def call():
                logits = sliding_window_inference(volume, (PATCH,) * 3, 1, network, overlap=0.5)
                return logits.argmax(1)[0].to(torch.uint8).cpu().numpy() if "labels" in kind else logits

        elif kind == "network":
            from itkit.ops.window_lattice import WindowLattice

            lattice = WindowLattice(SIZE, PATCH, STRIDE)

            def call():
                for window in lattice.windows():
                    network(volume[(..., *lattice.inside(window)[0])])

        else:
            call = stream_of(array, network, options, kind)
        best, result = measured(call, options.repeats, options.device)
        if isinstance(result, np.ndarray):
            direct = network(volume)[0].cpu()
            best["wrong"] = int((direct.argmax(0).numpy() != result).sum())
    return best


def stream_of(array: np.ndarray, network, options: argparse.Namespace, kind: str) -> Callable[[], np.ndarray | None]:
    import torch

    from itkit.ops.largest_class import labels_of_scores
    from itkit.ops.window_stream import stream_windows

    def call() -> np.ndarray | None:
        labels = np.empty(SIZE, np.uint8) if "labels" in kind else None
        for slab in stream_windows(
            lambda box: array[(slice(None), *box)], SIZE, 1, network, patch_size=PATCH, patch_stride=STRIDE, axis=1,
            whole_planes=False, forward_batch_windows=1, blending="gaussian" if "gaussian" in kind else "constant",
            asarray=lambda windows: torch.from_numpy(windows).to(options.device),
        ):  # fmt: skip
            if labels is not None:
                np.moveaxis(labels, 1, 0)[slab.place] = labels_of_scores(slab.scores).cpu().numpy()
            del slab  # else its memory is in use while the next one is made
        return labels

    return call


# -------------------------------------------------------------------------------------------------- section: large

LARGE, MANY = (512, 512, 400), 118


def large(options: argparse.Namespace) -> None:
    """Many classes on a large volume: how much memory the whole process takes, and whether the labels are right."""
    found = in_own_process("large", options)
    CONSOLE.print(
        f"{LARGE} voxels, {MANY} classes, windows of {options.patch}, stride half: peak resident memory of the process "
        f"{found['peak_mib'] / 1024:.2f} GiB, {found['cpu']:.0f} CPU s (network {found['network']:.0f}, sliding window "
        f"{found['cpu'] - found['network'] - found['labels']:.0f}, labels {found['labels']:.0f}), {found['windows']} "
        f"windows; voxels that differ from the reference: {found['wrong']} of {found['voxels']}; the scores would take "
        f"{MANY * np.prod(LARGE) * 4 / 2**30:.0f} GiB."
    )


def large_child(options: argparse.Namespace) -> dict:
    import torch

    from itkit.ops.largest_class import labels_of_scores
    from itkit.ops.window_stream import stream_windows

    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    volume = rng.integers(-1000, 1000, LARGE, dtype=np.int16)
    slope = rng.integers(-64, 64, MANY).astype(np.float32)
    offset = rng.integers(-8192, 8192, MANY).astype(np.float32)
    network = torch.nn.Conv3d(1, MANY, 1).eval()
    with torch.no_grad():
        network.weight.copy_(torch.from_numpy(slope).reshape(-1, 1, 1, 1, 1))
        network.bias.copy_(torch.from_numpy(offset))
    network.to(options.device)
    labels, spent = np.empty(LARGE, np.uint8), {"network": 0.0, "labels": 0.0, "windows": 0}

    def forward(windows):
        begin = time.process_time()
        answer = network(windows)
        spent["network"] += time.process_time() - begin
        spent["windows"] += len(windows)
        return answer

    begin = time.process_time()
    with torch.inference_mode():
        for slab in stream_windows(
            lambda box: volume[(None, *box)], LARGE, 1, forward, patch_size=options.patch, whole_planes=False,
            forward_batch_windows=1, asarray=lambda windows: torch.from_numpy(windows).float().to(options.device),
        ):  # fmt: skip
            since = time.process_time()
            labels[slab.place] = labels_of_scores(slab.scores).cpu().numpy()
            spent["labels"] += time.process_time() - since
    cpu, peak = time.process_time() - begin, memory_mib("VmHWM")
    # The reference takes one class after the other, for each intensity that occurs. All numbers are whole: none is rounded.
    intensities = np.arange(-1000, 1000, dtype=np.float32)
    best, expected = intensities * slope[0] + offset[0], np.zeros(intensities.shape, np.uint8)
    for k in range(1, MANY):
        score = intensities * slope[k] + offset[k]
        better = score > best
        expected[better] = k
        np.copyto(best, score, where=better)
    wrong = sum(int((expected[plane + 1000] != found).sum()) for plane, found in zip(volume, labels, strict=True))
    return {"cpu": cpu, "peak_mib": peak, "wrong": wrong, "voxels": volume.size, **spent}


# ------------------------------------------------------------------------------------------------- section: stages

STAGES_CASES = {
    "hippocampus": "hippocampus MR, 8 cases of about 36 x 50 x 35 at 1 mm, 3 classes, the model of configs/1.0.Hippocampus",
    "ct": "CT of 122 x 101 x 30 at 3 mm (nii.gz), 118 classes on 1.5 mm, a U-Net of 32 to 256 channels",
}


def stages(options: argparse.Namespace) -> None:
    """Real images from file to file: where the time goes. It does not depend on weights, so these are drawn."""
    found = {kind: in_own_process(f"stages-{kind}", options) for kind in STAGES_CASES}
    names = [stage for stage in next(iter(found.values())) if stage != "cases"]
    table = Table(
        title=f"share of the time of a case; {options.device}, {options.threads} thread(s), "
        f"{'CPU' if options.device == 'cpu' else 'wall'} seconds"
    )
    table.add_column("stage")
    for kind in STAGES_CASES:
        table.add_column(kind, justify="right")
    totals = {kind: sum(values[stage] for stage in names) for kind, values in found.items()}
    for stage in names:
        shares = (f"{100 * found[kind][stage] / totals[kind]:.2f} %" for kind in found)
        table.add_row(stage, *shares)
    others = (f"{100 * (1 - found[kind]['network'] / totals[kind]):.2f} %" for kind in found)
    table.add_row("all but the network", *others, style="bold")
    table.add_row("seconds a case", *(f"{totals[kind] / found[kind]['cases']:.2f}" for kind in found))
    CONSOLE.print(table)
    for kind, text in STAGES_CASES.items():
        CONSOLE.print(f"{kind}: {text}")


def stages_child(kind: str, options: argparse.Namespace) -> dict:
    """Return the seconds of each stage over all cases of one kind."""
    import tempfile
    from pathlib import Path

    import torch

    from itkit.deploy import Predictor, Recipe
    from itkit.deploy.torch_backend import TorchBackend
    from itkit.io.volumes import write_volume
    from itkit.mm.task_models import SemSeg3D

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    data = Path(os.environ.get("ITKIT_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
    if kind == "stages-ct":
        from monai.networks.nets import UNet

        network = UNet(3, 1, 118, channels=(32, 64, 128, 256), strides=(2, 2, 2), num_res_units=2)
        recipe = Recipe(
            channels=1, classes=[f"class {number}" for number in range(118)], patch_size_zyx=(64, 96, 96), blending="gaussian",
            preprocessing=[
                {"type": "Orient", "orientation": "RAS"},
                {"type": "ResampleToSpacing", "spacing_zyx": [1.5, 1.5, 1.5]},
                {"type": "Window", "level": 40, "width": 400},
            ],
        )  # fmt: skip
        files = [data / "ct" / "example_ct_sm.nii.gz"]
    else:
        from itkit.models import SubvoxelUNet

        network = SubvoxelUNet(in_channels=1, num_classes=3, widths=(24, 48, 96), channels_last=True)
        recipe = Recipe(
            channels=1, classes=("background", "anterior", "posterior"), patch_size_zyx=(32, 48, 32), blending="gaussian",
            sigma_scale=0.25, flip_axes=[[2]], forward_batch_windows=4,
            preprocessing=[{"type": "ClipPercentiles"}, {"type": "ZScore"}],
        )  # fmt: skip
        files = sorted((data / "Task04_Hippocampus").rglob("images*/hippocampus_*.nii.gz"))[:8]
    if not files or not files[0].exists():
        raise SystemExit(f"{data}: the data are not here; say where by ITKIT_SHARED.")
    model = SemSeg3D(network, torch.nn.CrossEntropyLoss(), len(recipe.classes))
    cuda = options.device.startswith("cuda")
    clock = time.perf_counter if cuda else time.process_time
    backend = TorchBackend(model, recipe, device=options.device)
    if cuda:
        forward = backend.forward

        def awaited(windows):
            logits = forward(windows)
            torch.cuda.synchronize()
            return logits

        backend.forward = awaited
    predictor, total = Predictor(backend, clock=clock), {}
    predictor(files[0]) if kind != "stages-ct" else None  # what only the first call costs, counts for none
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            found = predictor(file)
            started = clock()
            write_volume(Path(folder) / file.name, found.labels)
            found.seconds["write"] += clock() - started
            for stage, seconds in found.seconds.items():
                total[stage] = total.get(stage, 0.0) + seconds
    return {**total, "cases": len(files)}


# ---------------------------------------------------------------------------------------------- section: agreement


def agreement(options: argparse.Namespace) -> None:
    """Python, the command and an ONNX file, voxel by voxel."""
    import inference_agreement

    inference_agreement.agreement(options)


# ------------------------------------------------------------------------------------------------ all the sections


SECTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "overhead": overhead,
    "large": large,
    "stages": stages,
    "agreement": agreement,
}
"""Sections by name, in the order in which they run; a new one is a function and an entry here."""
CHILDREN: dict[str, Callable[[str, argparse.Namespace], dict]] = {
    **dict.fromkeys(OVERHEAD_KINDS, overhead_child),
    "large": lambda kind, options: large_child(options),
    **{f"stages-{kind}": stages_child for kind in STAGES_CASES},
}
"""Measurements that run in processes of their own."""


def main() -> None:
    options = parse_arguments()
    if options.child:
        print(json.dumps(CHILDREN[options.child](options.child, options)))
        return
    for name in options.sections or SECTIONS:
        SECTIONS[name](options)


if __name__ == "__main__":
    main()
