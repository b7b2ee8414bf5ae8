"""Test the report: the content of the page, its safety and self-containment, its figures."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from minimal_brain import make_ball, replace
from segment_run import CLASSES, write_run

from jaxcyto.brain.manifest import AreaClass, read_brain
from jaxcyto.cli import main
from jaxcyto.config import Config, DataConfig
from jaxcyto.config_io import to_json
from jaxcyto.data.pair_table import open_pairs
from jaxcyto.errors import InputError
from jaxcyto.models import UNet
from jaxcyto.predict.maps import write_class_map
from jaxcyto.predict.planes import Plane
from jaxcyto.pretext_scores import calibration, constant_errors
from jaxcyto.report import files, gather, write_page
from jaxcyto.report.charts import Curve, curves_chart, ticks
from jaxcyto.report.html import number, tag
from jaxcyto.runs import pair_predictions, record
from jaxcyto.runs.export_file import EXPORT, FIELDS, write_export
from jaxcyto.scores import sum_sections

EVIL = "<script>alert('area')</script>"
VOID = {"br", "hr", "img", "input", "link", "meta"}
BROWSERS = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"


class Page(HTMLParser):
    """A parsed page. Parsing fails if elements are not closed in order."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []  # (element, text)
        self.source = path.read_text()
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.elements.append((name, {key: value or "" for key, value in attributes}))
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.elements.append((name, {key: value or "" for key, value in attributes}))

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, name):
        return [attributes for found, attributes in self.elements if found == name]

    @property
    def sections(self):
        return [attributes["id"] for attributes in self.all("section")]

    @property
    def text(self):
        return " ".join(text for name, text in self.texts if name not in ("script", "style"))


def report(run, *options):
    result = CliRunner().invoke(main, ["report", str(run), *map(str, options)])
    assert result.exit_code == 0, result.output
    return Page(run / "report.html")


def assert_sound(page):
    """Check that a page loads nothing, runs one script and is accessible."""
    for name, attributes in page.elements:
        for key in {"src", "href", "srcset", "data", "action", "poster"} & attributes.keys():
            assert attributes[key].startswith(("data:image/", "#")), (name, key)
        assert not [key for key in attributes if key.startswith("on")]
        assert name not in ("link", "iframe", "object", "base", "form")
    assert "http:" not in page.source and "https:" not in page.source
    assert not re.search(r"url\(|@import", page.source)
    assert len(page.all("script")) == 1
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"].removeprefix("#") for attributes in page.all("a")}
    assert links <= set(ids) and set(page.sections) < links
    assert all(attributes.get("alt") for attributes in page.all("img"))
    pictures = [a for a in page.all("svg") if a.get("aria-hidden") != "true"]
    assert all(a.get("role") == "img" and a.get("aria-label") for a in pictures)
    assert all(attributes.get("aria-label") for attributes in page.all("input"))
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("nav")) == 1
    assert page.all("html") == [{"lang": "en"}]


