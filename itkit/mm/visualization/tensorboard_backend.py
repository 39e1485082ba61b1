"""TensorBoard as a backend that a full disk silences, where MMEngine's would end the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.logging import MMLogger
from mmengine.visualization import TensorboardVisBackend as EngineTensorboard

from itkit.registry import VISBACKENDS


class _Forgiving:
    """The writer of TensorBoard's thread: hands its errors to `give_up`, because nobody sees what a thread raises."""

    def __init__(self, writer: Any, give_up: Callable[[OSError], None]):
        self.writer, self.give_up = writer, give_up

    def write(self, data: bytes) -> None:
        try:
            self.writer.write(data)
        except OSError as error:
            self.give_up(error)

    def flush(self) -> None:
        try:
            self.writer.flush()
        except OSError as error:
            self.give_up(error)


@VISBACKENDS.register_module()
class TensorboardVisBackend(EngineTensorboard):
    """Writes scalars and pictures for TensorBoard; when that fails, says so once and leaves it at that.

    The numbers are in ``scalars.jsonl`` too, so a training is not ended for them.

    Args:
        save_dir: Folder of the event files.
    """

    def __init__(self, save_dir: str):
        super().__init__(save_dir)
        self._lost = False

    def _init_env(self) -> None:
        super()._init_env()
        worker = self._tensorboard.file_writer.event_writer._async_writer._worker
        worker._record_writer = _Forgiving(worker._record_writer, self._give_up)

    def add_config(self, config: Any, **kwargs: Any) -> None:
        """Write the config as text."""
        self._write(super().add_config, config, **kwargs)

    def add_image(self, name: str, image: Any, step: int = 0, **kwargs: Any) -> None:
        """Write a picture (rows, columns, RGB)."""
        self._write(super().add_image, name, image, step, **kwargs)

    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """Write one number."""
        self._write(super().add_scalar, name, value, step, **kwargs)

    def close(self) -> None:
        """Write what still waits, and close the file."""
        try:
            super().close()
        except OSError as error:
            self._give_up(error)

    def _write(self, add: Callable, *args: Any, **kwargs: Any) -> None:
        if self._lost:
            return
        try:
            add(*args, **kwargs)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if not self._lost:
            self._lost = True
            MMLogger.get_current_instance().warning(
                f"{self._save_dir}: TensorBoard's files cannot be written ({error.strerror or error}); training goes on "
                "without them. scalars.jsonl holds the same numbers."
            )
