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
from torch.nn.functional import (  # pyright: ignore[reportMissingImports]
    avg_pool2d,
    interpolate,
    max_pool2d,
    relu,
)

EPSILON, MOMENTUM = 1e-5, 0.1  # of batch normalization. MOMENTUM is 1 minus Flax's momentum.
ATLAS_KERNEL = 5
SCORED = 3  # last blocks whose maps give scores


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


class Scores(nn.Module):
    """Class scores that are linear in the maps of the last blocks.

    Args:
        num_classes: channels of the scores.
        widths: channels of the last blocks' maps, front to back.
        pools: odd sides of the squares of local means of the last map.
    """

    def __init__(self, num_classes: int, widths: Sequence[int], pools: Sequence[int]):
        super().__init__()
        self.sides = (1, *pools)
        for side in self.sides:
            self.add_module(f"pool{side}", nn.Conv2d(widths[-1], num_classes, 1, bias=False))
        for back, width in enumerate(reversed(widths[:-1]), start=1):
            self.add_module(f"skip{back}", nn.Conv2d(width, num_classes, 1, bias=False))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map the outputs of all blocks but the first to scores [B, classes, h, w]."""
        *skips, last = maps
        size = [side - max(self.sides) + 1 for side in last.shape[2:]]
        means = (_center(avg_pool2d(last, side, 1), *size) for side in self.sides)
        parts = zip(self.sides, means, strict=True)
        x = torch.stack([self.get_submodule(f"pool{side}")(mean) for side, mean in parts]).sum(0)
        for back, skip in enumerate(reversed(skips), start=1):
            x = interpolate(x, scale_factor=2, mode="bilinear")[:, :, 2:-2, 2:-2]
            if back < SCORED:
                x = x + self.get_submodule(f"skip{back}")(_center(skip, *x.shape[2:]))
        return x + self.bias[None, :, None, None]


def _center(x: Tensor, height: int, width: int) -> Tensor:
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width]


class UNet(nn.Module):
    """The segmentation network.

    Args:
        num_classes: channels of the logits.
        stem_kernel: kernel side of the first convolution.
        stem_stride: stride of the first convolution.
        widths: channels of the blocks of the contracting path.
        atlas_channels: number of areas of the atlas. 0 makes the base network without an atlas.
        decoder: way to the logits, "unet" by the expansive path, "scores" or "both".
        pools: sides of the local means for scores.
    """

    def __init__(
        self,
        num_classes: int,
        stem_kernel: int,
        stem_stride: int,
        widths: Sequence[int],
        atlas_channels: int = 0,
        decoder: str = "unet",
        pools: Sequence[int] = (),
    ):
        super().__init__()
        paths = 2 if atlas_channels else 1
        self.encoder = Encoder(1, widths, stem_kernel, stem_stride)
        if atlas_channels:
            self.atlas_encoder = Encoder(
                atlas_channels, widths, ATLAS_KERNEL, 1, convs=1, pool=False
            )
        self.scores, self.reach = None, max(pools, default=1) // 2
        if decoder != "unet":
            self.scores = Scores(num_classes, [paths * width for width in widths[-SCORED:]], pools)
        self.ups = range(len(widths) + 1, 2 * len(widths) - 1) if decoder != "scores" else ()
        if self.ups:
            self._make_expansive_path(num_classes, widths, paths)

    def _make_expansive_path(self, num_classes: int, widths: Sequence[int], paths: int) -> None:
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
        maps = [torch.cat(each, 1) for each in zip(*(p[1:] for p in paths), strict=True)]
        logits = [self.scores(maps)] if self.scores is not None else []
        if self.ups:
            logits.append(self._expand(maps))
        return torch.stack(logits).sum(0)

    def _expand(self, maps: list[Tensor]) -> Tensor:
        *skips, last = maps
        x = _center(last, *(side - 2 * self.reach for side in last.shape[2:]))
        for number, skip in zip(self.ups, reversed(skips), strict=True):
            x = self.get_submodule(f"up{number}")(x)
            x = relu(self.get_submodule(f"up{number}_bn")(x))
            skip = _center(skip, *x.shape[2:])
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
        decoder = table.get("decoder", "unet"), table.get("pools", ())
        channels = areas if config["data"]["atlas"] else 0
        net = UNet(len(config["classes"]), *layout, channels, *decoder)
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
