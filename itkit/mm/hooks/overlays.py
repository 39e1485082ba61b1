"""Save pictures of chosen cases, image with truth and prediction, at validation and test."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook

from itkit._support.files import replace_when_complete
from itkit.errors import ConfigError, ItkitError
from itkit.experiment.comparison import OVERLAY_FOLDER, VISUAL_FOLDER
from itkit.process.figures import CaseCuts, cut_case, draw_case, encode_png, mean_foreground_dice
from itkit.registry import HOOKS

_SPLITS = ("val", "test")
_EXPECTED = (
    ItkitError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    MemoryError,
)


@dataclass
class _Candidate:
    """A case that may be drawn; `rank` is larger for cases that are wanted more."""

    case_id: str
    rank: float
    order: int
    cuts: CaseCuts


@HOOKS.register_module()
class OverlayHook(Hook):
    """Draws a few cases of each validation and test.

    Pictures go to ``<work_dir>/visuals/val`` (those of the last validation) and ``<test_dir>/overlays``, and at validation to
    the visualizer's backends. Of each case only the slices that are drawn are kept, so the memory does not depend on the
    size of the volumes. On several processes each one draws its own cases and the first one writes all. A picture that
    cannot be drawn is reported in the log, once, and never stops the run.

    Args:
        cases: ``"worst"`` for the lowest mean Dice, a number for that many from the beginning of the dataset, or a list of
            case names.
        max_cases: Upper limit for ``"worst"`` and for a list. 0 switches the hook off.
        at: ``"val"``, ``"test"`` or both.
        max_share: Share of the training time that drawing may take. Above it the pictures of a validation wait for a later
            one, or for the end of the training.

    Raises:
        ConfigError: If an argument makes no sense.
    """

    priority = "LOW"

    def __init__(
        self,
        cases: str | int | Sequence[str] = "worst",
        max_cases: int = 6,
        at: str | Sequence[str] = _SPLITS,
        max_share: float = 0.01,
    ):
        at = (at,) if isinstance(at, str) else tuple(at)
        for split in at:
            if split not in _SPLITS:
                raise ConfigError(f"OverlayHook: at={split!r} is not a time to draw; use 'val', 'test' or both.")
        if isinstance(cases, str) and cases != "worst":
            raise ConfigError(f"OverlayHook: cases={cases!r}; give 'worst', a number of cases or a list of case names.")
        if isinstance(cases, bool) or (isinstance(cases, int) and cases < 0) or max_cases < 0:
            raise ConfigError(
                f"OverlayHook: cases={cases!r}, max_cases={max_cases!r}; numbers of cases cannot be negative."
            )
        if not 0 <= max_share <= 1:
            raise ConfigError(f"OverlayHook: max_share={max_share!r} must lie between 0 and 1.")
        self.cases = cases if isinstance(cases, (str, int)) else tuple(str(name) for name in cases)
        self.max_cases = cases if isinstance(cases, int) else max_cases
        self.at = at
        self.max_share = max_share
        self._classes: tuple[str, ...] = ()
        self._kept: list[_Candidate] = []
        self._seen = 0
        self._begun: float | None = None
        self._spent = 0.0
        self._waiting = False
        self._warned = False
        self._problem: str | None = None

    def before_train(self, runner) -> None:
        """Start the clock against which the time spent on pictures is held."""
        self._begun, self._spent, self._waiting = time.monotonic(), 0.0, False

    def after_train(self, runner) -> None:
        """Draw the last validation if its pictures had to wait."""
        if self._waiting:
            self._draw_validation(runner)
        self._begun = None

    def before_val_epoch(self, runner) -> None:
        """Forget the cases of the last validation."""
        self._forget(runner, "val_dataloader")

    def before_test_epoch(self, runner) -> None:
        """Forget the cases of the last test."""
        self._forget(runner, "test_dataloader")

    def after_val_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Keep the slices of this batch's cases if they may be drawn."""
        if "val" in self.at:
            self._look(runner, data_batch, outputs)

    def after_test_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Keep the slices of this batch's cases if they may be drawn."""
        if "test" in self.at:
            self._look(runner, data_batch, outputs)

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        """Draw, unless drawing has taken too much time already."""
        if "val" not in self.at:
            return
        allowed = self._begun is None or self._spent <= self.max_share * (time.monotonic() - self._begun)
        if all_gather_object(allowed)[0]:
            self._draw_validation(runner)
        else:
            self._waiting = True

    def after_test_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        """Draw, and take away the pictures of the test before."""
        if "test" in self.at:
            given = getattr(runner, "test_dir", None)
            folder = Path(given) if given is not None else Path(runner.work_dir) / "test"
            self._draw(runner, folder / OVERLAY_FOLDER, publish=False)

    def _forget(self, runner, loader: str) -> None:
        meta = getattr(getattr(getattr(runner, loader, None), "dataset", None), "metainfo", None) or {}
        self._classes = tuple(str(name) for name in meta.get("classes") or ())
        self._kept, self._seen, self._waiting, self._problem = [], 0, False, None

    def _look(self, runner, data_batch: Any, outputs: Sequence[Any] | None) -> None:
        begin = time.monotonic()
        try:
            for image, sample in zip(_images(data_batch), outputs or (), strict=False):
                self._seen += 1
                self._consider(image, sample)
        except _EXPECTED as error:
            self._problem = self._problem or f"{type(error).__name__}: {error}"
        self._spent += time.monotonic() - begin

    def _consider(self, image: Any, sample: Any) -> None:
        """Cut the case if it is wanted, and drop the one that is wanted least."""
        order = self._seen * get_world_size() + get_rank()
        name = _case_name(sample, order)
        if self.max_cases == 0 or (isinstance(self.cases, tuple) and name not in self.cases):
            return
        truth, prediction = _labels(sample, "gt_sem_seg"), _labels(sample, "pred_sem_seg")
        rank = float(-order)
        if self.cases == "worst":
            rank = -2.0
            if truth is not None and prediction is not None:
                count = len(self._classes) or 1 + int(max(truth.max(), prediction.max()))
                score = mean_foreground_dice(truth, prediction, count)
                rank = -2.0 if score is None else -score
        if len(self._kept) >= self.max_cases:
            least = min(self._kept, key=lambda kept: (kept.rank, -kept.order))
            if rank <= least.rank:
                return
            self._kept.remove(least)
        meta = {key: sample.get(key) for key in ("spacing_zyx", "direction_xyz")}
        self._kept.append(
            _Candidate(
                name, rank, order, cut_case(_first_channel(image), truth, prediction, classes=self._classes, **meta)
            )
        )

    def _draw_validation(self, runner) -> None:
        begin = time.monotonic()
        self._draw(runner, Path(runner.work_dir) / VISUAL_FOLDER / "val", publish=True)
        self._waiting = False
        self._spent += time.monotonic() - begin

    def _draw(self, runner, folder: Path, *, publish: bool) -> None:
        """Draw what is wanted most on all processes together; the first one writes it and removes older pictures."""
        mine = [(kept.rank, kept.order, kept.case_id) for kept in self._kept]
        everyone = [entry for part in all_gather_object(mine) for entry in part]
        wanted: dict[str, int] = {}
        for _, order, case in sorted(everyone, key=lambda entry: (-entry[0], entry[1])):
            if len(wanted) < self.max_cases:
                wanted.setdefault(case, order)
        drawn, problem = self._drawn(wanted)
        parts = all_gather_object((drawn, problem))
        self._kept = []
        if get_rank() != 0:
            return
        pictures = {case: picture for part, _ in parts for case, picture in part.items()}
        problems = [problem for _, problem in parts if problem is not None]
        try:
            self._write(runner, folder, {case: pictures[case] for case in wanted if case in pictures}, wanted, publish)
        except _EXPECTED as error:
            problems.append(f"{type(error).__name__}: {error}")
        if problems:
            self._warn(runner, problems[0])

    def _drawn(self, wanted: dict[str, int]) -> tuple[dict[str, np.ndarray], str | None]:
        """Return the pictures of the wanted cases that this process keeps, and what went wrong, if anything did."""
        pictures: dict[str, np.ndarray] = {}
        try:
            for kept in self._kept:
                if wanted.get(kept.case_id) == kept.order:
                    pictures[kept.case_id] = draw_case(kept.cuts, kept.case_id)
        except _EXPECTED as error:
            self._problem = self._problem or f"{type(error).__name__}: {error}"
        return pictures, self._problem

    def _write(
        self, runner, folder: Path, pictures: dict[str, np.ndarray], wanted: dict[str, int], publish: bool
    ) -> None:
        if wanted:
            names = {f"{_file_name(case)}.png" for case in wanted}
            for old in folder.glob("[!.]*.png"):
                if old.name not in names:
                    old.unlink(missing_ok=True)
        for case, picture in pictures.items():
            with replace_when_complete(folder / f"{_file_name(case)}.png") as temporary:
                temporary.write_bytes(encode_png(picture))
            if publish:
                runner.visualizer.add_image(f"overlay_{_file_name(case)}", picture, step=runner.iter)

    def _warn(self, runner, problem: str) -> None:
        if not self._warned:
            self._warned = True
            runner.logger.warning(
                f"OverlayHook: a picture could not be made ({problem}). The run goes on; further failures of this kind are "
                "not reported."
            )


