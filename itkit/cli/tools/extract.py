"""The declaration of `itk_extract`."""

from itkit.cli.parameters import DESTINATION, FIX_GEOMETRY, RECURSIVE, SOURCE, Parameter
from itkit.cli.table import Tool

TOOL = Tool(
    name="itk_extract",
    summary="take some classes out of label maps and give them new numbers",
    operation="itkit.process.extract:Extract",
    description="Every value that no mapping names becomes 0, and all values change at once, so 1:2 2:1 swaps two classes. "
    "The number type stays as it is (--dtype chooses another); a new value that does not fit into it fails the case.\n\n"
    "Two classes cannot become one here, since that is more often a slip than a wish; itk_combine merges classes.",
    parameters=(
        SOURCE,
        DESTINATION,
        Parameter(("mapping",), "old value and new value, e.g. 5:1", count="+", metavar="OLD:NEW"),
        RECURSIVE,
        FIX_GEOMETRY,
        Parameter(("--dtype",), "number type of the results, e.g. uint8 (default: that of the source)", metavar="TYPE"),
        Parameter(
            ("--images",),
            "what becomes of a dataset's images, also of those without a label: copied, linked, or left out (default copy)",
            default="copy",
            choices=("copy", "symlink", "none"),
        ),
    ),
    examples=(
        ("itk_extract totalseg/label livers 5:1", "liver masks out of a folder of label maps"),
        ("itk_extract totalseg kidneys 2:1 3:2 --mp", "a dataset with two classes, its images copied"),
    ),
    documents=(
        ("extract_meta.json", "voxels of every value before and after, a case each"),
        ("extract_configs.json", "the parameters"),
    ),
)
