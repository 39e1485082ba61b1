"""The page of an experiment: complete, self-contained, and safe against whatever stands in the files of a run."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from fake_experiment import NAME, make_experiment

from itkit.experiment.report import config_settings, differing_settings, write_report

VOID = {"meta", "img", "br", "hr", "link", "input", "circle", "line", "rect", "path", "polyline"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID or tag in ("circle", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    work, test = make_experiment(tmp_path_factory.mktemp("report"))
    path = write_report(work, test, models=["never_run"])
    assert path == work / "report.html"
    return path.read_text(encoding="utf-8")


def test_everything_a_reader_looks_for_is_there(page):
    parsed = Page(page)
    assert parsed.open == []
    text = " ".join(parsed.text)
    for word in (
        NAME, "unet_small", "unet_strong", "unet_long", "swin_tiny", "never_run", "Anterior", "Posterior", "HD95", "95 %",
        "loss is not finite", "20250301_101500.traceback.txt", "step 1200 of 6000", "b1946ac92492d234", "AMD EPYC 7B13",
        "mmrun 1.0 --models unet_small --all", "model.backbone.channels", "(16, 32, 64, 128)", "training loss", "1.19 M",
    ):  # fmt: skip
        assert word in text, word
    assert parsed.tags.count("img") == 8
    assert all(dict(parsed.attributes).get("src", "data:").startswith("data:") for _ in (0,))


def test_the_page_needs_no_network_and_runs_no_script(page):
    parsed = Page(page)
    assert not {"script", "link", "iframe", "object", "base"} & set(parsed.tags)
    for name, value in parsed.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:image/png;base64,", "#")), value
        assert not name.startswith("on")
    assert not re.search(r"url\(|@import", page)


def test_text_from_runs_is_escaped(tmp_path):
    work, test = make_experiment(tmp_path, cases=5, hostile=True)
    hostile = "<img src=x onerror=alert(1)>"
    run = json.loads((work / "unet_small" / "run.json").read_text())
    run["provenance"]["command"] = hostile
    run["best"]["metric"] = "Dice"
    (work / "unet_small" / "run.json").write_text(json.dumps(run))
    (work / "unet_small" / "config.py").write_text(f"a = '{hostile}'\n")
    result = json.loads((test / "unet_strong" / "result.json").read_text())
    for metric in result["metrics"].values():
        metric["per_class"] = {f"{hostile}": 0.5}
    result["metrics"][f"{hostile}"] = {"mean": 0.5}
    (test / "unet_strong" / "result.json").write_text(json.dumps(result))
    (work / hostile.replace("/", "")).mkdir()
    (work / hostile.replace("/", "") / "config.py").touch()
    text = write_report(work, test).read_text()
    parsed = Page(text)
    assert "script" not in parsed.tags
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert "x" not in [value for name, value in parsed.attributes if name == "src"]
    assert "alert('message')" in "".join(parsed.text)
    assert "&lt;script&gt;alert(1)" in text


def test_an_experiment_without_any_run_has_a_page(tmp_path):
    text = write_report(
        tmp_path / "9.9.Empty", tmp_path / "t", tmp_path / "out" / "page.html", models=["one"]
    ).read_text()
    words = " ".join(Page(text).text)
    assert "Nothing was tested yet" in words
    assert "one" in words


def test_validation_pictures_stand_in_before_the_first_test(tmp_path):
    work, _ = make_experiment(tmp_path, cases=3)
    folder = work / "unet_long" / "visuals" / "val"
    folder.mkdir(parents=True)
    (folder / "case_7.png").write_bytes(b"png")
    text = write_report(work, tmp_path / "nothing").read_text()
    assert "data:image/png;base64,cG5n" in text
    assert "case_7" in text


def test_a_case_name_cannot_lead_out_of_the_folder(tmp_path):
    work, test = make_experiment(tmp_path, cases=3)
    (test / "unet_small" / "secret.png").write_bytes(b"secret")
    table = test / "unet_small" / "cases.csv"
    table.write_text(table.read_text().replace("hippocampus_000", "../secret"))
    assert "c2VjcmV0" not in write_report(work, test).read_text()


def test_results_without_intervals_classes_or_cases_are_shown(tmp_path):
    work, test = make_experiment(tmp_path, cases=3)
    for name in ("unet_small", "unet_strong"):
        path = test / name / "result.json"
        result = json.loads(path.read_text())
        result.update(metrics={"aAcc": {"mean": 0.9}, "odd": {"mean": None}, "bad": 3}, cases=None)
        path.write_text(json.dumps(result))
        (test / name / "cases.csv").unlink()
    assert "0.900" in write_report(work, test).read_text()


def test_an_unwritable_place_is_an_error_and_keeps_the_old_page(tmp_path):
    work, test = make_experiment(tmp_path, cases=3)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        write_report(work, test, tmp_path / "file" / "report.html")


def test_configs_are_compared_setting_by_setting():
    one = "a = 1\nm = dict(t='X', c=(1, 2), l=[dict(k=1), dict(k=2)], e=dict())\nimport os\n"
    two = "a = 1\nm = {'t': 'X', 'c': (1, 3), 'l': [dict(k=1)]}\n"
    assert config_settings(one) == {
        "a": "1", "m.t": "'X'", "m.c": "(1, 2)", "m.l.0.k": "1", "m.l.1.k": "2", "m.e": "dict()",
    }  # fmt: skip
    assert differing_settings({"one": one, "two": two}) == [
        ("m.c", {"one": "(1, 2)", "two": "(1, 3)"}),
        ("m.l.1.k", {"one": "2", "two": None}),
        ("m.e", {"one": "dict()", "two": None}),
    ]
    assert config_settings("not python (") == {}