def _images(data_batch: Any) -> Sequence[Any]:
    inputs = data_batch.get("inputs", ()) if isinstance(data_batch, dict) else ()
    return inputs["img"] if isinstance(inputs, dict) and "img" in inputs else inputs


def _first_channel(image: Any) -> np.ndarray:
    """Return the first channel of (C, ...) as an array; bfloat16, which NumPy lacks, as float32."""
    image = image[0]
    if isinstance(image, torch.Tensor):
        image = image.detach()
        return (image.float() if image.is_floating_point() else image).cpu().numpy()
    return np.asarray(image)


def _labels(sample: Any, key: str) -> np.ndarray | None:
    field = getattr(sample, key, None)
    data = getattr(field, "data", None)
    if data is None:
        return None
    data = data.detach().cpu().numpy() if isinstance(data, torch.Tensor) else np.asarray(data)
    return data[0] if data.ndim in (3, 4) and data.shape[0] == 1 else data


def _case_name(sample: Any, number: int) -> str:
    meta = getattr(sample, "metainfo", {})
    name = str(meta.get("case_id") or Path(str(meta.get("img_path") or f"case_{number}")).name)
    return f"{name}_z{meta['z_index']}" if meta.get("z_index") is not None else name


def _file_name(case: str) -> str:
    """Return a case name that is a safe file name: separators replaced, never hidden."""
    return case.replace("/", "_").replace("\\", "_").replace("\0", "_").lstrip(".") or "case"
