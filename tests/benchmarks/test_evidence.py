"""Test the experiment of benchmarks/evidence in its tiny size: units, shards and the page."""

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.evidence import pictures as evidence_pictures
from benchmarks.evidence import report as evidence_report
from benchmarks.evidence import run as evidence
from benchmarks.evidence.atlas_alone import most_probable
from benchmarks.evidence.choose_sections import choose
from benchmarks.evidence.columns import read_results, values
from benchmarks.evidence.plan import ALL_ROWS, ROWS, SIZES, STUDIES, annotated_sections
from benchmarks.evidence.plan import segment_config as make_segment_config
from benchmarks.evidence.units import _trained_seconds, rounded, write_result
from jaxcyto.brain.manifest import AreaClass
from jaxcyto.errors import InputError


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Run row 7 on the phantom, the probes of row 1 and the baselines."""
    out = tmp_path_factory.mktemp("evidence")
    folder = out / "results" / "tiny"
    groups = evidence.plan(["phantom"], ["1", "7"], 1) + evidence.plan(["phantom"], None, 1)[:1]
    for unit in (unit for group in groups for unit in group):
        if (unit.row, unit.kind) == ("1", "segment"):
            continue  # it trains in the same way as row 7
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # few pairs, areas without annotation
            found = evidence.do(unit, "tiny", out, None)
        write_result(folder / f"{unit.name}.json", unit, 1.0, found)
    return folder


def test_the_chain_from_brains_to_the_page(results, tmp_path, monkeypatch, capsys):
    records = [json.loads(path.read_text()) for path in results.glob("*/*.json")]
    kinds = {(record["row"], record["kind"]) for record in records}
    assert kinds == {
        ("1", "probes"), ("7", "pretext"), ("7", "probes"), ("7", "segment"),
        ("baseline", "baseline"),
    }  # fmt: skip
    annotated = {tuple(r["annotated"]) for r in records if "annotated" in r}
    assert len(annotated) == 1 and len(annotated.pop()) == SIZES["tiny"].annotated
    (tmp_path / "results.md").write_text(
        f"# Mine\n{evidence_report.BEGIN}\nold\n{evidence_report.END}\nmine too\n"
    )
    arguments = ["--size", "tiny", "--results", str(results.parent), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["evidence_report.py", *arguments])
    evidence_report.main()
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# Mine\n") and text.endswith("mine too\n") and "old" not in text
    assert "| 7 | contrastive, by co-location | 1 |" in text
    assert "random forest on intensity statistics" in text
    assert "| phantom | the atlas alone | " in text
    assert (tmp_path / "figures" / "results_segment_curves.png").stat().st_size > 10_000
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == []  # no claim on these rows


def test_result_files_say_where_they_come_from(results):
    record = json.loads((results / "phantom" / "row_7_seed_0_segment.json").read_text())
    assert {"commit", "device", "versions", "seconds", "seed", "config"} <= record.keys()
    assert record["config"]["encoder_rate"] == SIZES["tiny"].encoder_rate
    assert np.sum(record["confusion"]) == record["test"]["pixels"]
    assert record["training_pixels"].keys() == record["test"]["dice"].keys()


def test_the_atlas_alone_is_scored_as_the_networks_are(results):
    """It counts the pixels that the training's test counts, and beats a guess."""
    segment = json.loads((results / "phantom/row_7_seed_0_segment.json").read_text())
    baseline = json.loads((results / "phantom/row_baseline_seed_0_baseline.json").read_text())
    alone = baseline["models"]["atlas"]
    assert (
        np.sum(alone["confusion"], axis=1).tolist() == np.sum(segment["confusion"], axis=1).tolist()
    )
    areas = alone["test"]["dice_macro_areas"]
    assert areas > 2 * segment["test"]["dice_macro_areas"] and areas < 0.9


