"""Time steps and forward passes of torch_net.py's networks for peer.py.

The process reads one JSON object per line and answers each with one:

    {"make": NAME, "weights": FILE, "images": FILE, "targets": FILE, "mode": "train" or "forward",
     "compile": bool, "channels_last": bool, "dtype": "float32" or "bfloat16"}
                                    -> {"value": the first step's loss, or the outputs' mean square}
    {"time": NAME, "repeats": N}    -> {"seconds": [...]}
    {"drop": NAME}                  -> {}
    {"about": true}                 -> {"torch": version, "device": name, "peak_gib": of memory}

The step does the same as `jaxcyto.training.step` with the default losses and without augmentation.
It standardizes uint8 images on the device, adds weight decay to the loss and applies SGD with
Nesterov momentum.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch_net
from torch import Tensor  # pyright: ignore[reportMissingImports]
from torch.nn.functional import cross_entropy  # pyright: ignore[reportMissingImports]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# weight of the coordinate loss, weight decay of kernels, learning rate
ALPHA, WEIGHT_DECAY, RATE = 10.0, 0.001, 0.001


def pair_loss(outputs: tuple[Tensor, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Compute the pretext loss in scaled units.

    It is |squared distance of the features - distance| + alpha |coordinate error|, averaged.
    """
    features, coordinates = (x.float().unflatten(0, (-1, 2)) for x in outputs)
    distance = ((features[:, 0] - features[:, 1]) ** 2).sum(-1)
    apart = (distance - targets["distance"]).abs().mean()
    return apart + ALPHA * (coordinates - targets["coordinates"]).abs().mean()


def pixel_loss(logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Compute the mean cross-entropy over all pixels."""
    return cross_entropy(logits.float(), targets["label"].long())


def kernels(net: torch.nn.Module) -> list[Tensor]:
    """List the parameters that weight decay applies to."""
    return [p for name, p in net.named_parameters() if p.ndim > 1]


def make(asked: dict[str, Any]) -> tuple[Callable[[], float], float]:
    """Build the function to time, and return it with its first value."""
    net, about = torch_net.load(asked["weights"])
    layout = torch.channels_last if asked["channels_last"] else torch.contiguous_format
    net = net.to(DEVICE, memory_format=layout)
    # pairs [B, 2, H, W] and tiles [B, H, W] both become images [N, 1, H, W]
    images = torch.from_numpy(np.load(asked["images"], allow_pickle=False)).to(DEVICE)
    images = images.flatten(0, images.ndim - 3)[:, None].contiguous(memory_format=layout)
    with np.load(asked["targets"], allow_pickle=False) as file:
        targets = {key: torch.from_numpy(file[key]).to(DEVICE) for key in file}
    scales = about["config"]["scales"]
    loss_of = pixel_loss if "label" in targets else pair_loss
    function = torch.compile(net) if asked["compile"] else net
    cast = torch.autocast(DEVICE, torch.bfloat16, enabled=asked["dtype"] == "bfloat16")
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, nesterov=True)

    def inputs() -> Tensor:
        return (images.float() - scales["input_mean"]) / scales["input_std"]

    def forward() -> float:
        with torch.inference_mode(), cast:
            outputs = function(inputs())
        outputs = outputs if isinstance(outputs, Tensor) else outputs[0]
        return float(outputs.float().square().mean())  # float() waits for the device

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with cast:
            outputs = function(inputs())
        loss = loss_of(outputs, targets)
        loss = loss + WEIGHT_DECAY * sum(p.square().sum() for p in kernels(net))
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    net.train(asked["mode"] == "train")
    call = step if asked["mode"] == "train" else forward
    value = call()
    for _ in range(2):
        call()
    return call, value


def main() -> None:
    """Answer requests until stdin ends."""
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    made: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any] = {}
        if "make" in asked:
            try:
                made[asked["make"]], answer["value"] = make(asked)
            except Exception as error:  # torch.compile may lack a compiler, but eager still runs
                answer["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        elif "time" in asked:
            made[asked["time"]]()  # not timed: caches are cold, and idle pages may be swapped out
            seconds = []
            for _ in range(asked["repeats"]):
                begin = time.perf_counter()
                made[asked["time"]]()
                seconds.append(time.perf_counter() - begin)
            answer["seconds"] = seconds
        elif "drop" in asked:
            made.pop(asked["drop"], None)
        else:
            answer = {"torch": torch.__version__, "device": DEVICE, "peak_gib": _peak_gib()}
        print(json.dumps(answer), flush=True)


def _peak_gib() -> float:
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
