"""Does the pretext task improve segmentation? The paper's table, on brains that anyone can make.

    python benchmarks/evidence.py --studies phantom --rows 1,2,3,4     # hours on two cores
    python benchmarks/evidence.py --data DATA                          # everything
    python benchmarks/evidence_report.py                               # docs/results.md from that

Each unit (pre-training, fine-tuning, probes of a row, study and seed) writes one small JSON file to
benchmarks/results/evidence/SIZE/STUDY; what is there is not done again, and a unit that was cut off
continues from its last checkpoint. `--shard I/N` takes every Nth group of units, for N machines on
one file system or with their result files brought together. Rows, studies and sizes are in
evidence_plan.py. DATA holds BigBrain's surfaces, labels and layer thicknesses (docs/results.md says
where to get them); without it the study on them is left out.
"""

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import evidence_probes as probes
from benchmarks import evidence_units as units
from benchmarks.evidence_plan import ALL_ROWS, ROWS, SIZES, STUDIES, make_brain
from benchmarks.evidence_units import Unit
from jaxcyto.errors import InputError
from jaxcyto.runs import WEIGHTS
from jaxcyto.training import host, log
from jaxcyto.training.stop import Interrupted

RESULTS = Path(__file__).parent / "results" / "evidence"


def plan(studies: list[str], rows: list[str] | None, seeds: int) -> list[list[Unit]]:
    """Groups of units: those of a group go one after the other, groups are independent.

    First seeds first, so that there is something to look at early; a pre-training and all that is
    made of it are one group.
    """
    groups: dict[tuple, list[Unit]] = {}
    for seed in range(seeds):
        for name in studies:
            study = STUDIES[name]
            if seed == 0 and rows is None and study.longer == 1:
                groups[name, "baseline"] = [Unit("baseline", name, "baseline", 0)]
            for row in study.rows:
                if rows is not None and row not in rows:
                    continue
                shared = ALL_ROWS[row].shares
                group = groups.setdefault((study.pretrained_on, shared or row, seed), [])
                # else pre-training and probes are those of another study or row
                own = study.longer == 1 and shared is None
                if own and ALL_ROWS[row].terms and study.pretrained_on == study.segmented:
                    group.append(Unit("pretext", name, row, seed))
                if own:
                    group.append(Unit("probes", name, row, seed))
                group.append(Unit("segment", name, row, seed))
    return list(groups.values())


def do(unit: Unit, size_name: str, out: Path, data: Path | None) -> dict:
    """Runs a unit; what it found."""
    size, study = SIZES[size_name], STUDIES[unit.study]
    brains = {name: out / "brains" / name for name in (study.pretrained_on, study.segmented)}
    row = ALL_ROWS.get(unit.row)  # None: baselines
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
        return probes.baselines(size, last)
    own = units.run_folder(out, study.segmented, unit.row, unit.seed, f"segment_{unit.study}")
    return units.segment(size, last, unit.row, unit.seed, own, pretrained, study.longer)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--studies", help=f"default: {','.join(STUDIES)}")
    parser.add_argument("--rows", help=f"of {', '.join(ALL_ROWS)}; default: those of the studies")
    parser.add_argument("--kinds", default="pretext,segment,probes,baseline")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shard", default="1/1", metavar="I/N")
    parser.add_argument("--out", type=Path, help="brains and runs; default: runs/evidence/SIZE")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--data", type=Path, help="of the study on BigBrain's surface")
    parser.add_argument("--list", action="store_true", help="only say what is to be done")
    arguments = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # grain reads absl's flags
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    log.log_to_stderr()
    host.keep_freed_memory()

    names = arguments.studies.split(",") if arguments.studies else list(STUDIES)
    if arguments.studies is None and arguments.data is None:
        names.remove("painted")
    rows = arguments.rows.split(",") if arguments.rows else None
    for wrong in {*names} - {*STUDIES} | {*(rows or ())} - {*ALL_ROWS}:
        parser.error(f"{wrong!r}: neither a study nor a row")
    out = arguments.out or Path("runs") / "evidence" / arguments.size
    results = arguments.results / arguments.size
    index, number = (int(part) for part in arguments.shard.split("/"))
    kinds = arguments.kinds.split(",")
    groups = plan(names, rows, arguments.seeds)[index - 1 :: number]
    todo = [unit for group in groups for unit in group if unit.kind in kinds]
    todo = [unit for unit in todo if not (results / f"{unit.name}.json").exists()]
    for place, unit in enumerate(todo):
        print(f"--- {place + 1} of {len(todo)}: {unit.name}", flush=True)
        if arguments.list:
            continue
        started = time.monotonic()
        try:
            found = do(unit, arguments.size, out, arguments.data)
        except InputError as error:
            raise SystemExit(f"{unit.name}: {error}") from None
        except Interrupted as stopped:
            print(f"{unit.name}: {stopped}", file=sys.stderr, flush=True)
            os._exit(128 + stopped.signum)  # as train.py
        units.write_result(results / f"{unit.name}.json", unit, time.monotonic() - started, found)


if __name__ == "__main__":
    main()
