"""Load an export into PyTorch networks with the same layers, names and outputs (to 1e-4).

    python benchmarks/pytorch/torch_net.py OUT/model.safetensors images.npy outputs.npz [atlas.npy]

`images.npy` holds uint8 [N, H, W]. `outputs.npz` gets `features` and `coordinates_scaled` of a
pre-training network, or `logits` [N, h, w, classes] of a segmentation network. The latter may take
an atlas, uint8 [N, h', w', areas].

The script needs torch, numpy and safetensors, but not jaxcyto. The frameworks differ in two points.
Flax has channels last. Flax also updates the running variance of batch normalization with the
biased variance of a batch and PyTorch with the unbiased one, which matters in training only.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from safetensors import safe_open
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch.nn.functional import max_pool2d, relu  # pyright: ignore[reportMissingImports]

EPSILON, MOMENTUM = 1e-5, 0.1  # of batch normalization. MOMENTUM is 1 minus Flax's momentum.
ATLAS_KERNEL = 5


def batch_norm(width: int) -> nn.BatchNorm2d:
    """Make the batch normalization of every layer."""
    return nn.BatchNorm2d(width, eps=EPSILON, momentum=MOMENTUM)


class Block(nn.Module):
    """Valid convolutions without bias, each followed by batch normalization and ReLU.

    Args:
        channels: input channels.
        width: output channels.
        kernel: kernel side of the first convolution. The others are 3x3.
        stride: stride of the first convolution.
        convs: number of convolutions.
    """

    def __init__(self, channels: int, width: int, kernel: int = 3, stride: int = 1, convs: int = 2):
        super().__init__()
        self.convs = convs
        for number in range(1, convs + 1):
            conv = nn.Conv2d(channels, width, kernel, stride, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", batch_norm(width))
            channels, kernel, stride = width, 3, 1

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, width, h, w]."""
        for number in range(1, self.convs + 1):
            x = self.get_submodule(f"conv{number}")(x)
            x = relu(self.get_submodule(f"bn{number}")(x))
        return x


class Encoder(nn.Module):
    """Blocks with 2x2 max pooling between them, in ceil mode.

    Args:
        channels: input channels.
        widths: channels of the blocks.
        kernel: kernel side of the first convolution of the first block.
        stride: stride of the same convolution.
        convs: convolutions of the first block.
        pool: whether pooling follows the first block.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], kernel: int, stride: int, convs=2, pool=True
    ):
        super().__init__()
        self.pool = pool
        self.blocks = len(widths)
        for number, width in enumerate(widths, start=1):
            first = (kernel, stride, convs) if number == 1 else ()
            self.add_module(f"block{number}", Block(channels, width, *first))
            channels = width

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map [B, C, H, W] to the outputs of all blocks, before pooling."""
        outputs = []
        for number in range(1, self.blocks + 1):
            if number > 2 or (number == 2 and self.pool):
                x = max_pool2d(x, 2, ceil_mode=True)
            x = self.get_submodule(f"block{number}")(x)
            outputs.append(x)
        return outputs


