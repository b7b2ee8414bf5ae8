"""A synthetic brain, written to disk in the form of a real one: see docs/phantom.md."""

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
    """Writes a phantom brain folder; nothing is left at `out` unless it is finished.

    Args:
        out: the folder to make; it must not exist yet, or be empty.
        settings: what is made.
        progress: told the sections done.
        workers: processes (all cores if None); the result does not depend on it.

    Raises:
        InputError: `out` is in use.
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
    """Both hemispheres of the phantom; the null brain differs in its profiles only."""
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