def test_bounds_enclose_what_texture_tells(results):
    """True tissue without areas has a Dice of 0, and true depth finds some of the areas."""
    baseline = json.loads((results / "phantom/row_baseline_seed_0_baseline.json").read_text())
    found = {name: row["test"] for name, row in baseline["models"].items()}
    assert set(found) == {"other cortex", "random forest", "linear", "true depth", "atlas"}
    assert found["other cortex"]["dice_macro_areas"] == 0
    for tissue in ("white matter", "background"):
        assert found["other cortex"]["dice"][tissue] == 1 == found["true depth"]["dice"][tissue]
    assert found["true depth"]["dice_macro_areas"] > 0


def test_the_most_probable_class_of_an_atlas():
    kinds = ["area", "background", "area", "cortex"]
    classes = tuple(AreaClass(kind, "#000000", kind) for kind in kinds)
    atlas = [
        [[255, 0], [0, 200]],
        [[100, 60], [90, 91]],
        [[127, 1], [128, 127]],
        [[0, 0], [1, 128]],
    ]
    expected = [[0, 2], [0, 2], [1, 0], [1, 2]]  # the third is a tie
    found = most_probable(np.array(atlas, np.uint8), classes)
    assert found.dtype == np.uint8 and found.tolist() == expected
    assert most_probable(np.zeros((1, 1, 1), np.uint8), classes[:1]).tolist() == [[255]]


def test_shards_are_the_whole(tmp_path):
    whole = evidence.plan(list(STUDIES), None, 3)
    parts = [evidence.plan(list(STUDIES), None, 3)[k::4] for k in range(4)]
    units = [unit for group in whole for unit in group]
    assert sorted(u.name for part in parts for group in part for u in group) == sorted(
        unit.name for unit in units
    )
    assert len({unit.name for unit in units}) == len(units)
    for group in whole:  # a pre-training comes before the units that use it
        names = [(unit.row, unit.kind) for unit in group]
        for position, (row, kind) in enumerate(names):
            if kind == "segment" and (row, "pretext") in names:
                assert names.index((row, "pretext")) < position


@pytest.mark.parametrize("longer", [1, 3])
def test_rows_differ_in_nothing_but_the_pretraining(results, longer):
    root = results.parents[1] / "brains" / "phantom"
    size = SIZES["tiny"]
    configs = [make_segment_config(size, root, row, 0, None, longer) for row in ROWS]
    assert all(config == configs[0] for config in configs)
    assert configs[0].steps == longer * size.segment_steps
    other = make_segment_config(size, root, "1", 1, None, longer)
    assert other.data.train_sections != configs[0].data.train_sections
    assert annotated_sections(root, 4, 0) == configs[0].data.train_sections


def test_comparison_pairs_seeds():
    def found(dice: float) -> dict:
        return {"segment": {"test": {"dice_macro_areas": dice}}}

    results = {
        ("phantom", "1", 0): found(0.2), ("phantom", "1", 1): found(0.4),
        ("phantom", "4", 0): found(0.4), ("phantom", "4", 1): found(0.3),
        ("phantom", "4", 2): found(0.9),
    }  # fmt: skip
    compared = evidence_report.compare(results, "phantom", "1", "4", "Dice, areas", lower=False)
    assert compared is not None
    assert compared["seeds"] == 2 and compared["better_seeds"] == 1
    np.testing.assert_allclose(compared["change_percent"], 100 * (0.35 / 0.3 - 1))
    assert evidence_report.compare(results, "phantom", "2", "4", "Dice, areas", False) is None


def test_claims_show_the_gain_on_the_null_phantom():
    def found(wrong: float) -> dict:
        return {"segment": {"test": {"err_seg_percent": wrong}}}

    results = {
        ("phantom", "1", 0): found(18.0), ("phantom", "4", 0): found(15.0),
        ("null", "1", 0): found(18.0), ("null", "4", 0): found(17.5),
        ("longest", "1", 0): found(15.0), ("longest", "4", 0): found(12.0),
    }  # fmt: skip
    compared = {each["study"]: each["null_difference"] for each in evidence_report.claims(results)}
    assert compared == {"phantom": -0.5, "longest": None, "null": None}
    table = evidence_report.claims_table(evidence_report.claims(results))
    assert "| 18 | 15 | -3 | -0.5 | -17 % | 1 of 1 seeds |" in table[2]


