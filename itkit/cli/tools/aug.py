"""The declaration of `itk_aug`."""

from itkit.cli.parameters import FIX_GEOMETRY, RECURSIVE, Parameter
from itkit.cli.table import Tool

TOOL = Tool(
    name="itk_aug",
    summary="write randomly changed copies of images and their labels",
    operation="itkit.process.aug:Augment",
    description="Copies are called <case>_aug1, <case>_aug2, ... and lie on the grid of their source, in its number type. Space "
    "is turned and scaled about the volume's centre and bent in one interpolation: linear for images, the nearest voxel for "
    "labels. Intensities change afterwards: blur, noise, gamma. What comes into view from outside is filled with the median of "
    "the image's outermost voxels (air in a CT), labels with 0.\n\n"
    "Every number is drawn evenly between nothing and the largest change, from the seed, the case and the copy alone; "
    "aug_meta.json keeps what was drawn. For training, random transforms in the pipeline are better: they never repeat.",
    parameters=(
        Parameter(("images",), "folder of images; never written to", "folder", metavar="IMG"),
        Parameter(("labels",), "folder of label maps with the same names; never written to", "folder", metavar="LBL"),
        Parameter(("-oimg", "--image-destination", "--out-img-folder"), "folder for the images; left out, none are written",
                  "folder", metavar="D", field="image_destination"),
        Parameter(("-olbl", "--label-destination", "--out-lbl-folder"), "folder for the labels; left out, none are written",
                  "folder", metavar="D", field="label_destination"),
        Parameter(("-n", "--copies", "--num"), "copies a case (default 1)", "positive", default=1, metavar="N", field="copies"),
        Parameter(("--random-rot",), "largest angle in degrees, one number or about Z Y X (the volume's own axes)", "number",
                  "+", default=(0.0,), metavar="DEG"),
        Parameter(("--random-scale",), "largest factor minus 1, e.g. 0.2 for 1/1.2 to 1.2", "number", default=0.0, metavar="S"),
        Parameter(("--random-flip",), "probability to mirror, one number or along Z Y X; left and right labels are not swapped",
                  "share", "+", default=(0.0,), metavar="P"),
        Parameter(("--random-elastic",), "largest displacement of a control point in mm", "number", default=0.0, metavar="MM"),
        Parameter(("--elastic-grid",), "distance of the control points in mm (default 32)", "number", default=32.0, metavar="MM"),
        Parameter(("--random-noise",), "largest standard deviation of the noise, as a share of the image's own", "number",
                  default=0.0, metavar="S"),
        Parameter(("--random-gamma",), "largest power minus 1, e.g. 0.5 for 1/1.5 to 1.5", "number", default=0.0, metavar="G"),
        Parameter(("--random-blur",), "largest standard deviation of a Gaussian blur in mm", "number", default=0.0, metavar="MM"),
        Parameter(("--fill",), "intensity of what was outside (default: median of the outermost voxels)", "number", metavar="V"),
        Parameter(("--seed",), "of all draws (default 0)", "count", default=0, metavar="N"),
        RECURSIVE,
        FIX_GEOMETRY,
    ),
    examples=(
        ("itk_aug data/image data/label -oimg aug/image -olbl aug/label -n 4 --random-rot 15", "four turned copies a case"),
        ("itk_aug data/image data/label -oimg aug/image --random-noise 0.1 --random-gamma 0.5", "images only"),
    ),
    documents=(("aug_meta.json", "what was drawn for every copy"),),
)  # fmt: skip
