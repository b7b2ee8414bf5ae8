"""Compare ways to train a segmentation network on the quickstart's six annotated sections.

    python train.py --config configs/quickstart.py --workdir runs/quickstart
    python benchmarks/evidence/few_sections.py decoders --out runs/few --init-from runs/quickstart

There are three groups of rows. `decoders` changes one thing at a time on the way from the paper's
expansive path to fitted score maps, all with 200 steps of the same images. `rates` are learning
rates from scratch and of fine-tuning, to be chosen by the validation. `recipes` are the configs
that docs/segmentation.md quotes, from scratch and pre-trained, with several seeds. `--core 1` pins
everything to a core, so that two calls with different groups share a machine fairly.

Each row is a run of `train.py`. A run that was stopped continues, and a finished one is not
repeated. Rows are chosen on the validation sections. The scores of the test sections are printed
beside them and choose nothing. The last line on stdout is one JSON object.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.evidence.kept_rows import kept, parse
from benchmarks.provenance import commit
from configs import quick_segment, quickstart_segment, quickstart_segment_atlas
from jaxcyto.config import SegmentConfig, Term, small
from jaxcyto.losses import IGNORE, cross_entropy
from jaxcyto.runs.metrics_file import read_metrics
from jaxcyto.training import loop, segment

STEPS = 200  # of the rows of `decoders`
SURE = 5.0  # scale of the logits' batch normalization in the row that starts with sure logits


def pixel_cross_entropy(outputs: dict[str, Any], batch: dict[str, Any]) -> jax.Array:
    """Average the cross-entropy over all annotated pixels of the batch [B], not by example."""
    counts = jnp.sum(batch["label"] != IGNORE, axis=(1, 2))
    return cross_entropy(outputs, batch) * counts / jnp.maximum(jnp.mean(counts), 1.0)


def expansive(
    rate: float = 0.1, statistics: str = "batch", decoder: str = "unet", learning: float = 0.002
) -> SegmentConfig:
    """Return the quickstart's config with the expansive path, without a fitted head.

    Args:
        rate: learning rate of the transferred weights, relative to the others.
        statistics: statistics of the transferred layers, `encoder_statistics`.
        decoder: `model.decoder`.
        learning: learning rate of the other weights.
    """
    config = quickstart_segment.get_config()
    pools = () if decoder == "unet" else config.model.pools
    config.model = dataclasses.replace(small(), decoder=decoder, pools=pools)
    config.fit_head, config.transfer_rate, config.encoder_rate = False, 1.0, rate
    config.encoder_statistics, config.optim.learning_rate = statistics, learning
    config.loss.weight_decay = 0.001
    return _short(config)


def fitted(decoder: str = "scores", steps: int = STEPS) -> SegmentConfig:
    """Return the quickstart's config, which fits score maps first."""
    config = quickstart_segment.get_config()
    config.model.decoder = decoder
    return _short(config, steps)


def _short(config: SegmentConfig, steps: int = STEPS) -> SegmentConfig:
    config.steps, config.eval_every, config.checkpoint_every = steps, 10_000, 100
    return config


def by_pixel() -> SegmentConfig:
    """Return the paper's path with the loss averaged by pixel."""
    config = expansive()
    config.loss.terms = (Term(pixel_cross_entropy, 1.0),)
    return config


def scratch(learning: float, steps: int) -> SegmentConfig:
    """Return the quickstart's config from scratch at a learning rate."""
    config = quickstart_segment.get_config()
    config.optim.learning_rate = learning
    return _short(config, steps)


def tuned(rate: float, steps: int) -> SegmentConfig:
    """Return the quickstart's config for fine-tuning at a learning rate."""
    config = quickstart_segment.get_config()
    config.transfer_rate = rate / config.optim.learning_rate
    return _short(config, steps)