def test_ablations_are_compared_with_rows_of_the_same_seeds():
    def found(dice: float) -> dict:
        return {"segment": {"test": {"dice_macro_areas": dice}}}

    results = {("phantom", "4", seed): found(0.1 * (seed + 1)) for seed in range(3)}
    results |= {("ablation", "4 l2", seed): found(0.5) for seed in range(2)}
    results |= {("ablation", row, 0): found(0.7) for row in ("4 huber", "2 steps x4")}
    text = "\n".join(evidence_report.choices_tables(results))
    both, _, first = text.partition("Seed 0:")
    assert both.startswith("Seeds 0, 1:") and "| 4 | distance + coordinates | 2 |" in both
    assert "0.150 ± 0.071" in both and "4 l2" in both and "huber" not in both
    assert "| 4 | distance + coordinates | 1 |" in first and "0.100" in first
    assert "huber" in first and "2 steps x4" in first and "l2" not in first


def test_dice_of_the_areas_that_were_seen(tmp_path):
    classes = [{"name": name, "kind": "area"} for name in "abc"] + [{"name": "w", "kind": "white"}]
    record = {
        "study": "phantom", "seed": 0, "kind": "segment", "classes": classes, "annotated": ["0001"],
        "test": {"dice": {"a": 0.4, "b": 0.0, "c": None, "w": 0.9}}, "confusion": None,
        "curves": {}, "seconds": 1.0, "device": "a core", "finished": "2026-01-01",
    }  # fmt: skip
    pixels = {"a": 7, "b": 0, "c": 5, "w": 9}  # b has no training pixel, c is not in the test
    for row, more in (("1", {}), ("4", {"training_pixels": pixels}), ("3", {"annotated": ["2"]})):
        path = tmp_path / "phantom" / f"row_{row}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({**record, "row": row, **more}))
    results = read_results(tmp_path)
    assert {r: values(results, "phantom", r, "Dice, areas seen") for r in ("1", "4", "3")} == {
        "1": {0: 0.4},  # taken from row 4, which has the same sections
        "4": {0: 0.4},
        "3": {},  # other sections
    }


