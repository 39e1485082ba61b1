"""The declaration of `itk_convert`."""

from itkit.cli.parameters import DESTINATION, FIX_GEOMETRY, RECURSIVE, SOURCE, Parameter
from itkit.cli.table import Tool

DATASET = Parameter(
    ("source",), "dataset with image/ and label/, or (with --back) in the other layout; never written to", "folder",
    metavar="SRC",
)  # fmt: skip
BACK = Parameter(
    ("--back", "--from"), "the way back: SRC has the other layout, DST gets image/ and label/", "flag", field="back"
)
LABELS = Parameter(
    ("--labels",), "class names, the background first, instead of those of the source", count="+", metavar="NAME"
)
MODALITY = Parameter(
    ("--modality",), "name of each channel, instead of those of the source, e.g. CT", count="+", metavar="NAME"
)
NAME = Parameter(
    ("--name",), "name of the dataset, instead of the one of the source", metavar="NAME", field="dataset_name"
)
DESCRIPTION = Parameter(("--description",), "a sentence about the dataset", metavar="TEXT")
DOCUMENTS = (
    ("meta.json, split.json", "those of the source"),
    ("conversion.json", "which documents this tool wrote, and case names that had to change"),
)
KEPT = (
    "Voxels, number types, places in space, case names, classes, split and meta.json are the same after there and back. "
    "What differs between image and label fails its case."
)
PLACES = "Unlabelled cases, those of the split's test part and those in no part of it go to imagesTs/, their labels to labelsTs/."


def _format(default: str, others: str) -> Parameter:
    return Parameter(
        ("--format",),
        f"format of the volumes: {others} (default {default}); with --back any (default mha)",
        metavar="EXT",
    )


