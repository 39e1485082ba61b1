"""The declaration of `itk_patch`."""

from itkit.cli.parameters import DESTINATION, FIX_GEOMETRY, RECURSIVE, SOURCE, Parameter
from itkit.cli.table import Tool

TOOL = Tool(
    name="itk_patch",
    summary="cut volumes into patches for training, each at its own place in space",
    operation="itkit.process.patch:Patch",
    description="Patches cover the volume: they are a stride apart, and the last one of an axis is shifted back until it ends "
    "with the volume. They are named image/<case>_<number> and label/<case>_<number> (itkit's PatchedDataset reads them); "
    "the number counts all patches of the grid, kept or not. Type and spacing stay, the origin is the patch's own.\n\n"
    "A patch with some foreground (label not 0) is kept if its share is at least --minimum-foreground-ratio. A patch without "
    "any is kept with the probability --keep-empty-label-prob.",
    parameters=(
        SOURCE,
        DESTINATION,
        Parameter(
            ("--patch-size",), "voxels, one number or Z Y X; -1 takes the whole axis", "whole", "+",
            required=True, metavar="P",
        ),
        Parameter(
            ("--patch-stride",), "voxels from one patch to the next, one number or Z Y X; -1 is the patch's size (default -1)",
            "whole", "+", default=(-1,), metavar="S",
        ),
        Parameter(("--minimum-foreground-ratio",), "share of foreground a patch must have (default 0)", "share", default=0.0,
                  metavar="R"),
        Parameter(
            ("--keep-empty-label-prob",), "probability to keep a patch without foreground (default: 1, or 0 where a "
            "minimum ratio is asked for)", "share", metavar="P",
        ),
        Parameter(("--still-save-when-no-label",), "keep all patches of a case that has no label, which fails otherwise", "flag"),
        Parameter(("--pad-value",), "put a margin of this value around volumes smaller than a patch, which fail otherwise",
                  "number", metavar="V"),
        Parameter(("--seed",), "of the draws; they depend on it, the case and the number alone (default 0)", "count",
                  default=0, metavar="N"),
        RECURSIVE,
        FIX_GEOMETRY,
    ),
    examples=(
        ("itk_patch data patches --patch-size 96 --patch-stride 48", "overlapping cubes of every case"),
        ("itk_patch data patches --patch-size 1 -1 -1 --minimum-foreground-ratio 0.01", "slices with at least 1 % foreground"),
    ),
    documents=(("crop_meta.json", "start, size and foreground share of every patch"),),
)  # fmt: skip
