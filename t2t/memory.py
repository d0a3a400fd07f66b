"""Memory: what a device has, what a compiled step needs, and that a CPU's is kept from step to step.

XLA takes the buffers of a step from malloc and gives them back at its end. By default glibc returns blocks of that size
to the kernel each time, and the next step pays for every page again.
"""

import ctypes
import os
from pathlib import Path
from typing import Any

import jax

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


def room(mesh: jax.sharding.Mesh) -> int:
    """Bytes that a device of the mesh has; on a CPU, its part of the machine's or container's. 0: not known."""
    device = next(d for d in mesh.devices.flat if d.process_index == jax.process_index())
    if device.platform != "cpu":
        return int((device.memory_stats() or {}).get("bytes_limit", 0))
    mine = sum(d.process_index == jax.process_index() for d in mesh.devices.flat)
    return _physical() // mine


def _physical() -> int:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(size, int(text)) if text.isdecimal() else size


def needed(compiled: Any) -> int:
    """Bytes that a compiled function needs on each device: arguments, outputs beside them, and what lives within."""
    sizes = compiled.memory_analysis()
    outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + outputs + sizes.temp_size_in_bytes + sizes.generated_code_size_in_bytes