def test_numbers_stay_small_and_finite():
    value = {"a": [1.23456789, np.float32(2), float("nan")], "b": (3, True, "x", None)}
    assert rounded(value) == {"a": [1.2346, 2.0, None], "b": [3, True, "x", None]}
    assert all(row.title for row in ALL_ROWS.values())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--shard x", "expected I/N"),
        ("--shard 3/2", "from 1 to N"),
        ("--shard 0/1", "from 1 to N"),
        ("--kinds garbage", "'garbage' is not one of pretext"),
        ("--rows 1,9", "'9' is not one of 1, 2"),
        ("--studies 1", "'1' is not one of phantom"),
        ("--seeds 0", "whole number above 0"),
        ("--studies painted", "needs --data"),
        ("--data elsewhere", "no file elsewhere"),
    ],
)
def test_bad_arguments_fail_at_once(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evidence.py", "--results", "here", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        evidence.main()
    assert stopped.value.code == 2 and says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_finished_units_are_not_run_again(tmp_path, monkeypatch, capsys):
    unit = evidence.plan(["null"], ["1"], 1)[0][0]
    write_result(tmp_path / "small" / f"{unit.name}.json", unit, 1.0, {})
    arguments = "--studies null --rows 1 --seeds 1 --kinds probes --results".split()
    monkeypatch.setattr(sys, "argv", ["evidence.py", *arguments, str(tmp_path)])
    evidence.main()
    assert "nothing to do: all 1 units" in capsys.readouterr().out


def test_each_brain_has_one_baseline():
    units = [unit for group in evidence.plan(list(STUDIES), None, 2) for unit in group]
    brains = [STUDIES[unit.study].segmented for unit in units if unit.kind == "baseline"]
    assert sorted(brains) == ["null", "other", "painted", "phantom"]


def test_a_change_from_zero_has_no_percentage():
    def found(dice: float) -> dict:
        return {"segment": {"test": {"dice_macro_areas": dice}}}

    results = {("phantom", "1", 0): found(0.0), ("phantom", "4", 0): found(0.2)}
    claims = evidence_report.claims(results)
    assert [each["change_percent"] for each in claims] == [None]
    assert "| 0 | 0.2 | +0.2 |  |  | 1 of 1 seeds |" in evidence_report.claims_table(claims)[2]


def test_null_scores_leave_cells_empty(tmp_path, monkeypatch):
    """Leave the cells empty if the test sections have no annotation."""
    source = evidence.RESULTS / "small" / "phantom"
    for name in ("row_1_seed_0_segment", "row_4_seed_0_segment"):
        record = json.loads((source / f"{name}.json").read_text())
        path = tmp_path / "small" / "phantom" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**record, "test": None, "confusion": None}))
    monkeypatch.setattr(
        sys, "argv", f"report --results {tmp_path} --out {tmp_path / 'out'}".split()
    )
    evidence_report.main()
    text = (tmp_path / "out" / "results.md").read_text()
    assert "2 result files" in text and "### Phantom" not in text


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("row_4_seed_0_segment", "curves", None),
        ("row_4_seed_0_segment", "study", "mine"),
        ("row_4_seed_0_segment", "annotated", None),
        ("row_4_seed_0_pretext", "seed", "0"),
        ("row_4_seed_0_probes", "seconds", None),
        ("row_4_seed_0_segment", "finished", None),
    ],
)
def test_a_damaged_field_is_named(name, key, value, tmp_path):
    record = json.loads((evidence.RESULTS / "small" / "phantom" / f"{name}.json").read_text())
    path = tmp_path / "phantom" / f"{name}.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**record, key: value}))
    with pytest.raises(InputError, match=rf"{name}\.json: damaged .*{value or key}"):
        read_results(tmp_path)
    del record[key]
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=rf"{name}\.json: damaged .*{key}"):
        read_results(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_result_is_named(text, tmp_path, monkeypatch):
    path = tmp_path / "small" / "phantom" / "row_1_seed_0_probes.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["evidence_report.py", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"row_1_seed_0_probes\.json: damaged"):
        evidence_report.main()


def test_pictures_name_a_missing_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evidence_pictures.py", "--out", str(tmp_path)])
    with pytest.raises(InputError, match="no such folder"):
        evidence_pictures.main()


def test_the_time_of_a_run_is_summed_over_its_starts(tmp_path):
    now = time.time()
    starts = [{"time": now - 1000}, {"time": now - 100}, {"time": now - 50}]
    (tmp_path / "environment.json").write_text(json.dumps(starts))
    lines = [{"step": k, "time": now - ago} for k, ago in ((1, 990), (2, 800), (3, 40))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert _trained_seconds(tmp_path) == pytest.approx(200 + 0 + 50, abs=5)


def test_the_page_has_the_values_of_the_committed_files():
    """Compare the tables only. Figures are drawn by the same command."""
    text = (evidence_report.ROOT / "docs" / "results.md").read_text()
    tables = text.partition(evidence_report.BEGIN)[2].partition("\n![")[0]
    results = evidence_report.read_results(evidence.RESULTS / "small")
    command = "python benchmarks/evidence/report.py --size small"
    again = evidence_report.page(results, {}, command)
    assert again == f"{evidence_report.BEGIN}{tables}\n{evidence_report.END}"


def test_sections_are_chosen_to_show_all_areas():
    """Each choice shows the most areas, and then prefers those that are shown little."""
    mm2 = np.array([[9, 9, 0, 0], [0, 0, 2, 0], [0, 0, 2, 0.5], [1, 0, 0, 2], [9, 9, 0, 0.0]])
    assert choose(mm2, 1) == [0]
    assert choose(mm2, 3) == [0, 2, 3]  # the second shows a third area, and some of the fourth
    assert len(set(choose(mm2, 9))) == len(mm2)