TOOL = Tool(
    name="itk_convert",
    summary="change the file format or the layout of a dataset, there and back",
    variants=(
        Tool(
            name="format",
            summary="the same volumes in another file format, voxel by voxel",
            operation="itkit.process.convert.format:ConvertFormat",
            description="Voxels, number type, place in space and the layout of the folder stay. NIfTI keeps the place in "
            "space in 32-bit floats: where that moves a number by more than 1e-6, a note says by how many mm.",
            parameters=(
                Parameter(("target",), "mha, mhd, nii, nii.gz or nrrd", metavar="FORMAT"),
                SOURCE,
                DESTINATION,
                RECURSIVE,
                FIX_GEOMETRY,
            ),
            examples=(
                ("itk_convert format nii.gz raw nifti", "every volume of raw/ (or of its image/ and label/)"),
                ("itk_convert format mha raw out -r --mp", "with subfolders, in several processes"),
            ),
            documents=(("meta.json, split.json", "those of a dataset"),),
        ),
        Tool(
            name="msd",
            summary="the Medical Segmentation Decathlon's layout: imagesTr/, labelsTr/, imagesTs/, dataset.json",
            operation="itkit.process.convert.msd:MSD",
            description=f"{KEPT}\n\nChannels become the fourth axis. {PLACES}",
            parameters=(DATASET, DESTINATION, BACK, _format("nii.gz", "nii.gz"), LABELS, MODALITY, NAME, DESCRIPTION),
            examples=(
                ("itk_convert msd Liver Task03_Liver", "to the Decathlon's layout"),
                ("itk_convert msd --back Task03_Liver Liver", "from it"),
            ),
            documents=(("dataset.json", "classes, modality, the cases"), *DOCUMENTS),
        ),
        Tool(
            name="nnunet",
            summary="the raw layout of nnU-Net, version 2: a file a channel, dataset.json",
            operation="itkit.process.convert.nnunet:NnUNet",
            description=f"{KEPT}\n\nDST is called Dataset<number>_<name>, as nnU-Net wants it. {PLACES} Labels must be 0, 1, 2, "
            "... and named; nnU-Net normalises by the names of the channels (CT).",
            parameters=(
                DATASET, DESTINATION, BACK, _format("nii.gz", "nii.gz, nrrd or mha"), LABELS, MODALITY, NAME, DESCRIPTION,
            ),
            examples=(
                ("itk_convert nnunet Liver nnUNet_raw/Dataset003_Liver --modality CT", "to nnU-Net"),
                ("itk_convert nnunet --back nnUNet_raw/Dataset003_Liver Liver", "from it"),
            ),
            documents=(
                ("dataset.json", "channels, classes, number of training cases"),
                ("splits_final.json", "train and val as one fold, where the split has both"),
                *DOCUMENTS,
            ),
        ),
        Tool(
            name="monai",
            summary="MONAI's data list: dataset.json with training, validation and test",
            operation="itkit.process.convert.monai:MONAI",
            description=f"{KEPT}\n\nThe lists are the parts of split.json. Without one, training has the labelled cases and test "
            "the others. Volumes lie in imagesTr/, labelsTr/, imagesTs/ and labelsTs/, channels are the fourth axis.",
            parameters=(
                DATASET, DESTINATION, BACK, _format("nii.gz", "nii.gz or nii"), LABELS, MODALITY, NAME, DESCRIPTION,
                Parameter(
                    ("--split",), "put all labelled cases into one list, whatever split.json says (all: by split.json)",
                    choices=("train", "val", "test", "all"),
                ),
            ),
            examples=(
                ("itk_convert monai Liver Liver_monai --modality CT", "to MONAI"),
                ("itk_convert monai --back Liver_monai Liver", "from it"),
            ),
            documents=(("dataset.json", "the lists, classes, modality"), *DOCUMENTS),
        ),
        Tool(
            name="torchio",
            summary="TorchIO: image/, label/ and subjects.csv with one row a subject",
            operation="itkit.process.convert.torchio:TorchIO",
            description=f"{KEPT}\n\nsubjects.csv has the columns subject, split, image, label; files are relative to its folder, "
            "and what a subject has not is empty. Channels are the fourth axis of a NIfTI file.",
            parameters=(
                DATASET, DESTINATION, BACK, _format("nii.gz", "nii.gz, nii, nrrd or mha"), LABELS, MODALITY, NAME, DESCRIPTION,
                Parameter(("--no-csv",), "write no subjects.csv", "flag"),
            ),
            examples=(
                ("itk_convert torchio Liver Liver_torchio", "to TorchIO"),
                ("itk_convert torchio --back Liver_torchio Liver", "from it"),
            ),
            documents=(("subjects.csv", "subject, part of the split, image, label"), *DOCUMENTS),
        ),
        Tool(
            name="dicom",
            summary="every series of a DICOM folder as one volume, and a table of what it came from",
            operation="itkit.process.convert.dicom:ConvertDicom",
            description="Series are told apart by their UID, orientation and matrix, wherever their files lie; slices are sorted "
            "by their position. A series with missing or doubled slices, mixed spacings or a gantry tilt fails and says so "
            "with figures: no grid would be honest. Rescale slope and intercept are applied.\n\n"
            "Patient names and birth dates are written nowhere. Patient ID and study date are, in the names of the files and in "
            "series.csv, unless --name-by hash; ledger.jsonl holds the paths of the DICOM files in any case.",
            parameters=(
                Parameter(
                    ("source",), "folder of DICOM files, searched with all folders below it; never written to", "folder",
                    metavar="SRC",
                ),
                DESTINATION,
                Parameter(("--format",), "mha, nii.gz, nrrd, mhd or nii (default mha)", default="mha", metavar="EXT"),
                Parameter(
                    ("--name-by",),
                    "patient: PatientID_StudyDate_SeriesNumber_Description; uid: SeriesInstanceUID; hash: a part of its SHA-256, "
                    "and series.csv tells no patient (default patient)",
                    default="patient", choices=("patient", "uid", "hash"),
                ),
                Parameter(("--only",), "modalities to convert, e.g. CT MR (default all)", count="+", metavar="MODALITY"),
                Parameter(
                    ("--min-slices",), "pass over series with fewer slices (default 1)", "positive", default=1, metavar="N"
                ),
            ),
            examples=(
                ("itk_convert dicom download volumes --min-slices 10", "all series with at least ten slices"),
                ("itk_convert dicom download volumes --only CT --name-by hash", "CT, named without the patient"),
            ),
            documents=(
                ("series.csv", "a row a series: UIDs, counts, size, spacing, rescale, and why one failed"),
                ("conversion.json", "which documents this tool wrote"),
            ),
        ),
    ),
)  # fmt: skip
