"""Test the output, the error messages and the exit status of `jaxcyto` on a small brain."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from minimal_brain import make_ball
from scipy.spatial.distance import cdist

from jaxcyto.brain.manifest import SPLITS, read_brain
from jaxcyto.brain.sampling.pairs import load_pairs
from jaxcyto.brain.sampling.patches import load_patches
from jaxcyto.cli.root import WORK, main

SAMPLE = ("--patches", "60", "--patch-px", "8", "--um-per-px", "64")
PAIR = ("--workers", "1", "--method", "exact")


@pytest.fixture(scope="module")
def ball(tmp_path_factory) -> Path:
    return make_ball(tmp_path_factory.mktemp("brains") / "ball")


@pytest.fixture
def brain(ball, tmp_path) -> Path:
    return shutil.copytree(ball, tmp_path / "ball")


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def done(*arguments) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments) -> str:
    """Run a command that must exit with status 2, and return its message."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output and not result.stdout
    return result.stderr


def test_from_brain_to_pairs(brain):
    assert "no fault found" in done("check", brain)
    printed = done("sample", brain, *SAMPLE)
    patches = load_patches(brain / "patches.npz", read_brain(brain))
    assert len(patches) == 60
    assert patches.settings["patch_px"] == 8 and patches.settings["um_per_px"] == 64
    train, test = (patches.split == SPLITS.index(name) for name in ("train", "test"))
    assert f"60 patches: {train.sum()} train, {test.sum()} test" in printed
    nearest = cdist(patches.position_mm[train], patches.position_mm[test]).min()
    stated = re.search(r"smallest distance train-test: ([\d.]+) mm", printed)
    assert stated and float(stated[1]) == pytest.approx(nearest, abs=0.005)
    assert nearest >= 2  # distance of the section planes

    printed = done("pair", brain, *PAIR, "--pairs", 90)
    pairs = load_pairs(brain / "pairs.npz")
    assert len(pairs) == 90 and "90 pairs, exact distances" in printed
    assert f"median {np.median(pairs.distance_mm):.1f} mm" in printed
    assert set(pairs.first) | set(pairs.second) == set(range(60))
    assert "pairs.npz: 90 pairs of patches.npz" in done("check", brain)


def test_json_instead_of_words(brain):
    sampled = json.loads(done("sample", brain, *SAMPLE, "--json"))
    patches = load_patches(brain / "patches.npz", read_brain(brain))
    assert sampled["patches"] == sum(sampled["splits"].values()) == 60
    assert sampled["settings"] == patches.settings
    assert min(sampled["smallest_mm"].values()) >= 2
    paired = json.loads(done("pair", brain, *PAIR, "--within", 8, "--json"))
    pairs = load_pairs(brain / "pairs.npz")
    assert paired["pairs"] == len(pairs) and pairs.distance_mm.max() <= 8
    assert paired["quantiles_mm"]["0.5"] == pytest.approx(np.median(pairs.distance_mm))
    checked = json.loads(done("check", brain, "--json"))
    assert checked["faults"] == [] and any("60 patches" in fact for fact in checked["facts"])
    (brain / "patches.npz").write_text("broken")
    result = run("check", brain, "--json")
    assert result.exit_code == 1 and len(json.loads(result.stdout)["faults"]) >= 1


def test_the_phantom_is_checked_and_sampled_by_blocks(tiny_brain):
    printed = done("check", tiny_brain)
    for words in ("240 patches", "480 pairs", "24 section(s)", "train"):
        assert words in printed


def test_the_seed_decides(brain):
    digests = []
    for seed, workers in ((3, 1), (3, 2), (4, 1)):
        names = f"patches{seed}.npz", f"pairs{seed}.npz"
        done("sample", brain, *SAMPLE, "--seed", seed, "--out", names[0])
        pair = ("--seed", seed, "--method", "exact", "--workers", workers)
        done("pair", brain, *pair, "--patches-file", names[0], "--out", names[1])
        digests.append(
            tuple(hashlib.sha256((brain / name).read_bytes()).hexdigest() for name in names)
        )
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0] and digests[0][1] != digests[2][1]
    assert "patches4.npz: 60 patches" in done("check", brain)


def test_options_reach_the_patches(brain):
    done("sample", brain, "--spacing-mm", "0.5", "--patch-px", "8", "--um-per-px", "64")
    middle = load_patches(brain / "patches.npz")
    done("sample", brain, *SAMPLE, "--depth", "1", "--min-tissue", "0.9")
    white = load_patches(brain / "patches.npz")
    assert len(middle) > 60 and white.settings["depth"] == 1
    for patches, radius in ((middle, 2.5), (white, 2.0)):
        found = np.linalg.norm(patches.position_mm, axis=1)
        np.testing.assert_allclose(found, radius, rtol=0.03)


def commands() -> list[str]:
    return sorted(main.commands)


@pytest.mark.parametrize("name", commands())
def test_help_gives_an_example_that_parses(name):
    text = done(name, "--help")
    assert text == done(name, "-h")
    assert all(re.search(r"--[\w-]+( [A-Z\[]\S*)?.*\S", line) for line in options(text))
    examples = re.findall(rf"jaxcyto {name} ((?:runs|brains)/\S+[^\n]*(?:\n  \S[^\n]*)*)", text)
    assert examples
    for example in examples:
        example = example.replace("$SLURM_ARRAY_TASK_ID", "3")
        main.commands[name].make_context(name, example.split())


