"""`--fix-geometry` of every tool that reads volumes: refused without it, repaired and recorded with it."""

import numpy as np
import pytest
from tool_data import ledger, make_label, make_volume

from itkit.io.geometry import index_to_world
from itkit.io.volumes import read_volume, write_volume

LEAN = 0.02


@pytest.fixture
def leaning(tmp_path):
    """A dataset of one good and one leaning case (.mha, whose header keeps what it is given)."""
    for folder, make in (("image", make_volume), ("label", make_label)):
        for name in ("good", "leaning"):
            path = tmp_path / "raw" / folder / f"{name}.mha"
            write_volume(path, make(direction=(1.0, 0, 0, 0, 1, 0, 0, 0, 1)))
            if name == "leaning":
                data = path.read_bytes()
                start = data.index(b"TransformMatrix")
                end = data.index(b"\n", start)
                path.write_bytes(data[:start] + f"TransformMatrix = 1 0 {LEAN} 0 1 0 0 0 1".encode() + data[end:])
    return tmp_path / "raw"


TOOLS = {
    "itk_orient": ["{raw}", "{out}", "LPS"],
    "itk_resample": ["dataset", "{raw}", "{out}", "--spacing", 2, 2, 2],
    "itk_patch": ["{raw}", "{out}", "--patch-size", 4],
    "itk_aug": ["{raw}/image", "{raw}/label", "-oimg", "{out}", "--random-rot", 5],
    "itk_extract": ["{raw}", "{out}", "1:1"],
    "itk_combine": ["--source", "a={raw}", "--map", "a:1->1", "{out}"],
    "itk_convert": ["format", "nrrd", "{raw}", "{out}"],
    "itk_evaluate": ["{raw}", "{raw}/label", "{out}"],
}


@pytest.mark.parametrize("name", TOOLS)
def test_refused_without_the_flag_repaired_and_recorded_with_it(tool, tmp_path, leaning, name):
    words = [str(word).format(raw=leaning, out=tmp_path / "out") for word in TOOLS[name]]
    before = {path: path.read_bytes() for path in leaning.rglob("*.mha")}
    code, _, said = tool(name, *words)
    assert code == 1
    assert "is not orthonormal" in said
    assert "--fix-geometry" in said
    assert "1 done, 0 up to date, 1 failed" in said
    code, _, said = tool(name, *words, "--fix-geometry")
    assert code == 0
    assert "was not orthonormal (off by 0.02) and was made so; voxels moved by at most" in said
    entries = ledger(tmp_path / "out")
    (repair, *_) = entries["leaning"]["record"]["geometry_repairs"].values()
    assert repair["before"]["direction_xyz"][1:4] != repair["after"]["direction_xyz"][1:4]
    assert 0 < repair["largest_displacement_mm"] < 1
    assert "geometry_repairs" not in entries["good"]["record"]
    assert {path: path.read_bytes() for path in leaning.rglob("*.mha")} == before


def test_what_is_written_is_straight_and_the_centre_stays(tool, tmp_path, leaning):
    assert tool("itk_orient", leaning, tmp_path / "out", "LPS", "--fix-geometry")[0] == 0
    result = read_volume(tmp_path / "out/image/leaning.mha")
    matrix = np.reshape(result.direction_xyz, (3, 3))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    record = ledger(tmp_path / "out")["leaning"]["record"]["geometry_repairs"]
    before = next(repair["before"] for path, repair in record.items() if "image" in path)
    centre = [(count - 1) / 2 for count in reversed(result.size_zyx)]
    leaning_matrix = np.reshape(before["direction_xyz"], (3, 3)) * np.array(before["spacing_zyx"][::-1])
    there = np.array(before["origin_xyz"]) + leaning_matrix @ centre
    here = (index_to_world(result.geometry) @ [*centre, 1])[:3]
    np.testing.assert_allclose(here, there, atol=1e-9)


@pytest.mark.parametrize("way", ["copy", "symlink"])
def test_a_leaning_image_is_not_copied_beside_a_repaired_label(tool, tmp_path, leaning, way):
    words = [leaning, tmp_path / "out", "1:1", "--images", way, "--fix-geometry"]
    assert tool("itk_extract", *words)[0] == 0
    image, label = (read_volume(tmp_path / "out" / folder / "leaning.mha") for folder in ("image", "label"))
    assert image.geometry == label.geometry
    np.testing.assert_array_equal(image.array, make_volume().array)
    good = tmp_path / "out/image/good.mha"
    assert good.is_symlink() == (way == "symlink")
    assert good.read_bytes() == (leaning / "image/good.mha").read_bytes()
