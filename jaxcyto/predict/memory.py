"""How large a window the devices can take."""

from jaxcyto.models import UNet
from jaxcyto.training import parallel

SHARE = 0.5  # of the free memory that windows may take


def bytes_per_px(model: UNet) -> float:
    """What a window takes on its device for each of its px, an estimate.

    The widest maps are the two of the first block: 4 bytes (float32 inside XLA:CPU whatever the
    dtype) * width / stride^2 each. XLA:CPU needs them and little more: 8.0 bytes a px at the
    paper's size, 11 with an atlas, 127 and 164 for the small one (measured). Twice the two leaves
    room for the atlas, a second window in the queue, and what GPU libraries work in.
    """
    return 2 * 2 * 4 * model.widths[0] / model.stem_stride**2


def window_bytes() -> float:
    """Bytes that a window may take on each local device."""
    return SHARE * parallel.free_bytes()
