"""What meets a tool before the first case: folders without rights, subfolders that are passed over, links that lead up."""

import json
from pathlib import Path

import pytest
from tool_data import ledger, make_dataset, make_volume

from itkit.io.volumes import write_volume


def test_a_source_without_rights_is_named(tool, tmp_path, monkeypatch):
    source = make_dataset(tmp_path / "raw", 1)
    is_dir = Path.is_dir

    def refuse(path):
        if path.name == "image":
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refuse)
    code, out, said = tool("itk_orient", source, tmp_path / "out", "LPS", "--json")
    assert code == 1
    assert "raw/image: Permission denied." in said
    assert json.loads(out)["exit_code"] == 1


def test_volumes_in_subfolders_do_not_pass_unnoticed(tool, tmp_path):
    source = make_dataset(tmp_path / "raw", 1)
    write_volume(source / "image/site/b.mha", make_volume())
    code, out, said = tool("itk_orient", source, tmp_path / "out", "LPS", "--json")
    assert code == 0
    assert "1 volumes in subfolders are left out; -r takes them too" in said
    assert len(json.loads(out)["hints"]) == 1
    code, _, said = tool("itk_orient", source, tmp_path / "all", "LPS", "-r")
    assert (code, "are left out" in said) == (0, False)
    assert (tmp_path / "all/image/site/b.mha").is_file()


def test_a_link_above_the_source_is_a_loop(tool, tmp_path):
    write_volume(tmp_path / "raw/sub/a.mha", make_volume())
    write_volume(tmp_path / "beside/b.mha", make_volume())
    (tmp_path / "raw/sub/up").symlink_to(tmp_path)
    (tmp_path / "raw/sub/self").symlink_to(tmp_path / "raw")
    (tmp_path / "raw/other").symlink_to(tmp_path / "beside")
    code, _, said = tool("itk_orient", tmp_path / "raw", tmp_path / "out", "LPS", "-r")
    assert (code, "2 done" in said) == (0, True)
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.mha")) == [
        "other/b.mha",
        "sub/a.mha",
    ]


@pytest.mark.parametrize("source", [".", "raw", "./raw/", "../here/raw"])
def test_a_source_may_be_named_in_any_way(tool, tmp_path, monkeypatch, source):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = make_dataset(Path("raw") if source != "." else Path("."), 1)
    write_volume(folder / "image/deep/er.nii.gz", make_volume())
    assert tool("itk_orient", source, tmp_path / "out", "LPS", "-r")[0] == 0
    names = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*") if path.is_file()
    }
    assert names >= {"image/case_0.mha", "image/deep/er.nii.gz", "label/case_0.mha"}
    assert set(ledger(tmp_path / "out")) == {"case_0", "deep/er"}
