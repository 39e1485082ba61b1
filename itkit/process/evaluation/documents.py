"""Write tables as CSV, Excel, JSON and a page: the same rows in each, and the same bytes for the same rows."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from itkit._support.files import replace_when_complete
from itkit._support.optional import require
from itkit.errors import DataError, UsageError

FORMATS = ("csv", "excel", "json", "html")
"""What `--format` may name; the JSON document is always written, because comparisons read it."""
MAX_SHEET_ROWS = 1_048_576
"""Rows of an Excel sheet, the header among them."""

Row = Mapping[str, Any]


def check_formats(formats: Sequence[str] | None) -> tuple[str, ...]:
    """Return `formats`, each once; None: csv.

    Raises:
        UsageError: If one is unknown.
        MissingDependency: If Excel is asked for and openpyxl is not installed.
    """
    for word in formats or ():
        if word not in FORMATS:
            raise UsageError(f"--format is one of {', '.join(FORMATS)}, not {word!r}.")
    if formats and "excel" in formats:
        require("openpyxl", extra="excel", purpose="--format excel")
    return tuple(dict.fromkeys(formats or ("csv",)))


def document_paths(folder: Path, stem: str, sheets: Iterable[str]) -> dict[str, list[Path]]:
    """Return format -> the files that it consists of."""
    return {
        "csv": [folder / f"{stem}_{sheet}.csv" for sheet in sheets],
        "excel": [folder / f"{stem}.xlsx"],
        "json": [folder / f"{stem}.json"],
        "html": [folder / f"{stem}.html"],
    }


def write_documents(
    folder: Path,
    stem: str,
    formats: Iterable[str],
    sheets: Mapping[str, Sequence[Row]],
    document: Mapping[str, Any],
    page: Callable[[], str],
    *,
    place: Callable[[Path], Path] = Path,
) -> list[Path]:
    """Write the same results in several formats.

    Args:
        folder: Where they finally lie.
        stem: Begin of all names.
        formats: Out of `FORMATS`; JSON is written in any case.
        sheets: Name -> rows of one table; the columns are the keys of all rows in order.
        document: What the JSON file holds, plain data.
        page: Makes the HTML text; only called if it is wanted.
        place: Where to write the file that will become a path.

    Returns:
        The final paths.

    Raises:
        DataError: If a table has more rows than an Excel sheet.
        OSError: If a file cannot be written.
    """
    paths = document_paths(folder, stem, sheets)
    formats, written = {*formats, "json"}, []
    makers: dict[str, Callable[[], list[bytes]]] = {
        "csv": lambda: [_csv(rows) for rows in sheets.values()],
        "excel": lambda: [_excel(sheets, paths["excel"][0])],
        "json": lambda: [(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()],
        "html": lambda: [page().encode()],
    }
    for name in FORMATS:
        if name in formats:
            for path, content in zip(paths[name], makers[name](), strict=True):
                with replace_when_complete(place(path)) as temporary:
                    temporary.write_bytes(content)
                written.append(path)
    return written


def number_text(value: Any) -> str:
    """Return how a cell is written: nine digits of a number, an empty text for None."""
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Return columns of text for a terminal, the first `left` of them aligned to the left, all others to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def aligned(line: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join(map(aligned, lines))


def render_page(template: str, **content: Any) -> str:
    """Return a page made of one of the templates of this folder; all text is escaped."""
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from itkit import __version__
    from itkit._support.page_style import SECURITY, STYLE

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("itkit.process.evaluation").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        style=Markup(STYLE), security=Markup(SECURITY), version=__version__, **content
    )


def safe(svg: str) -> Any:
    """Return a chart as something that a template does not escape."""
    from markupsafe import Markup

    return Markup(svg)


def plain(value: float | None) -> float | None:
    """Return None in place of NaN."""
    return None if value is None or math.isnan(value) else float(value)


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _csv(rows: Sequence[Row]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    columns = _columns(rows)
    writer.writerow(columns)
    writer.writerows([number_text(row.get(column)) for column in columns] for row in rows)
    return stream.getvalue().encode()


def _excel(sheets: Mapping[str, Sequence[Row]], path: str | os.PathLike) -> bytes:
    import datetime

    openpyxl = require("openpyxl", extra="excel", purpose="--format excel")
    cells, styles = openpyxl.cell, openpyxl.styles
    book = openpyxl.Workbook(write_only=True)
    book.properties.created = datetime.datetime(2000, 1, 1)

    def cell(sheet: Any, value: Any, *, bold: bool = False) -> Any:
        if isinstance(value, str):
            value = cells.cell.ILLEGAL_CHARACTERS_RE.sub("?", value)
        made = cells.WriteOnlyCell(sheet, value)
        if isinstance(value, str):
            made.data_type = "s"  # a case called "=1+1" is a text, no formula
        if bold:
            made.font = styles.Font(bold=True)
        return made

    for name, rows in sheets.items():
        if len(rows) >= MAX_SHEET_ROWS:
            raise DataError(f"{len(rows):,} rows of {name} are more than an Excel sheet holds; use --format csv.", path)
        sheet, columns = book.create_sheet(name), _columns(rows)
        sheet.freeze_panes = "A2"
        for number, column in enumerate(columns, 1):
            sheet.column_dimensions[openpyxl.utils.get_column_letter(number)].width = max(10, min(40, len(column) + 3))
        sheet.append([cell(sheet, column, bold=True) for column in columns])
        for row in rows:
            sheet.append([cell(sheet, row.get(column)) for column in columns])
    stream = io.BytesIO()
    book.save(stream)
    return _without_times(stream)


def _without_times(stream: io.BytesIO) -> bytes:
    """Return an Excel file without the time at which it was made, so that equal contents are equal bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "docProps/core.xml":
                content = re.sub(rb"(<dcterms:modified[^>]*>)[^<]*", rb"\g<1>2000-01-01T00:00:00Z", content)
            info = zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(info, content)
    return out.getvalue()
