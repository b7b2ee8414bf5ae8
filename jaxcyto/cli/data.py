"""Provide the commands that prepare a brain for training: phantom, check, sample and pair."""

import dataclasses
import json
import sys
from pathlib import Path

import click

from jaxcyto.cli.options import ABOVE_0, BRAIN, JSON, SEED, Command, parse_shard
from jaxcyto.errors import InputError


@click.command(cls=Command)
@BRAIN
@JSON
def check(brain: Path, as_json: bool) -> None:
    """Validate a brain folder and report all faults at once.

    Reads brain.toml, the section table, the surfaces, the headers of section and atlas images, the
    label images, patches and pairs. The exit status is 1 if there is a fault.

    Example: jaxcyto check brains/bigbrain
    """
    from jaxcyto.brain.check import check_brain
    from jaxcyto.utils.progress import StderrProgress

    report = check_brain(brain, StderrProgress("checking", "sections"))
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report), indent=2))
        sys.exit(1 if report.faults else 0)
    for line in report.facts:
        click.echo(line)
    for line in report.warnings:
        click.echo(f"warning: {line}", err=True)
    for line in report.faults:
        click.echo(f"fault: {line}", err=True)
    if report.faults:
        click.echo(f"{len(report.faults)} fault(s) in {brain}", err=True)
        sys.exit(1)
    click.echo(f"{brain}: no fault found")


@click.command(cls=Command)
@BRAIN
@click.option("--patches", "num_patches", type=click.IntRange(1), help="Number of patches.")
@click.option(
    "--spacing-mm",
    type=ABOVE_0,
    help="Millimeters of cortical ribbon per patch, instead of --patches.",
)
@click.option(
    "--patch-px",
    type=click.IntRange(1),
    default=1019,
    show_default=True,
    help="Side of a patch in pixels.",
)
@click.option(
    "--um-per-px",
    type=ABOVE_0,
    default=2.0,
    show_default=True,
    help="Resolution of a patch in micrometers per pixel.",
)
@click.option(
    "--depth",
    type=click.FloatRange(0, 1),
    help="Cortical depth from 0 (pial) to 1 (white); default: that of the surface on which "
    "distances are measured (mid).",
)
@click.option(
    "--min-tissue",
    type=click.FloatRange(0, 1),
    help="Smallest fraction of tissue in a patch; default: 0.25.",
)
@click.option(
    "--split-axis",
    type=click.Choice(["x", "y", "z"]),
    help="Split within the sections along this axis, for brains with few sections.",
)
@click.option("--out", default="patches.npz", show_default=True, help="File in the brain's folder.")
@SEED
@JSON
def sample(brain: Path, min_tissue: float | None, as_json: bool, **settings) -> None:
    """Sample patches where the sections cut the cortex.

    Patches are uniformly spaced along the cortical ribbon. Give --patches or --spacing-mm. An empty
    split column of the section table is filled first, with blocks of sections that are 2 mm apart.
    Prints the number of patches in each split and the smallest distances between splits.

    Example: jaxcyto sample brains/bigbrain --patches 200000
    """
    from jaxcyto.brain.prepare import describe_patches, patches_summary, sample_brain

    if (settings["num_patches"] is None) == (settings["spacing_mm"] is None):
        raise click.UsageError("give either --patches or --spacing-mm")
    if min_tissue is not None:
        settings["min_tissue"] = min_tissue
    patches = sample_brain(brain, **settings)
    click.echo(json.dumps(patches_summary(patches)) if as_json else describe_patches(patches))


