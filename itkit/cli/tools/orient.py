"""The declaration of `itk_orient`."""

from itkit.cli.parameters import DESTINATION, FIX_GEOMETRY, RECURSIVE, SOURCE, Parameter
from itkit.cli.table import Tool

TOOL = Tool(
    name="itk_orient",
    summary="turn the axes of volumes towards one of the 48 orientations",
    operation="itkit.process.orient:Orient",
    description="Axes are permuted and flipped; no voxel changes its value or its place in space, and nothing is "
    "interpolated. An oblique volume keeps its obliqueness: its axes then point nearest to the code.",
    parameters=(
        SOURCE,
        DESTINATION,
        Parameter(
            ("orientation",),
            "three letters, one each of L/R, P/A and S/I: the side towards which the X, Y and Z index grow. LPS is "
            "SimpleITK's identity, RAS nibabel's",
            metavar="ORIENT",
        ),
        Parameter(("--field",), "of a dataset only the images, or only the labels (default: all that is there)",
                  default="dataset", choices=("image", "label", "dataset")),
        RECURSIVE,
        FIX_GEOMETRY,
    ),
    examples=(
        ("itk_orient raw oriented LPS", "every volume of raw/ (or of its image/ and label/)"),
        ("itk_orient raw oriented RAS -r --mp", "with subfolders, in several processes"),
    ),
)  # fmt: skip
