"""Build the networks from a model config. No other place maps its fields to modules."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax.numpy as jnp

from jaxcyto.models.encoder import Encoder
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
    @property
    def decoder(self) -> str: ...
    @property
    def pools(self) -> Sequence[int]: ...


def build_siamese(model: ModelFields) -> SiameseNet:
    """Build the Siamese network of pre-training."""
    return SiameseNet(features=model.features, **_shared(model))


def build_unet(model: ModelFields, num_classes: int) -> UNet:
    """Build the segmentation network. It does not use `model.features`."""
    decoder = {"decoder": model.decoder, "pools": tuple(model.pools)}
    return UNet(num_classes=num_classes, **decoder, **_shared(model))


def build_scores(net: SiameseNet, num_classes: int, pools: Sequence[int]) -> UNet:
    """Build the segmentation network with score maps on the contracting path of `net`."""
    return UNet(
        num_classes=num_classes,
        stem_kernel=net.stem_kernel,
        stem_stride=net.stem_stride,
        widths=tuple(net.widths),
        decoder="scores",
        pools=tuple(pools),
        dtype=net.dtype,
    )


def build_encoder(net: UNet) -> Encoder:
    """Build the contracting path of a segmentation network, for its own use."""
    return Encoder(net.stem_kernel, net.stem_stride, tuple(net.widths), dtype=net.dtype)


def _shared(model: ModelFields) -> dict[str, Any]:
    return {
        "stem_kernel": model.stem_kernel,
        "stem_stride": model.stem_stride,
        "widths": tuple(model.widths),
        "dtype": jnp.dtype(model.dtype),
        "remat": model.remat,
    }
