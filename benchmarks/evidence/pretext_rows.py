"""Compare losses and batch sizes of pre-training at equal work, on the quickstart's phantom.

    python train.py --config configs/quickstart.py --workdir runs/quickstart
    python benchmarks/evidence/pretext_rows.py --out runs/pretext --seeds 3

The first command makes the brain. Each row then sees 27,200 patches, which takes about four minutes
of one core. A batch of half the size takes twice as many steps. Rows are compared on the validation
pairs, and the errors of the test pairs are printed beside them. `--core 1` pins everything to a
core. A run that was stopped continues, and a finished one is not repeated. The last line on stdout
is one JSON object.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.evidence.kept_rows import kept, parse
from benchmarks.provenance import commit
from configs.quickstart import get_config
from jaxcyto.batch_losses import all_pairs_distance_loss
from jaxcyto.config import Config, Term
from jaxcyto.losses import coordinate_loss, distance_loss
from jaxcyto.runs.metrics_file import read_metrics
from jaxcyto.training import loop

PATCHES = 27_200
DISTANCE, ALL_PAIRS = Term(distance_loss, 1.0), Term(all_pairs_distance_loss, 3.0)
COORDINATES = Term(coordinate_loss, 10.0)
ROWS: dict[str, tuple[tuple[Term, ...], int]] = {  # terms, pairs of a batch
    "distance alone": ((DISTANCE,), 16),
    "all pairs alone": ((ALL_PAIRS,), 16),
    "distance, coordinates (paper)": ((DISTANCE, COORDINATES), 16),
    "all pairs, coordinates": ((ALL_PAIRS, COORDINATES), 16),
    "three terms, 16 pairs": ((DISTANCE, COORDINATES, ALL_PAIRS), 16),
    "three terms, 8 pairs": ((DISTANCE, COORDINATES, ALL_PAIRS), 8),
    "three terms, 4 pairs": ((DISTANCE, COORDINATES, ALL_PAIRS), 4),
}
SCORES = ("distance_mae_mm", "distance_correlation", "coordinate_mae_mm")


def row_config(row: str, brain: str, seed: int) -> Config:
    """Return the quickstart's config with the terms and the batch of a row."""
    config, (terms, pairs) = get_config(), ROWS[row]
    steps = PATCHES // (2 * pairs)
    data = dataclasses.replace(config.data, brains=(brain,), batch_pairs=pairs)
    optim = dataclasses.replace(config.optim, warmup_steps=max(1, 480 // pairs))
    loss = dataclasses.replace(config.loss, terms=terms)
    return dataclasses.replace(
        config, seed=seed, data=data, optim=optim, loss=loss, steps=steps, prepare=None,
        log_every=50, eval_every=steps, eval_pairs=2048, checkpoint_every=steps // 4,
    )  # fmt: skip


def run(row: str, brain: str, seed: int, workdir: Path) -> dict[str, Any]:
    """Train a row, and return its errors on validation and test."""
    start = time.process_time()
    test = loop.train(row_config(row, brain, seed), workdir)["test"]
    lines = [line for line in read_metrics(workdir / "metrics.jsonl") if f"val/{SCORES[0]}" in line]
    validation = {key: lines[-1].get(f"val/{key}") for key in SCORES if f"val/{key}" in lines[-1]}
    spent = round(time.process_time() - start, 1)
    return {
        "row": row, "seed": seed, "commit": commit(), "cpu_seconds": spent,
        "validation": validation, "test": test,
    }  # fmt: skip


def main() -> None:
    """Run the rows, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", help="part of the names of the rows to run, such as 'alone'")
    parser.add_argument("--brain", default="brains/quickstart")
    parser.add_argument("--out", type=Path, default=Path("runs/pretext"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--core", type=int, help="pin to this core")
    options, found = parse(parser), []
    for seed in range(options.seeds):
        for row in (row for row in ROWS if (options.rows or "") in row):
            slug = "".join(c if c.isalnum() else "_" for c in row)
            workdir = options.out / f"{slug}_seed_{seed}"
            entry = kept(workdir, functools.partial(run, row, options.brain, seed, workdir))
            found.append(entry)
            values = [entry["validation"][f"{k}_mae_mm"] for k in ("distance", "coordinate")]
            values += [entry["test"][key] for key in SCORES]
            print(f"{row:<32}{seed:>3}" + "".join(f"{v:>8.2f}" for v in values), flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