@pytest.fixture
def pretrained(tiny_brain, tmp_path):
    """Write a finished run of two steps as training does, with invented predictions."""
    data = DataConfig((str(tiny_brain),), patch_px=32, um_per_px=64.0, batch_pairs=8)
    run, table = tmp_path / "pre", open_pairs(data)
    run.mkdir()
    config = to_json(Config(data=data, steps=2)) | {"training_sections": table.training_sections}
    (run / "config.json").write_text(json.dumps(config))
    pair = table.of_split("test")
    true = {
        "distance_mm": table.distance_mm[pair],
        "coordinates_mm": table.coordinates_mm[np.stack([table.first, table.second], 1)[pair]],
    }
    drawn = {f"predicted_{name}": values + 1.5 for name, values in true.items()}
    pair_predictions.save_predictions(run, {"pair": pair, **true, **drawn})
    errors = {"distance_mae_mm": 1.5, "coordinate_mae_mm": 2.6}
    errors["coordinate_mae_mm_per_axis"] = [1.5, 1.5, 1.5]
    constant = {f"{key}_constant": 7.25 for key in errors}
    constant["coordinate_mae_mm_per_axis_constant"] = [7.0, 8.0, 9.0]
    scores = constant_errors(true, 19.0, (8.0, 3.0, 1.0)) | constant
    said = {name: values + 1.5 for name, values in true.items()}
    test = errors | scores | calibration(true, said)
    results = {"steps": 2, "test": test, "test_train_mode": errors}
    (run / "results.json").write_text(json.dumps(results))
    lines = [
        {"step": k, "time": 1e9 + k, "train/loss": 3.0 - k, "train/distance_mae_mm": 9.0,
         "speed/patches_per_second": 4.0, "val/distance_mae_mm": 8.0}
        for k in (1, 2)
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record.add_start(run, 0)
    return run


@pytest.fixture
def segmented(tmp_path, monkeypatch):
    """Write a run on the ball with a test section, before `jaxcyto evaluate`."""
    monkeypatch.chdir(tmp_path)  # config.json names the brain by a relative path
    brain = make_ball(tmp_path / "ball")
    replace(brain / "sections.csv", "b_atlas.tif,train", "b_atlas.tif,test")
    classes = [{**CLASSES[0], "name": EVIL}, *CLASSES[1:]]
    run = write_run(tmp_path / "run", UNet(3, 3, 1, (4, 4)), um_per_px=16.0, classes=classes)
    config = json.loads((run / "config.json").read_text())
    config |= {"steps": 20, "seed": EVIL, "training_sections": ["ball/a", EVIL]}
    config["data"] |= {"brains": ["ball"], "batch_images": 2}
    (run / "config.json").write_text(json.dumps(config))
    lines = [
        {"step": 10 * k, "time": 1e9 + k, "train/loss": 3.0 - k, "train/loss/cross_entropy": 1.5,
         "train/err_seg_percent": 50.0, "val/err_seg_percent": 40.0 - k,
         "speed/images_per_second": 4.0, "speed/data_wait_share": 0.25, f"skipped/{EVIL}": 1}
        for k in (1, 2)
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def add_evaluation(run, brain="ball"):
    config = json.loads((run / "config.json").read_text())
    classes = tuple(AreaClass(**entry) for entry in config["classes"])
    confusion = np.array([[6, 2, 0, 0], [1, 3, 0, 4], [0, 0, 0, 0]])
    results = sum_sections({"b": confusion, EVIL: confusion}, classes)
    (run / "results.json").write_text(json.dumps({"steps": 20} | results))
    folder = run / "evaluation" / brain / "test"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    plane = Plane(run, (125, 125))
    plane.write(0, np.repeat(np.arange(125) // 50, 125).reshape(125, 125).astype(np.uint8))
    path = run / "predictions" / brain / "b.ome.tif"
    path.parent.mkdir(parents=True)
    write_class_map(path, plane, 64.0, classes, "settings")
    return results


# ---- the page -----------------------------------------------------------------------------------


def test_pretraining(pretrained):
    page = report(pretrained)
    assert_sound(page)
    assert page.sections == [
        "scores", "curves", "pairs", "data", "config", "throughput", "environment",
    ]  # fmt: skip
    rows = [text for name, text in page.texts if name in ("th", "td", "span")]
    first = rows.index("Distance")
    assert rows[first : first + 4] == ["Distance", "1.50", "7.25", "\u221279"]
    assert rows[first + 5 : first + 9] == ["0.00", "1.00", "1.00", "1.50"]
    assert "Finished" in page.text and "Not finished" not in page.text
    assert not [a for _, a in page.elements if a.get("class") == "hint"]
    assert page.source.count(" patch of a pair ") == 24
    found = pair_predictions.read_predictions(pretrained)
    near = found["distance_mm"].min()
    captions = [text for name, text in page.texts if name in ("b", "span")]
    first = captions.index(f"{near:.1f} mm")
    assert captions[first + 1] == f"predicted {near + 1.5:.1f}"
    assert "jaxlib" in page.text and "8 \u00d7 cpu" in page.text  # conftest's devices


def test_each_start_adds_to_the_environment(pretrained):
    record.add_start(pretrained, 2)
    found = json.loads((pretrained / "environment.json").read_text())
    assert [entry["step"] for entry in found] == [0, 2]
    assert found[1]["devices"] == {"cpu": 8} and found[1]["packages"]["jax"]
    assert "last of 2 starts" in report(pretrained).text
    (pretrained / "environment.json").write_text("[{")  # damage must not end a run
    record.add_start(pretrained, 3)
    assert len(json.loads((pretrained / "environment.json").read_text())) == 1


def test_an_unfinished_run_says_so(pretrained):
    run = pretrained
    for name in ("results.json", "environment.json", pair_predictions.FILE):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(f"{lines[0]}\n{lines[1][:20]}")  # as after a kill
    page = report(run)
    assert_sound(page)
    assert "Not finished" in page.text and "1 of 2 steps" in page.text
    assert "The test comes after the last step" in page.text
    assert "Not recorded" in page.text
    assert page.source.count(" patch of a pair ") == 24  # without predictions


def test_a_run_that_was_only_started(pretrained, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(pretrained / "config.json", tmp_path / "run")
    page = report(tmp_path / "run")
    assert_sound(page)
    assert "Not finished" in page.text and "Nothing is logged yet" in page.text


def test_segmentation_without_evaluation(segmented):
    page = report(segmented)
    assert_sound(page)
    assert page.sections == [
        "scores", "curves", "sections", "data", "config", "throughput", "environment",
    ]  # fmt: skip
    assert f"jaxcyto evaluate {segmented} ball" in page.text
    assert not page.all("input")


def test_segmentation(segmented):
    results = add_evaluation(segmented)
    page = report(segmented)
    assert_sound(page)
    assert "Finished" in page.text
    assert f"{results['test']['err_seg_percent']:.2f}" in page.text
    [slider] = page.all("input")
    assert slider["type"] == "range" and slider["data-stops"] == "tissue annotation prediction"
    # one image of the tissue and two of classes. The tissue is then shown by reference
    assert len(page.all("image")) == 3 and len(page.all("use")) == 2
    cells = [a for a in page.all("td") if "predicted as" in a.get("title", "")]
    assert cells[0]["title"] == f"{EVIL} predicted as {EVIL}: 75.0 %"
    assert cells[-1]["title"] == "outer predicted as no prediction: 50.0 %"
    rows = [text for name, text in page.texts if name in ("th", "td")]
    first = rows.index("Annotated")  # in the table of the most frequent mistakes
    assert rows[first + 5 : first + 10] == ["outer", "no prediction", "8", "50.0", "57.1"]


def test_text_of_files_is_escaped(segmented):
    add_evaluation(segmented)
    brain = segmented.parent / "ball"
    replace(brain / "brain.toml", 'licence = "CC0-1.0"', f'licence = "{EVIL}"')
    page = report(segmented)
    assert_sound(page)  # the page still has one script only
    assert EVIL not in page.source
    shown = page.text.count(EVIL)
    assert shown >= 8  # area, section, config, license, sections trained on, skipped file
    assert "&lt;script&gt;" in page.source


def test_class_names_do_not_close_the_style_or_attributes(segmented):
    replace(segmented / "config.json", '"#aa0000"', '"red;}</style><b x=\\""')
    result = CliRunner().invoke(main, ["report", str(segmented)])
    assert result.exit_code == 2 and "color" in result.output and "damaged" in result.output


def test_a_brain_elsewhere(segmented, tmp_path):
    add_evaluation(segmented)
    (tmp_path / "away").mkdir()
    moved = shutil.move(tmp_path / "ball", tmp_path / "away" / "ball")
    page = report(segmented)
    assert_sound(page)
    assert "--brain FOLDER" in page.text and not page.all("input")
    page = report(segmented, "--brain", moved)
    assert len(page.all("input")) == 1
    assert read_brain(moved).name in page.text


def test_damaged_files_end_in_one_line(segmented):
    for name, content in (
        ("results.json", '{"steps": 20, "test": {"dice": {}}}'),
        ("results.json", '{"steps": 20, "test": {"dice": {}, "pixels": NaN}}'),
        ("results.json", '{"steps": 1e400}'),
        ("environment.json", '{"step": 0}'),
    ):
        (segmented / name).write_text(content)
        result = CliRunner().invoke(main, ["report", str(segmented)])
        assert result.exit_code == 2 and result.output.count("\n") == 1
        assert name in result.output and "damaged" in result.output
        (segmented / name).unlink()
    with pytest.raises(InputError, match=r"no such run"):
        gather(segmented / "absent")
    for config, words in (({}, "data: no table"), ({"data": {"brains": 3}}, "data.brains: no")):
        (segmented / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=rf"config.json: damaged \({words}"):
            gather(segmented)


def test_figures_and_lists_in_each_others_place_are_damage():
    names = "distance_mae_mm", "coordinate_mae_mm", "coordinate_mae_mm_per_axis"
    own = {name: [1.0, 2.0, 3.0] if "axis" in name else 4.0 for name in names}
    test = own | {f"{name}_constant": value for name, value in own.items()}
    assert files.results({"test": test, "test_train_mode": own}, "pretraining")["test"] == test
    for part, names in (("test", test), ("test_train_mode", own)):
        for name in names:
            for value in (5.0 if "axis" in name else [5.0], [], [1.0, 2.0]):
                tables = {"test": dict(test), "test_train_mode": dict(own)}
                tables[part][name] = value
                with pytest.raises(ValueError, match=name):
                    files.results(tables, "pretraining")


def test_paths_that_are_no_brain_or_no_page(segmented, tmp_path):
    for arguments, words in (
        (("--brain", tmp_path / "absent"), "absent: no such folder"),
        (("--out", tmp_path), "a folder; name the page"),
        (("--out", tmp_path / "absent" / "a.html"), "absent: No such file or directory"),
    ):
        result = CliRunner().invoke(main, ["report", str(segmented), *map(str, arguments)])
        assert result.exit_code == 2 and words in result.output
        assert result.output.count("\n") == 1


def test_an_export_has_no_report(tmp_path):
    write_export(tmp_path / EXPORT, {}, {name: kind() for name, kind in FIELDS.items()})
    for path in (tmp_path, tmp_path / EXPORT):
        with pytest.raises(InputError, match="an export: it has no curves"):
            gather(path)


# ---- figures ------------------------------------------------------------------------------------


def test_json(segmented):
    results = add_evaluation(segmented)
    result = CliRunner().invoke(main, ["report", str(segmented), "--json"])
    found = json.loads(result.stdout)
    assert not (segmented / "report.html").exists()
    assert found["task"] == "segmentation"
    assert found["status"] == {
        "finished": True, "steps": 20, "steps_planned": 20,
        "first_log": "2001-09-09 01:46", "last_log": "2001-09-09 01:46",
    }  # fmt: skip
    assert [entry["title"] for entry in found["scores"]] == ["ball, test", "End of training"]
    assert found["scores"][0]["test"] == results["test"]
    assert found["curves"]["val/err_seg_percent"] == [[10, 20], [39.0, 38.0]]
    # 20 steps of 2 images at 4 images/s
    assert found["throughput"]["seconds_in_steps"] == 10.0
    assert found["skipped"] == {EVIL: 2}
    assert found["data"][0]["annotated"] == {"train": 0, "val": 0, "test": 1, "exclude": 0}


def test_out_and_size(segmented):
    add_evaluation(segmented)
    out = segmented.parent / "elsewhere.html"
    assert write_page(gather(segmented), out) == out.stat().st_size < 5e6


def test_html_escapes_by_default():
    found = tag("td", "1 < 2 & 'x'", tag("b", 3), None, ["<", 4], class_='a"b', hidden=False)
    expected = "1 &lt; 2 &amp; &#x27;x&#x27;<b>3</b>&lt;4"
    assert found == f'<td class="a&quot;b">{expected}</td>'


def test_numbers_are_set_as_in_print():
    assert number(-1234.5, ",.1f") == "\u22121\u202f234.5"
    assert number(None) == number(float("nan")) == "\u2013"


@pytest.mark.parametrize("low, high", [(0, 1), (0, 849), (-21.3, 22.1), (0, 1e-7), (0, 3e12)])
def test_ticks_are_round_and_inside(low, high):
    found = np.array(ticks(low, high, 5))
    step = np.diff(found)
    assert 3 <= len(found) <= 12 and low <= found[0] and found[-1] <= high * (1 + 1e-9)
    np.testing.assert_allclose(step, step[0])
    assert f"{step[0]:.0e}"[0] in "125"


def test_in_a_browser(segmented, tmp_path):
    """Check that the policy allows our script and that the slider reports its position."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser installed ({', '.join(BROWSERS)})")
    add_evaluation(segmented)
    source = report(segmented).source
    probe = """<script>
      const slider = document.querySelector("input");
      slider.value = 0.75;
      slider.dispatchEvent(new Event("input"));
      document.querySelector("h1").textContent = [slider.getAttribute("aria-valuetext"),
        getComputedStyle(document.querySelectorAll(".pane")[1]).opacity].join("; ");
    </script></body>"""
    probed = re.sub(r"<meta http-equiv[^>]*>", "", source).replace("</body>", probe)
    shown = []
    for name, text in (("page", source), ("probed", probed)):
        (tmp_path / f"{name}.html").write_text(text)
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'b'}",
        ]
        command = [browser, *options, "--dump-dom", (tmp_path / f"{name}.html").as_uri()]
        shown.append(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout)
    assert '<html lang="en" class="js">' in shown[0]
    assert "<h1>tissue 25 %, annotation 75 %; " in shown[1]


@pytest.mark.parametrize(
    "values, low, high",
    [
        ([3.0, 1.0, 2.5], 0, 3),
        ([-0.5, -4.0, -2.0], -4, 0),
        ([0.0, 0.0], 0, 1),
        ([-1e-9, 7.3], 0, 8),
    ],
)
def test_axes_hold_zero_and_all_values(values, low, high):
    drawn = curves_chart("loss", [Curve("batch", range(1, len(values) + 1), values)])
    texts = [float(t.replace("\u2212", "-")) for t in re.findall(r'end">([\u2212\d.]+)<', drawn)]
    assert min(texts) <= low and max(texts) >= high and 0 in texts
    _key, path = re.findall(r'<path d="M([^"]*)" class="curve c0"', drawn)
    heights = [float(point.split(",")[1]) for point in path.split()]
    assert len(heights) == len(values) and all(8 <= y <= 212 for y in heights)
    assert np.argmax(values) == np.argmin(heights)
