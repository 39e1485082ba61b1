"""The page of `itk_check --report`: what the dataset is like, what is wrong, and what each case looks like."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from itkit._support.charts import histogram_chart
from itkit._support.page_style import SECURITY, STYLE
from itkit.process.findings import findings_of

if TYPE_CHECKING:
    from itkit.process.check import Check

MOST_PICTURES = 400
"""A page with more pictures would be slow; those of the cases with problems come first."""
_GALLERY = ".gallery{grid-template-columns:repeat(auto-fill,minmax(210px,1fr))} .gallery img{width:auto;max-width:100%}"


def render_page(check: Check, entries: Mapping[str, dict], duplicates: Sequence[Sequence[str]]) -> str:
    """Return the page as HTML in one file, pictures included.

    Args:
        check: The operation; its destination holds the pictures.
        entries: Case id -> ledger entry.
        duplicates: Groups of cases with the same voxels.
    """
    failed = {case: entry for case, entry in entries.items() if entry["state"] != "done"}
    name = escape(Path(check.source).resolve().name)
    parts = [
        f"<section class='card'><h2>{len(entries)} cases, {len(entries) - len(failed)} without problems</h2>"
        f"{_problems(entries)}{_duplicates(duplicates)}</section>",
        "<section class='card'><h2>What the volumes are like</h2><div class='curves'>"
        f"{''.join(_charts(entries))}</div></section>",
        f"<section class='card'><h2>Cases</h2><div class='pictures gallery'>"
        f"{''.join(_pictures(check, entries))}</div></section>",
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<meta http-equiv='Content-Security-Policy' content=\"{SECURITY}\">"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{name}: check</title><style>{STYLE}{_GALLERY}</style></head><body>"
        f"<header class='top'><h1>{name}</h1><p class='lead'>what itk_check found</p></header><main>{''.join(parts)}"
        f"<footer>{escape(_limits(check))}</footer></main></body></html>"
    )


def _limits(check: Check) -> str:
    asked = {key: value for key, value in check.parameters().items() if value not in (None, [], False)}
    return "Parameters: " + ", ".join(f"{key} {value}" for key, value in asked.items())


def _problems(entries: Mapping[str, dict]) -> str:
    rows = []
    for case, entry in sorted(entries.items(), key=lambda pair: (pair[1]["state"] == "done", pair[0])):
        for rule, severity, text in findings_of(entry):
            state = "failed" if severity == "problem" else "partial"
            rows.append(
                f"<tr><th>{escape(case)}</th><td><span class='state {state}'>{escape(rule)}</span></td>"
                f"<td>{escape(text)}</td></tr>"
            )
    if not rows:
        return "<p class='lead'>Nothing was found.</p>"
    head = "<thead><tr><th>case</th><th>rule</th><th>what was found</th></tr></thead>"
    return f"<div class='scroll'><table class='wrap'>{head}<tbody>{''.join(rows)}</tbody></table></div>"


def _duplicates(groups: Sequence[Sequence[str]]) -> str:
    if not groups:
        return ""
    items = "".join(f"<li>{escape(' = '.join(group))}</li>" for group in groups)
    return f"<h3>The same voxels under several names</h3><ul>{items}</ul>"


def _charts(entries: Mapping[str, dict]) -> Iterable[str]:
    records = [entry["record"] for entry in entries.values() if (entry.get("record") or {}).get("entry")]
    if not records:
        return
    for number, axis in enumerate("ZYX"):
        yield histogram_chart([r["entry"]["size"][number] for r in records], title=f"size along {axis}", unit="voxels")
    for number, axis in enumerate("ZYX"):
        values = [r["entry"]["spacing"][number] for r in records]
        yield histogram_chart(values, title=f"spacing along {axis}", unit="mm")
    for key, title in (("min", "smallest intensity of a case"), ("max", "largest intensity of a case")):
        values = [r["entry"][key] for r in records if r["entry"][key] is not None]
        if values:
            yield histogram_chart(values, title=title)
    values, weights = _intensities(records)
    if values:
        yield histogram_chart(values, weights=weights, title="intensities, every case counting the same", bins=48)
    classes = sorted({int(value) for record in records for value in record.get("volumes_ml", ())})
    for value in classes[:24]:
        volumes = [r["volumes_ml"][str(value)] for r in records if str(value) in r.get("volumes_ml", {})]
        yield histogram_chart(
            volumes, title=f"volume of class {value} in {len(volumes)} cases", unit="ml", colour=value
        )


def _intensities(records: Sequence[Mapping]) -> tuple[list[float], list[float]]:
    """The middles of all histogram bins between the 1st and the 99th percentile of all voxels, and what each holds."""
    values, weights = [], []
    for record in records:
        histogram = record.get("histogram")
        if histogram:
            total, width = sum(histogram["counts"]), (histogram["high"] - histogram["low"]) / len(histogram["counts"])
            for number, count in enumerate(histogram["counts"]):
                if count:
                    values.append(histogram["low"] + (number + 0.5) * width)
                    weights.append(count / total)
    if not values:
        return [], []
    order, total, before, kept = sorted(zip(values, weights, strict=True)), sum(weights), 0.0, []
    for value, weight in order:  # the outermost hundredths would leave no room for all others
        if 0.01 * total <= before + weight / 2 <= 0.99 * total:
            kept.append((value, weight))
        before += weight
    return [value for value, _ in kept], [weight for _, weight in kept]


def _pictures(check: Check, entries: Mapping[str, dict]) -> Iterable[str]:
    order = sorted(entries.items(), key=lambda pair: (pair[1]["state"] == "done", pair[0]))
    shown = 0
    for case, entry in order:
        data = _picture(check, case, entry)
        if data is None:
            continue
        if shown == MOST_PICTURES:
            yield f"<p class='lead'>{len(order) - shown} more are in thumbnails/.</p>"
            return
        shown += 1
        state = "" if entry["state"] == "done" else " · <span class='state failed'>problem</span>"
        yield (
            f"<figure><figcaption>{escape(case)}{state}</figcaption><img loading='lazy' alt='three planes of {escape(case)}' "
            f"src='data:image/png;base64,{data}'></figure>"
        )


def _picture(check: Check, case: str, entry: Mapping) -> str | None:
    """The picture of a case in base64."""
    kept = (entry.get("record") or {}).get("picture")
    if kept:
        return kept
    file = check.destination / "thumbnails" / f"{case}.png"
    return base64.b64encode(file.read_bytes()).decode() if file.is_file() else None
