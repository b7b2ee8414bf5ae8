"""Build the networks from a model config. No other place maps its fields to modules."""

from typing import Any, Protocol

import jax.numpy as jnp

from jaxcyto.models.geometry import Layout
from jaxcyto.models.siamese import SiameseNet
from jaxcyto.models.unet import UNet


class ModelFields(Layout, Protocol):
    """The fields of `config.ModelConfig`. Naming them here keeps models free of the config."""

    @property
    def features(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def remat(self) -> bool: ...


def build_siamese(model: ModelFields) -> SiameseNet:
    """Build the Siamese network of pre-training."""
    return SiameseNet(features=model.features, **_shared(model))


def build_unet(model: ModelFields, num_classes: int) -> UNet:
    """Build the segmentation network. It does not use `model.features`."""
    return UNet(num_classes=num_classes, **_shared(model))


def _shared(model: ModelFields) -> dict[str, Any]:
    return {
        "stem_kernel": model.stem_kernel,
        "stem_stride": model.stem_stride,
        "widths": tuple(model.widths),
        "dtype": jnp.dtype(model.dtype),
        "remat": model.remat,
    }
