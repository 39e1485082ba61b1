"""The declaration of `itk_resample`."""

from dataclasses import replace

from itkit.cli.parameters import DESTINATION, FIX_GEOMETRY, RECURSIVE, SOURCE, Parameter
from itkit.cli.table import Tool

TOOL = Tool(
    name="itk_resample",
    summary="put volumes on a grid with another spacing or size, or on the grids of other volumes",
    operation="itkit.process.resample:Resample",
    description="Images are interpolated linearly, labels take the nearest voxel; the number type stays (integers are rounded) "
    "and no new label value can appear.\n\n"
    "--spacing keeps the centre of the first voxel and the direction; an axis gets max(1, round(n * old / new)) voxels, so the "
    "extent is kept to half a voxel. --size keeps the outer edges of the volume exactly. --target-folder puts every volume on "
    "the grid of the volume of the same name there, by physical position, whatever its direction.",
    parameters=(
        Parameter(("kind",), "image, label, or dataset (both, each in its way)", choices=("image", "label", "dataset"),
                  metavar="image|label|dataset"),
        replace(SOURCE, help="folder of volumes, or a dataset with image/ and label/ (image and label take only that folder "
                "of it); never written to"),
        DESTINATION,
        Parameter(("--spacing",), "voxel spacing in mm; -1 keeps an axis", "number", 3, metavar=("Z", "Y", "X")),
        Parameter(("--size",), "voxels; -1 keeps an axis", "whole", 3, metavar=("Z", "Y", "X")),
        Parameter(("--target-folder",), "folder of volumes, or dataset, whose grids are taken", "folder", metavar="P"),
        Parameter(("--antialias",), "blur an image along axes whose voxels become larger", "flag"),
        Parameter(("--label-interpolation",), "nearest voxel, or linear: every class is interpolated and the largest share wins, "
                  "for smoother borders (default nearest)", default="nearest", choices=("nearest", "linear")),
        Parameter(("--fill",), "intensity where a target grid reaches beyond the image (default 0); labels are 0 there", "number",
                  default=0.0, metavar="V"),
        RECURSIVE,
        FIX_GEOMETRY,
    ),
    examples=(
        ("itk_resample dataset raw iso --spacing 1 1 1 --mp", "a dataset at 1 mm, in several processes"),
        ("itk_resample image raw thin --spacing 2.5 -1 -1", "another slice distance, the rest as it is"),
        ("itk_resample label pred back --target-folder raw/image", "predictions back on the grids of their images"),
    ),
    documents=(
        ("series_meta.json", "size, spacing, type, range and label values of every result"),
        ("resample_configs.json", "the parameters, and the grid that every volume had"),
    ),
)  # fmt: skip
