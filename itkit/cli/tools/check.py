"""The declaration of `itk_check`."""

from dataclasses import replace

from itkit.cli.parameters import RECURSIVE, SOURCE, Parameter
from itkit.cli.table import Tool

_TRIPLET = ("Z", "Y", "X")

TOOL = Tool(
    name="itk_check",
    summary="open every image and label and say what is wrong with them",
    operation="itkit.process.check:Check",
    description="Files are read in full, checksums and lengths included. Problems are: what cannot be read, NaN or infinite "
    "voxels, sizes and spacings beyond the limits, a label that is missing, lies on another grid, holds fractions, or values "
    "that meta.json does not name. Notes are: a constant image, a label without foreground, grids that differ a little, and "
    "the same voxels under two names.\n\n"
    "check only reports; delete removes the files of cases with problems from the source, after asking; copy and symlink put "
    "the cases without problems into -o. Apart from delete, nothing is ever written into the source.",
    parameters=(
        Parameter(("mode",), "what to do", choices=("check", "delete", "copy", "symlink"),
                  metavar="check|delete|copy|symlink"),
        replace(SOURCE, metavar="FOLDER", help="folder of volumes, or a dataset with image/ and label/; only delete changes it"),
        Parameter(("-o", "--output"), "folder of reports, ledger and copies (default: ./FOLDER.check)", "folder",
                  metavar="OUT"),
        Parameter(("--min-size",), "fewest voxels; -1 ignores an axis", "whole", 3, metavar=_TRIPLET),
        Parameter(("--max-size",), "most voxels", "whole", 3, metavar=_TRIPLET),
        Parameter(("--min-spacing",), "smallest voxel spacing in mm", "number", 3, metavar=_TRIPLET),
        Parameter(("--max-spacing",), "largest voxel spacing in mm", "number", 3, metavar=_TRIPLET),
        Parameter(("--same-size",), "axes that must have the same number of voxels, e.g. Y X", count=2, default=(),
                  metavar=("A", "B")),
        Parameter(("--same-spacing",), "axes that must have the same spacing, e.g. Y X", count=2, default=(), metavar=("A", "B")),
        Parameter(("--require-foreground",), "a label without foreground is a problem, not a note", "flag"),
        Parameter(("--allow-unlabelled",), "an image without label is no problem", "flag"),
        Parameter(("--report",), "write report.html: findings, histograms of size, spacing, intensity and class volume, "
                  "a picture of every case", "flag"),
        Parameter(("--yes",), "delete without asking", "flag"),
        RECURSIVE,
    ),
    examples=(
        ("itk_check check data --report", "what is in data/, with a page to look at"),
        ("itk_check check data --max-spacing 5 1 1 --same-spacing Y X", "thick or uneven slices are problems"),
        ("itk_check copy data -o good --min-size 32 -1 -1", "copies of the cases without problems"),
    ),
    documents=(
        ("series_meta.json", "size, spacing, type, range, label values and findings of every case"),
        ("check.json", "findings by case, the limits, duplicates"),
        ("report.html", "with --report"),
        ("deleted.jsonl", "with delete: what was removed, and why"),
    ),
)  # fmt: skip
