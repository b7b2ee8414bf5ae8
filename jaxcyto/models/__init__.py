"""Flax (Linen) modules of the networks."""

from jaxcyto.models.encoder import Encoder
from jaxcyto.models.geometry import Geometry
from jaxcyto.models.siamese import SiameseNet

__all__ = ["Encoder", "Geometry", "SiameseNet"]
