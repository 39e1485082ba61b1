"""'Did you mean': the valid names nearest to a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, candidates: Iterable[str], *, count: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return up to `count` of `candidates` that look like `word`, nearest first; letter case is ignored."""
    import difflib  # only a misspelt word is worth the milliseconds that it takes to load

    by_lower: dict[str, str] = {}
    for candidate in candidates:
        by_lower.setdefault(candidate.lower(), candidate)
    found = difflib.get_close_matches(word.lower(), list(by_lower), n=count, cutoff=cutoff)
    return [by_lower[name] for name in found]


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return ``" Did you mean X?"`` for the nearest candidate, or an empty string if none is near."""
    found = nearest(word, candidates, count=1)
    return f" Did you mean {found[0]}?" if found else ""
