"""Make a synthetic brain, written to disk in the format of a real one (see docs/phantom.md)."""

import os
from pathlib import Path

import numpy as np

from jaxcyto.phantom import cortex as shape
from jaxcyto.phantom.settings import PRESETS, PhantomSettings, coronal_plans
from jaxcyto.phantom.writer import write_brain
from jaxcyto.utils.progress import Progress


def make_phantom(
    out: str | os.PathLike,
    settings: PhantomSettings = PRESETS["quickstart"],
    progress: Progress | None = None,
    workers: int | None = None,
) -> Path:
    """Write a phantom brain folder. The folder appears at `out` only when it is complete.

    Args:
        out: the folder to make. It must not exist yet, or be empty.
        settings: settings of the phantom.
        progress: called with the number of sections done and the number of all sections.
        workers: number of processes, all cores if None. The result does not depend on it.

    Returns:
        The folder.

    Raises:
        InputError: if `out` exists and is not an empty folder.
    """
    cortex = phantom_cortex(settings)
    plans = coronal_plans(
        cortex,
        (np.arange(settings.num_sections) - (settings.num_sections - 1) / 2) * settings.spacing_mm,
        settings.own_seed,
    )
    names = [f"area {k + 1}" for k in range(settings.num_areas)]
    return write_brain(out, settings, cortex, plans, names, ["left", "right"], progress, workers)


def phantom_cortex(settings: PhantomSettings) -> shape.Cortex:
    """Make both hemispheres of the phantom. The null brain differs in its profiles only."""
    # Individuals differ in their folds (`own_seed`) and share areas and profiles (`seed`).
    form = np.random.default_rng((settings.own_seed, 0))
    layout, texture = (np.random.default_rng((settings.seed, k)) for k in (1, 2))
    unfolded, pial, white, faces = shape.hemisphere(
        settings.long_axis_mm, settings.mesh_subdivisions, form
    )
    count = settings.num_areas + settings.num_other
    region = shape.regions(unfolded, count, layout)
    profiles = shape.area_profiles(unfolded, region, count, settings.null, texture)
    skew = shape.volume_skew(pial, white, faces)
    mirror, size = np.array([-1, 1, 1]), len(pial)

    def both(values):
        return np.concatenate([values, values])

    return shape.Cortex(
        pial=np.concatenate([pial * mirror, pial]),
        white=np.concatenate([white * mirror, white]),
        faces=np.concatenate([faces[:, ::-1], faces + size]),
        area=both(np.minimum(region, settings.num_areas)),
        profiles=shape.Profiles(**{name: both(values) for name, values in vars(profiles).items()}),
        skew=both(skew),
        starts=(0, size, 2 * size),
    )