class SiameseBranch(nn.Module):
    """One branch of the Siamese network. Both branches share their weights.

    Args:
        stem_kernel: kernel side of the first convolution.
        stem_stride: stride of the first convolution.
        widths: channels of the blocks.
        features: length of the feature vector.
    """

    def __init__(self, stem_kernel: int, stem_stride: int, widths: Sequence[int], features=32):
        super().__init__()
        self.encoder = Encoder(1, widths, stem_kernel, stem_stride)
        self.features = nn.Linear(widths[-1], features)
        self.coordinates = nn.Linear(features, 3)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Map standardized patches [N, 1, s, s] to features [N, F] and coordinates [N, 3].

        The coordinates are scaled.
        """
        last = self.encoder(patches)[-1].flatten(1)
        features = self.features(last)
        return features, self.coordinates(features)


class UNet(nn.Module):
    """The segmentation network.

    Args:
        num_classes: channels of the logits.
        stem_kernel: kernel side of the first convolution.
        stem_stride: stride of the first convolution.
        widths: channels of the blocks of the contracting path.
        atlas_channels: number of areas of the atlas. 0 makes the base network without an atlas.
    """

    def __init__(
        self,
        num_classes: int,
        stem_kernel: int,
        stem_stride: int,
        widths: Sequence[int],
        atlas_channels: int = 0,
    ):
        super().__init__()
        paths = 2 if atlas_channels else 1
        self.encoder = Encoder(1, widths, stem_kernel, stem_stride)
        if atlas_channels:
            self.atlas_encoder = Encoder(
                atlas_channels, widths, ATLAS_KERNEL, 1, convs=1, pool=False
            )
        self.ups = range(len(widths) + 1, 2 * len(widths) - 1)
        channels = paths * widths[-1]
        for number, width in zip(self.ups, reversed(widths[1:-1]), strict=True):
            self.add_module(f"up{number}", nn.ConvTranspose2d(channels, width, 2, 2, bias=False))
            self.add_module(f"up{number}_bn", batch_norm(width))
            self.add_module(f"block{number}", Block((1 + paths) * width, width))
            channels = width
        self.classifier = nn.Conv2d(channels, num_classes, 1, bias=False)
        self.classifier_bn = batch_norm(num_classes)

    def forward(self, image: Tensor, atlas: Tensor | None = None) -> Tensor:
        """Map images and atlas to logits [B, classes, ...].

        Args:
            image: standardized, [B, 1, H, W].
            atlas: values from 0 to 1, [B, A, h, w].
        """
        paths = [self.encoder(image)]
        if atlas is not None:
            paths.append(self.atlas_encoder(atlas))
        # the paths are on the same grid from the second block on
        *skips, x = (torch.cat(maps, 1) for maps in zip(*(p[1:] for p in paths), strict=True))
        for number, skip in zip(self.ups, reversed(skips), strict=True):
            x = self.get_submodule(f"up{number}")(x)
            x = relu(self.get_submodule(f"up{number}_bn")(x))
            top, left = ((a - b) // 2 for a, b in zip(skip.shape[2:], x.shape[2:], strict=True))
            skip = skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]
            x = self.get_submodule(f"block{number}")(torch.cat([x, skip], 1))
        return self.classifier_bn(self.classifier(x))


def load(path: str) -> tuple[SiameseBranch | UNet, dict[str, Any]]:
    """Load the network of an export, in eval mode.

    Args:
        path: model.safetensors.

    Returns:
        The network and the table of the metadata (`config`, `results`, ...).

    Raises:
        RuntimeError: the leaves do not match the network that the config describes.
    """
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["jaxcyto"])
        state = dict(_to_torch(name, file.get_tensor(name)) for name in file.keys())
    config = about["config"]
    table = config["model"]
    layout = table["stem_kernel"], table["stem_stride"], table["widths"]
    if "classes" in config:
        areas = sum(entry["kind"] == "area" for entry in config["classes"])
        net = UNet(len(config["classes"]), *layout, areas if config["data"]["atlas"] else 0)
    else:
        net = SiameseBranch(*layout, table["features"])
    found = net.load_state_dict(state, strict=False)
    missing = [key for key in found.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or found.unexpected_keys:
        raise RuntimeError(f"{path}: missing {missing}, unexpected {found.unexpected_keys}")
    return net.eval(), about


def standardize(images: np.ndarray | Tensor, about: dict[str, Any]) -> Tensor:
    """Standardize images uint8 [N, H, W] to float32 [N, 1, H, W] as in training."""
    scales = about["config"]["scales"]
    gray = torch.as_tensor(images).float()[:, None]
    return (gray - scales["input_mean"]) / scales["input_std"]


def _to_torch(name: str, leaf: Tensor) -> tuple[str, Tensor]:
    """Convert the name and the axes of a leaf from Flax to PyTorch."""
    _, *modules, kind = name.split("/")
    if kind == "kernel":
        if modules[-1].startswith("up"):  # [2, 2, in, out], mirrored relative to PyTorch
            leaf = leaf.flip(0, 1).permute(2, 3, 0, 1)
        elif leaf.ndim == 4:  # [height, width, in, out]
            leaf = leaf.permute(3, 2, 0, 1)
        else:
            leaf = leaf.T
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    return ".".join([*modules, names.get(kind, kind)]), leaf.contiguous()


def main(path: str, images: str, out: str, *atlas: str) -> None:
    """Apply a network to images on disk."""
    net, about = load(path)
    given = [standardize(np.load(images, allow_pickle=False), about)]
    for name in atlas:
        gray = torch.from_numpy(np.load(name, allow_pickle=False))
        given.append(gray.permute(0, 3, 1, 2).float() / 255)
    with torch.no_grad():
        found = net(*given)
    if isinstance(net, UNet):
        np.savez(out, logits=found.permute(0, 2, 3, 1).numpy())
    else:
        np.savez(out, features=found[0].numpy(), coordinates_scaled=found[1].numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