@click.command(cls=Command)
@BRAIN
@click.option(
    "--pairs",
    "num_pairs",
    type=click.IntRange(1),
    help="Number of pairs; default: the number of patches.",
)
@click.option(
    "--method",
    type=click.Choice(["auto", "exact", "heat", "oracle"]),
    default="auto",
    show_default=True,
    help="Geodesic solver. With 164k vertices, exact takes seconds per patch, heat a tenth of a "
    "second with about 1 % error, and oracle minutes in total with less than 1 % error. auto "
    "selects oracle for thousands of pairs on a large surface and heat otherwise.",
)
@click.option(
    "--even-distances", is_flag=True, help="Sample pairs uniformly over distance (uses the oracle)."
)
@click.option(
    "--within",
    "within_mm",
    type=ABOVE_0,
    metavar="MM",
    help="Only sample pairs at most this far apart (for contrastive losses).",
)
@click.option(
    "--shard",
    metavar="I/N",
    callback=parse_shard,
    help="Only solve part I of N of the oracle, for example in a job array, and write no pairs. "
    "Run without --shard once all parts are solved.",
)
@click.option("--all-distances", is_flag=True, help="Also write the distances between all patches.")
@click.option("--workers", type=click.IntRange(1), help="Number of processes; default: the CPUs.")
@click.option(
    "--patches-file",
    default="patches.npz",
    show_default=True,
    help="Patches file in the brain's folder.",
)
@click.option("--out", default="pairs.npz", show_default=True, help="File in the brain's folder.")
@SEED
@JSON
def pair(brain: Path, shard: tuple[int, int] | None, as_json: bool, **settings) -> None:
    """Pair the patches and compute their distances along the cortex.

    Every patch is in at least one pair. Both patches of a pair are in the same hemisphere and the
    same split. A histogram of the distances is written beside the pairs. On large surfaces, many
    pairs are measured with an oracle. It holds distances around some thousand points of the
    surface, which are solved once and kept in the brain's folder. More pairs then take seconds, and
    an interrupted build continues.

    Example: jaxcyto pair brains/bigbrain --pairs 200000
    """
    from jaxcyto.brain.prepare import describe_pairs, pair_brain, pair_shard, pairs_summary

    if shard is not None:
        if settings["method"] not in ("auto", "oracle"):
            raise click.UsageError(f"--shard divides the oracle, not method {settings['method']}")
        pair_shard(brain, shard, workers=settings["workers"])
        part = f"part {shard[0]}/{shard[1]}"
        click.echo(f"{brain}: {part} solved; when all parts are, run without --shard")
        return
    pairs = pair_brain(brain, **settings)
    click.echo(json.dumps(pairs_summary(pairs)) if as_json else describe_pairs(pairs))


@click.command(cls=Command)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--preset",
    type=click.Choice(["tiny", "quickstart", "full"]),
    default="quickstart",
    show_default=True,
    help="tiny takes seconds. quickstart takes a minute at 16 um/px. full has sections of 12,000 "
    "px a side at 2 um/px.",
)
@click.option(
    "--null", is_flag=True, help="Use the same texture everywhere, as a control without areas."
)
@click.option(
    "--um-per-px", type=ABOVE_0, help="Resolution of the section images: 1, 2, 4, 8 or 16."
)
@click.option(
    "--sections",
    "num_sections",
    type=click.IntRange(1),
    help="Number of sections; fewer than about 20 cannot be split into blocks.",
)
@click.option(
    "--pial", type=click.Path(path_type=Path), help="Paint on this pial surface. Needs --white."
)
@click.option(
    "--white", type=click.Path(path_type=Path), help="White surface with the triangles of --pial."
)
@click.option(
    "--labels", type=click.Path(path_type=Path), help="Area of each vertex: GIFTI or .annot."
)
@click.option(
    "--thickness",
    type=click.Path(path_type=Path),
    help="Thickness of six layers at each vertex [V, 6] in um: npz or npy.",
)
@click.option(
    "--y-range", nargs=2, type=float, metavar="FROM TO", help="Range of the section planes in mm."
)
@click.option("--workers", type=click.IntRange(1), help="Number of processes; default: the CPUs.")
@SEED
def phantom(
    out: Path, preset: str, null: bool, um_per_px, num_sections, workers, seed: int, **surfaces
) -> None:
    """Write a synthetic brain, or paint one on the given surfaces.

    \b
    Examples:
      jaxcyto phantom brains/toy --preset tiny
      jaxcyto phantom brains/painted --pial lh.pial.gii --white lh.white.gii --y-range -60 -50
    """
    from jaxcyto.phantom.given_surfaces import GivenHemisphere, paint_surfaces
    from jaxcyto.phantom.make import make_phantom
    from jaxcyto.phantom.settings import PRESETS
    from jaxcyto.utils.progress import StderrProgress

    given = {"um_per_px": um_per_px, "num_sections": num_sections}
    changes = {key: value for key, value in given.items() if value is not None}
    settings = dataclasses.replace(PRESETS[preset], seed=seed, null=null, **changes)
    progress = StderrProgress("phantom", "sections")
    y_range = surfaces.pop("y_range")
    if any(surfaces.values()) or y_range:
        if not (surfaces["pial"] and surfaces["white"] and y_range):
            raise InputError("painting given surfaces needs --pial, --white and --y-range together")
        hemisphere = GivenHemisphere(name="left", **surfaces)
        paint_surfaces(out, [hemisphere], y_range, settings, progress, workers)
    else:
        make_phantom(out, settings, progress, workers)
    click.echo(f"{out}: written; inspect it with `jaxcyto check {out}`")