Row = tuple[str, Callable[[], SegmentConfig], bool]  # name, config, whether it is pre-trained
GROUPS: dict[str, list[Row]] = {
    "decoders": [
        ("expansive path, as the paper's", expansive, True),
        ("loss by pixel", by_pixel, True),
        ("stored statistics", lambda: expansive(statistics="stored"), True),
        ("encoder frozen", lambda: expansive(0.0, "stored"), True),
        ("encoder at full rate", lambda: expansive(1.0), True),
        ("three times the learning rate", lambda: expansive(learning=0.006), True),
        ("sure logits at the start", expansive, True),
        ("score maps added", lambda: expansive(0.1, "stored", "both"), True),
        ("score maps alone", lambda: expansive(0.1, "stored", "scores"), True),
        ("score maps fitted, no step", lambda: fitted(steps=0), True),
        ("score maps fitted, then trained", fitted, True),
        ("the same plus expansive path", lambda: fitted("both"), True),
    ],
    "rates": [
        *((f"scratch, {rate:g}", functools.partial(scratch, rate, 200), False) for rate in
          (0.0005, 0.001, 0.002, 0.004)),
        *((f"fine-tuned, {rate:g}", functools.partial(tuned, rate, 200), True) for rate in
          (0.0001, 0.0003, 0.001)),
    ],
    "recipes": [
        ("head alone", quick_segment.get_config, True),
        ("pre-trained", quickstart_segment.get_config, True),
        ("from scratch", quickstart_segment.get_config, False),
        ("pre-trained, with atlas", quickstart_segment_atlas.get_config, True),
        ("from scratch, with atlas", quickstart_segment_atlas.get_config, False),
    ],
}  # fmt: skip


def run(
    name: str, config: SegmentConfig, workdir: Path, init_from: str | None, seed: int
) -> dict[str, Any]:
    """Train a row, and return its scores on validation and test."""
    config.seed, config.init_from = seed, init_from
    start, cpu = time.monotonic(), time.process_time()
    made = mock.patch.object(segment, "init_state", _sure) if name.startswith("sure") else None
    with made or mock.patch.dict({}):
        test = loop.train(config, workdir)["test"]
    spent = {"seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu}
    validated = [
        line for line in read_metrics(workdir / "metrics.jsonl") if "val/dice_macro" in line
    ]
    keys = ("dice_macro_areas", "err_seg_percent")
    return {
        "row": name,
        "seed": seed,
        "commit": commit(),
        "validation": {key: validated[-1][f"val/{key}"] for key in keys} if validated else None,
        "test": {key: test[key] for key in keys} | {"dice": test["dice"]},
        **{key: round(value, 1) for key, value in spent.items()},
    }


original = segment.init_state


def _sure(*arguments: Any) -> Any:
    """Return the first state with logits whose batch normalization has the scale SURE."""
    state = original(*arguments)
    norm = state.params["classifier_bn"]
    params = {**state.params, "classifier_bn": {**norm, "scale": SURE * norm["scale"]}}
    return dataclasses.replace(state, params=params)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("groups", nargs="+", choices=GROUPS)
    parser.add_argument("--init-from", default="runs/quickstart", help="the pre-training run")
    parser.add_argument("--sections", help="annotated sections, if not the quickstart's: 0001,0009")
    parser.add_argument("--brain", default="brains/quickstart")
    parser.add_argument("--out", type=Path, default=Path("runs/few"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--core", type=int, help="pin to this core")
    options, found = parse(parser), []
    for seed in range(options.seeds):
        for name, config, transfers in (row for group in options.groups for row in GROUPS[group]):
            own, slug = config(), name.replace(", ", "_").replace(" ", "_").replace("'", "")
            own.data.brains = (options.brain,)
            if options.sections:
                own.data.train_sections = tuple(options.sections.split(","))
            workdir = options.out / f"{slug}_seed_{seed}"
            init_from = options.init_from if transfers else None
            entry = kept(workdir, functools.partial(run, name, own, workdir, init_from, seed))
            found.append(entry)
            validation = entry["validation"] or dict.fromkeys(entry["test"])
            values = (validation["dice_macro_areas"], *list(entry["test"].values())[:2])
            text = "".join("          -" if v is None else f"{v:>11.3f}" for v in values)
            print(f"{name:<36}{seed:>5}{text}{entry['cpu_seconds']:>10.0f} s", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
