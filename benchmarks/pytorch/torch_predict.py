"""Segment a whole section in PyTorch by a plain loop over tiles, for `predict_speed.py`.

    python benchmarks/pytorch/torch_predict.py OUT/model.safetensors section.npy map.npy

The network runs in eval mode and inference_mode, in channels_last, with batch normalization folded
into the convolutions. It uses a GPU if there is one, with cudnn.benchmark. The section is an array
file mapped into memory and the map is written as another, so that nothing is decoded or compressed.
The process prints its versions and then answers each line of JSON on stdin with one on stdout. A
request has `tile_px` (side of a tile), `step` (map px between tiles) and `offset` (image px from a
tile's edge to its class map). The process needs torch, numpy and safetensors, but not jaxcyto.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn.utils.fusion import fuse_conv_bn_eval  # pyright: ignore[reportMissingImports]
from torch_net import UNet, load, standardize

STRIDE = 8  # image px per map px of the paper's network
BACKGROUND = 255


def fold(net: UNet) -> UNet:
    """Fold each batch normalization into the convolution before it."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            norm = name.replace("conv", "bn") if name.startswith("conv") else f"{name}_bn"
            if isinstance(child, (nn.Conv2d, nn.ConvTranspose2d)):
                up = isinstance(child, nn.ConvTranspose2d)
                fused = fuse_conv_bn_eval(child, getattr(module, norm), transpose=up)
                setattr(module, name, fused)
                setattr(module, norm, nn.Identity())
    return net


def predict(
    net: UNet, about: dict[str, Any], section: np.ndarray, tile: int, step: int, offset: int
) -> np.ndarray:
    """Segment a section uint8 [H, W] into a class map uint8 [h, w].

    Args:
        net: the network, whose batch normalization is folded.
        about: the metadata of its export.
        section: the image. Pixels outside of it count as background.
        tile: side of a tile in image px.
        step: distance of neighboring tiles in map px.
        offset: image px from a tile's edge to the edge of its class map.
    """
    device = next(net.parameters()).device
    height, width = (-(-side // STRIDE) for side in section.shape)
    found = np.empty((height, width), np.uint8)
    for row in range(0, height, step):
        for column in range(0, width, step):
            top, left = STRIDE * row - offset, STRIDE * column - offset
            window = np.full((tile, tile), BACKGROUND, np.uint8)
            y, x = slice(max(top, 0), top + tile), slice(max(left, 0), left + tile)
            inside = section[y, x]
            rows, columns = y.start - top, x.start - left
            window[rows : rows + inside.shape[0], columns : columns + inside.shape[1]] = inside
            image = torch.from_numpy(window)[None].to(device, non_blocking=True)
            image = standardize(image, about).contiguous(memory_format=torch.channels_last)
            classes = net(image)[0].argmax(0).to(torch.uint8).cpu().numpy()
            target = found[row : row + step, column : column + step]
            target[:] = classes[: target.shape[0], : target.shape[1]]
    return found


def main(weights: str, section: str, out: str) -> None:
    """Answer requests until stdin ends."""
    net, about = load(weights)
    assert isinstance(net, UNet)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    net = fold(net).to(device, memory_format=torch.channels_last)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": name}
    print(json.dumps(versions), flush=True)
    image = np.load(section, mmap_mode="r", allow_pickle=False)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        with torch.inference_mode():
            found = predict(
                net, about, image, request["tile_px"], request["step"], request["offset"]
            )
        np.save(out, found)
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
