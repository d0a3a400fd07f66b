"""Memory of a CPU step is kept for the next one.

XLA takes the buffers of a step from malloc and gives them back at its end. By default glibc returns blocks of that size
to the kernel each time, and the next step pays for every page again.
"""

import ctypes

# From malloc.h: how much may lie unused at the top of the heap, and how many blocks may be mapped outside it.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Tells glibc to keep up to 2 GiB of freed memory. Does nothing under another C library."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_MMAP_MAX, 0)
