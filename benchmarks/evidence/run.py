"""Test whether the pretext task improves segmentation, on brains that anyone can make.

    python benchmarks/evidence/run.py --studies phantom --rows 1,2,3,4     # hours on two cores
    python benchmarks/evidence/run.py --data DATA                          # everything
    python benchmarks/evidence/report.py                                   # write docs/results.md

A unit is the pre-training, the fine-tuning or the probes of a row, study and seed. Each writes one
small JSON file to benchmarks/results/evidence/SIZE/STUDY. Units with a result file are not run
again, and an interrupted unit resumes from its last checkpoint. `--shard I/N` runs every Nth group
of units, for N machines that share a file system or whose result files are merged afterwards. The
rows, studies and sizes are defined in plan.py. DATA holds BigBrain's surfaces, labels and layer
thicknesses (docs/results.md says where to get them). Without it the study "painted" is left out.
"""

import argparse
import dataclasses
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from absl import flags

if __name__ == "__main__":  # imports take seconds, and Ctrl-C should not print their traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
elif __name__ == "__mp_main__":  # a worker process, which its parent ends on Ctrl-C
    signal.signal(signal.SIGINT, signal.SIG_IGN)

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.evidence import baselines, probes, units
from benchmarks.evidence.plan import (
    ALL_ROWS,
    ROWS,
    SIZES,
    STUDIES,
    Size,
    annotated_sections,
    bigbrain_files,
    make_brain,
    segment_config,
)
from benchmarks.evidence.units import Unit
from benchmarks.provenance import commit
from jaxcyto.brain.manifest import read_brain
from jaxcyto.cli.options import parse_shard
from jaxcyto.data.segment_table import open_windows
from jaxcyto.errors import InputError
from jaxcyto.runs.load import WEIGHTS
from jaxcyto.training import log
from jaxcyto.training.signals import Interrupted
from jaxcyto.utils.runtime import keep_freed_memory

RESULTS = Path(__file__).parents[1] / "results" / "evidence"
KINDS = "pretext", "segment", "probes", "baseline"


def plan(studies: list[str], rows: list[str] | None, seeds: int) -> list[list[Unit]]:
    """List the units of the experiment, in groups that can run independently.

    A pre-training and all units that use it form one group and run in order. All rows of the first
    seed come before the second seed, so that a first result is there early.

    Args:
        studies: keys of `STUDIES`.
        rows: keys of `ALL_ROWS`, or None for the rows of the studies and the baselines.
        seeds: number of seeds.
    """
    groups: dict[tuple, list[Unit]] = {}
    for seed in range(seeds):
        for name in studies:
            study = STUDIES[name]
            if seed == 0 and rows is None and study.longer == 1 and "1" in study.rows:
                groups[name, "baseline"] = [Unit("baseline", name, "baseline", 0)]
            for row in study.rows:
                if rows is not None and row not in rows:
                    continue
                shared = ALL_ROWS[row].shares
                group = groups.setdefault((study.pretrained_on, shared or row, seed), [])
                # other studies and rows use the pre-training and probes of a study or row with own
                own = study.longer == 1 and shared is None
                if own and ALL_ROWS[row].terms and study.pretrained_on == study.segmented:
                    group.append(Unit("pretext", name, row, seed))
                if own:
                    group.append(Unit("probes", name, row, seed))
                group.append(Unit("segment", name, row, seed))
    return list(groups.values())


def do(unit: Unit, size_name: str, out: Path, data: Path | None) -> dict:
    """Run a unit and return its results.

    Args:
        unit: the unit.
        size_name: a key of `SIZES`.
        out: folder of brains and runs. What the unit needs is made there if it is missing.
        data: folder with BigBrain's surfaces, labels and thicknesses, for the study "painted".

    Raises:
        InputError: a brain, a run or `data` is damaged or missing.
        FloatingPointError: the training diverged.
    """
    size, study = SIZES[size_name], STUDIES[unit.study]
    brains = {name: out / "brains" / name for name in (study.pretrained_on, study.segmented)}
    row = ALL_ROWS.get(unit.row)  # None for baselines
    for name, root in brains.items():
        make_brain(name, root, size, data, row or ROWS["1"])
    first, last = brains[study.pretrained_on], brains[study.segmented]
    source = (row and row.shares) or unit.row
    run = units.run_folder(out, study.pretrained_on, source, unit.seed, "pretext")
    pretrained = run if row and row.terms else None
    if pretrained and unit.kind != "pretext" and not (pretrained / WEIGHTS).exists():
        units.pretrain(size, first, source, unit.seed, run)
    if unit.kind == "pretext":
        return units.pretrain(size, first, unit.row, unit.seed, run)
    if unit.kind == "probes":
        return probes.probe(size, last, pretrained, unit.seed)
    if unit.kind == "baseline":
        return _baselines(size, last)
    own = units.run_folder(out, study.segmented, unit.row, unit.seed, f"segment_{unit.study}")
    return units.segment(size, last, unit.row, unit.seed, own, pretrained, study.longer)


