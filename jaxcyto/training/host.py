"""Settings of the host that make training on the CPU faster."""

import ctypes

# glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Asks glibc to keep freed memory instead of handing it back to the system.

    XLA:CPU allocates the buffers of every step anew; large ones are otherwise mapped, faulted in
    page by page and unmapped each time. The small network's step became 12 % faster on two cores.
    Of no use where the buffers live on an accelerator.

    Returns:
        Whether the C library took the settings (others than glibc do not).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = {
        M_MMAP_MAX: 0,
        M_TRIM_THRESHOLD: 2**31 - 1,
        M_TOP_PAD: 256 << 20,
        M_ARENA_MAX: 1,
    }
    return all(mallopt(option, value) == 1 for option, value in settings.items())
