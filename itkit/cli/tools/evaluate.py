"""The declaration of `itk_evaluate`."""

from itkit.cli.parameters import FIX_GEOMETRY, RECURSIVE, Parameter
from itkit.cli.table import Tool

FORMAT = Parameter(
    ("--format",), "how the tables are written besides JSON: csv (default), excel, json (nothing besides) or html; may be "
    "given several times", choices=("csv", "excel", "json", "html"), repeated=True,
)  # fmt: skip
SEED = Parameter(("--seed",), "of the bootstrap intervals (default 0)", "count", default=0, metavar="N")

COMPARE = Tool(
    name="--compare",
    summary="test methods pairwise on the cases they have in common",
    operation="itkit.process.evaluation.compare:Compare",
    description="The results of several evaluations against the same truths are compared case by case: Wilcoxon's signed-rank "
    "test on the differences, adjusted after Holm for the number of tests of a measure, the median and the mean of the "
    "differences with 95 % bootstrap intervals, and a plot of each measure. A case that one of two methods does not have, or "
    "could not be measured, is left out of their comparison and named.",
    parameters=(
        Parameter(
            ("results",), "folders written by itk_evaluate, or tables of cases (cases.csv of mmrun, "
            "evaluation_cases.csv); NAME=PATH gives a method its name", "folder", "+", metavar="RESULT",
        ),
        Parameter(("-o", "--out"), "folder of the tables and plots (default: comparison)", "folder", default="comparison",
                  metavar="OUT", field="destination"),
        Parameter(("--metrics",), "measures to compare (default: all that every method has)", count="+", metavar="M"),
        Parameter(("--per-class",), "compare each class too, not only the cases' means over their classes", "flag"),
        FORMAT,
        SEED,
    ),
    examples=(
        ("itk_evaluate --compare eval_a eval_b", "two methods, all measures"),
        ("itk_evaluate --compare unet=a nnunet=b -o cmp --metrics Dice --format html", "with names, as a page"),
    ),
    documents=(
        ("comparison.json", "all pairs, and the cases that were left out"),
        ("comparison_pairs.csv ...", "the pairs in the formats asked for"),
        ("comparison_<measure>.svg", "the plots"),
    ),
)  # fmt: skip

TOOL = Tool(
    name="itk_evaluate",
    summary="measure predicted label maps against true ones, or compare methods",
    operation="itkit.process.evaluation.evaluate:Evaluate",
    description="Each truth is compared with the prediction of the same name, whatever the formats are: Dice, IoU, Precision, "
    "Recall, Specificity, HD, HD95, ASSD, NSD, and the volumes in mm3 and ml.\n\n"
    "A class that neither has is undefined for the case and not counted. One that only one of them has gets the worst value: 0, "
    "and as a distance the diagonal of the image. A truth without a prediction counts as an empty prediction and as a failure. "
    "A prediction on another grid is refused, or resampled by physical position with --grid resample.\n\n"
    "With --compare, methods are compared instead: itk_evaluate --compare --help.",
    parameters=(
        Parameter(("truth",), "folder of true label maps, or a dataset with label/, or a file", "folder", metavar="GT"),
        Parameter(("prediction",), "folder of predicted label maps with the same names, or a file", "folder", metavar="PRED"),
        Parameter(("destination",), "folder of the tables and of ledger.jsonl; made if missing", "folder", metavar="OUT"),
        Parameter(
            ("--metrics",), "measures, or overlap, surface, all (default all; overlap is several times as fast)",
            count="+", metavar="M",
        ),
        Parameter(("--classes",), "labels or names (default: all that have a name or occur, but for the background)",
                  count="+", metavar="C"),
        Parameter(("--names",), "LABEL=NAME, or JSON files with names (default: meta.json of the truths' dataset)",
                  count="+", metavar="N"),
        Parameter(("--ignore-label",), "label of the truth whose voxels count nowhere", "whole", metavar="L"),
        Parameter(("--tolerance",), "mm within which surfaces agree (NSD), for all or CLASS=MM (default 1)",
                  count="+", metavar="MM"),
        Parameter(("--grid",), "what becomes of a prediction on another grid than its truth: refuse (default) or resample",
                  choices=("refuse", "resample"), default="refuse"),
        Parameter(("--allow-missing",), "a truth without a prediction is no failure; it counts as empty all the same", "flag"),
        RECURSIVE,
        FIX_GEOMETRY,
        FORMAT,
        SEED,
    ),
    examples=(
        ("itk_evaluate data predictions evaluation", "all measures of all cases"),
        ("itk_evaluate data predictions evaluation --metrics overlap --mp", "without surfaces, in several processes"),
        ("itk_evaluate gt pred out --classes liver 3 --names 1=liver 3=spleen --format html", "two classes, as a page"),
        ("itk_evaluate --compare eval_a eval_b", "which method is better"),
    ),
    documents=(
        ("evaluation.json", "cases, classes, measures and summary; what --compare reads"),
        ("evaluation_cases.csv", "one row a case and class (--format csv)"),
        ("evaluation_summary.csv", "means, intervals, quartiles, counts (--format csv)"),
        ("evaluation.xlsx, .html", "the same as sheets, as a page (--format excel, html)"),
    ),
    variants=(COMPARE,),
)  # fmt: skip
