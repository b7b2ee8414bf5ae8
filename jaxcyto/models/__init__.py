"""Define the networks as Flax (Linen) modules."""

from jaxcyto.models.build import build_siamese, build_unet
from jaxcyto.models.encoder import Encoder
from jaxcyto.models.geometry import Geometry
from jaxcyto.models.siamese import SiameseNet
from jaxcyto.models.unet import UNet

__all__ = ["Encoder", "Geometry", "SiameseNet", "UNet", "build_siamese", "build_unet"]