def options(text: str) -> list[str]:
    return [line for line in text.split("Options:")[1].splitlines() if line.startswith("  -")]


def test_help_of_the_whole_names_every_command():
    text = done("--help")
    for name in commands():
        assert re.search(rf"^  {name} ", text, re.MULTILINE)
    assert "jaxcyto, version" in done("--version")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sample", "BRAIN"), "give either --patches or --spacing-mm"),
        (("sample", "BRAIN", "--patches", "9", "--spacing-mm", "1"), "either --patches or"),
        (("sample", "BRAIN", "--patches", "0"), "'--patches'"),
        (("sample", "BRAIN", "--patches", "20000000"), "at most 10,000,000"),
        (("export", "BRAIN", "out"), "a brain, not a run; the run comes first"),
        (("export", "nowhere", "out"), "no such run"),
        (("sample", "BRAIN", *SAMPLE, "--depth", "2"), "'--depth'"),
        (("sample", "BRAIN", *SAMPLE, "--um-per-px", "0"), "'--um-per-px'"),
        (("sample", "BRAIN", *SAMPLE, "--seed", "-1"), "'--seed'"),
        (("sample", "BRAIN", *SAMPLE, "--out", "brain.toml"), "name of an .npz file"),
        (("sample", "BRAIN", *SAMPLE, "--out", "../x.npz"), "name of an .npz file"),
        (("sample", "BRAIN", *SAMPLE, "--split-axis", "x"), "the split column is filled"),
        (("sample", "nowhere", *SAMPLE), "no such folder; name a brain's folder"),
        (("sample",), "Missing argument 'BRAIN'"),
        (("pair", "BRAIN"), "run `jaxcyto sample` first"),
        (("pair", "BRAIN", "--patches-file", "x.npz"), "run `jaxcyto sample` first"),
        (("pair", "BRAIN", "--method", "guess"), "'--method'"),
        (("pair", "nowhere"), "no such folder"),
        (("pairs",), "No such command 'pairs'"),
    ],
)
def test_mistakes_end_in_one_message(ball, arguments, words):
    before = {path: path.read_bytes() for path in ball.iterdir()}
    message = refused(*(ball if each == "BRAIN" else each for each in arguments))
    assert words in message
    assert len([line for line in message.splitlines() if "error" in line.lower()]) == 1
    assert {path: path.read_bytes() for path in ball.iterdir()} == before


def test_too_few_pairs(brain):
    done("sample", brain, *SAMPLE)
    assert "30 are needed" in refused("pair", brain, *PAIR, "--pairs", 5)
    assert not (brain / "pairs.npz").exists()


def test_a_brain_with_faults_is_not_sampled(brain):
    (brain / "a.tif").unlink()
    (brain / "c.tif").write_bytes(b"nothing")
    assert "no file 'a.tif'" in refused("sample", brain, *SAMPLE)
    result = run("check", brain)
    assert result.exit_code == 1 and "2 fault(s)" in result.stderr


def test_a_folder_in_the_way_is_a_message(brain):
    """Check that an OSError of the system, as from a full disk, becomes a message."""
    (brain / "patches.npz").mkdir()
    assert "patches.npz" in refused("sample", brain, *SAMPLE)


def test_phantom_is_written_and_passes_check(tmp_path):
    out = tmp_path / "toy"
    options = ["--preset", "tiny", "--sections", "3", "--workers", "1"]
    done = CliRunner().invoke(main, ["phantom", str(out), *options])
    assert done.exit_code == 0, done.output
    checked = CliRunner().invoke(main, ["check", str(out)])
    assert checked.exit_code == 0 and "no fault found" in checked.output
    again = CliRunner().invoke(main, ["phantom", str(out), *options])
    assert again.exit_code == 2 and "already there" in again.output
    half = CliRunner().invoke(main, ["phantom", str(tmp_path / "p"), "--pial", "lh.pial"])
    assert half.exit_code == 2 and "--white" in half.output


def test_a_run_where_a_brain_belongs(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    result = run("check", tmp_path / "run")
    assert result.exit_code == 1 and "a run, not a brain; the run comes first" in result.stderr
    (tmp_path / "file").write_text("")
    assert "a file; name the folder" in run("check", tmp_path / "file").stderr


def test_enlarged_patches_are_warned_of(brain):
    with pytest.warns(UserWarning, match="enlarged 16 times, without detail"):
        done("sample", brain, "--patches", "60", "--patch-px", "256", "--um-per-px", "2")


def test_python_m_is_the_same_command():
    command = [sys.executable, "-m", "jaxcyto", "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert printed.stdout.startswith("jaxcyto, version ")


def test_help_lists_every_command_in_the_order_of_the_work_and_none_is_cut():
    printed = done("--help")
    assert sorted(WORK) == sorted(main.commands)
    assert re.findall(r"^  ([a-z]+)  ", printed.partition("Commands:")[2], re.M) == list(WORK)
    assert "..." not in printed.partition("Commands:")[2] and "train.py" in printed