def _baselines(size: Size, root: Path) -> dict[str, Any]:
    """Score the rows without a network, fitted to the annotated sections of seed 0."""
    brain, chosen, table = read_brain(root), annotated_sections(root, size.annotated, 0), None
    if all(row.atlas is not None for row in brain.sections):
        config = segment_config(size, root, "1", 0, None, 1)
        table = open_windows(dataclasses.replace(config.data, atlas=True), config.model)
    return {
        "annotated": list(chosen),
        "models": baselines.baselines(brain, chosen, table),
    }


def names_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a parser of comma-separated names, for argparse."""

    def parse(text: str) -> list[str]:
        for wrong in {*text.split(",")} - {*known}:
            raise argparse.ArgumentTypeError(f"{wrong!r} is not one of {', '.join(known)}")
        return list(dict.fromkeys(text.split(",")))

    return parse


def shard(text: str) -> tuple[int, int]:
    """Parse --shard, I/N."""
    try:
        return parse_shard(None, None, text) or (1, 1)
    except click.BadParameter as error:
        raise argparse.ArgumentTypeError(error.message) from None


def above_0(text: str) -> int:
    """Parse --seeds, a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def leave(signum: int, _: Any) -> None:
    """Exit on a signal outside of training, as train.py does."""
    print("stopped. The same command resumes.", file=sys.stderr, flush=True)
    sys.exit(128 + signum)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--studies", type=names_of(STUDIES), help=f"default: {','.join(STUDIES)}")
    parser.add_argument(
        "--rows",
        type=names_of(ALL_ROWS),
        help=f"some of {', '.join(ALL_ROWS)} (default: the rows of the studies and the baselines)",
    )
    parser.add_argument("--kinds", type=names_of(KINDS), default=KINDS, help=",".join(KINDS))
    parser.add_argument("--seeds", type=above_0, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N")
    parser.add_argument(
        "--out", type=Path, help="folder of brains and runs (default: runs/evidence/SIZE)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of result files")
    parser.add_argument("--data", type=Path, help="BigBrain's files, for the study painted")
    parser.add_argument("--list", action="store_true", help="list the units without running them")
    arguments = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # grain reads absl's flags
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    log.log_to_stderr()
    keep_freed_memory()

    names = arguments.studies or list(STUDIES)
    if arguments.studies is None and arguments.data is None:
        names.remove("painted")
    out = arguments.out or Path("runs") / "evidence" / arguments.size
    results = arguments.results / arguments.size
    shard_index, shards = arguments.shard
    groups = plan(names, arguments.rows, arguments.seeds)[shard_index - 1 :: shards]
    chosen = [unit for group in groups for unit in group if unit.kind in arguments.kinds]
    todo = [unit for unit in chosen if not (results / f"{unit.name}.json").exists()]
    if not todo:
        why = f"all {len(chosen)} units are in {results}" if chosen else "no unit matches"
        print(f"nothing to do: {why}. Use --results ELSEWHERE to run them again.")
    painted = out / "brains" / "painted"
    if not arguments.list and not painted.exists() and any(u.study == "painted" for u in todo):
        try:  # fail now and not after hours
            bigbrain_files(arguments.data)
        except InputError as error:
            parser.error(str(error))
    commit()  # caches the commit of the running code, because the checkout may change
    for position, unit in enumerate(todo, start=1):
        print(f"--- {position} of {len(todo)}: {unit.name}", flush=True)
        if arguments.list:
            continue
        started = time.monotonic()
        try:
            found = do(unit, arguments.size, out, arguments.data)
            path = results / f"{unit.name}.json"
            units.write_result(path, unit, time.monotonic() - started, found)
        except (InputError, FloatingPointError) as error:
            raise SystemExit(f"{unit.name}: {error}") from None
        except OSError as error:  # such as a full disk or a folder without write permission
            if error.strerror is None:
                raise
            raise SystemExit(f"{unit.name}: {error.filename}: {error.strerror}") from None
        except Interrupted as stopped:
            print(f"{unit.name}: {stopped}", file=sys.stderr, flush=True)
            os._exit(128 + stopped.signum)  # as train.py


if __name__ == "__main__":
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, leave)
    try:
        main()
    except BrokenPipeError:  # `--list | head`
        # otherwise the interpreter reports the error again when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
