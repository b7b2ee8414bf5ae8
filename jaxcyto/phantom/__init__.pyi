from .given_surfaces import GivenHemisphere, paint_surfaces
from .make import make_phantom, phantom_cortex
from .settings import PRESETS, PhantomSettings

__all__ = [
    "PRESETS",
    "GivenHemisphere",
    "PhantomSettings",
    "make_phantom",
    "paint_surfaces",
    "phantom_cortex",
]
