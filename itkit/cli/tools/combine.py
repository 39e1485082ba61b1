"""The declaration of `itk_combine`."""

from dataclasses import replace

from itkit.cli.parameters import DESTINATION, FIX_GEOMETRY, RECURSIVE, Parameter
from itkit.cli.table import Tool

TOOL = Tool(
    name="itk_combine",
    last_word="destination",
    summary="make one label map of several, by rules",
    operation="itkit.process.combine:Combine",
    description="A rule says which values of which source become which value. Rules are tried in the order they are given and "
    "the first one that fits a voxel decides; a voxel that no rule fits is 0. Files belong together by name, whatever "
    "their formats; the result has the format of the first source.\n\n"
    "The label maps of a case must lie on one grid (equal within the tolerances of docs/conventions.md); otherwise the case "
    "fails, because a voxel by voxel union of two grids means nothing.",
    parameters=(
        Parameter(
            ("-i", "--source"), "a name and its folder, or dataset (its label/)", metavar="NAME=DIR", required=True,
            repeated=True, count="+", field="sources_named",
        ),
        Parameter(
            ("--map",), "a rule; values may be ranges (3-7), * is every value but 0; quote it, or write = for ->",
            metavar="NAME:a,b->t", required=True, repeated=True, count="+", field="rules",
        ),
        replace(DESTINATION, count="?"),
        Parameter(
            ("--missing",), "a case that one source lacks: fail it, skip it, or take that source as background "
            "(default fail)", default="fail", choices=("fail", "skip", "background"),
        ),
        RECURSIVE,
        FIX_GEOMETRY,
        Parameter(("--dtype",), "number type of the results (default: the smallest that holds all targets)", metavar="TYPE"),
    ),
    examples=(
        ("itk_combine --source t=tumour o=organs --map 't:1->2' 'o:5->1' merged", "liver with its tumour on top of it"),
        ("itk_combine --source a=totalseg --map 'a:10-14=1' merged", "five lung lobes become one class"),
    ),
    documents=(
        ("combine_meta.json", "voxels of every value and the sources, a case each"),
        ("combine_configs.json", "sources and rules"),
    ),
)  # fmt: skip
