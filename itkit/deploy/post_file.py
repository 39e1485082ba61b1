"""The post-processing that was chosen for a trained model, in a file beside its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from itkit.errors import ConfigError

POST_FILE = "post.json"


def read_post(run_dir: Path) -> dict[str, Any] | None:
    """Return what ``post.json`` in a run's folder holds; None if there is none.

    Raises:
        ConfigError: If it cannot be read, or is none.
    """
    path = Path(run_dir) / POST_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}). Remove it, or run itk_infer tune-post again.") from error
    if not isinstance(document, dict) or not isinstance(document.get("steps"), list):
        raise ConfigError(f"{path}: holds no list of steps. Remove it, or run itk_infer tune-post again.")
    return document
