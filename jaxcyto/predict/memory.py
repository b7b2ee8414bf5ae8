"""How large a window the devices can take."""

from pathlib import Path

import jax

from jaxcyto.models import UNet

SHARE = 0.5  # of the free memory that windows may take


def bytes_per_px(model: UNet) -> float:
    """What a window takes on its device for each of its px, an estimate.

    The widest maps are the two of the first block: 4 bytes (float32 inside XLA:CPU whatever the
    dtype) * width / stride^2 each. XLA:CPU needs them and little more: 8.0 bytes a px at the
    paper's size, 11 with an atlas, 127 and 164 for the small one (measured). Twice the two leaves
    room for the atlas, a second window in the queue, and what GPU libraries work in.
    """
    return 2 * 2 * 4 * model.widths[0] / model.stem_stride**2


def free_bytes() -> float:
    """Bytes that a window may take on each local device."""
    devices = jax.local_devices()
    stats = [device.memory_stats() for device in devices]
    if all(stats):
        free = min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)
    else:
        free = _host_bytes() / len(devices)  # they share the host's memory
    return SHARE * free


def _host_bytes() -> float:
    """Memory that processes can still have; one GiB where the system does not say."""
    free = [float(1 << 30)]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0.0, min(free))
