"""Memory: what a device has, what a compiled step needs, and that a CPU's is kept from step to step.

XLA takes the buffers of a step from malloc and gives them back at its end. By default glibc returns blocks of that size
to the kernel each time, and the next step pays for every page again: measured, a fifth of a step.
"""

import ctypes
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

# From malloc.h and mman.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
MADV_HUGEPAGE = 14
HUGE_PAGE = 2**21
DEVICE_FILES = ("nvidia[0-9]*", "dxg", "kfd", "accel[0-9]*", "vfio/[0-9]*")  # of GPUs and TPUs, in /dev


def one_heap() -> None:
    """Has all threads that start from now on share one heap, where glibc can keep what is freed; before JAX starts any.

    Large blocks of a thread with a heap of its own come from the kernel and go back there, whatever else is asked for.
    Does nothing under another C library, nor where a GPU or TPU computes: compilers of many threads would wait there
    for each other.
    """
    if (libc := _glibc()) and not _accelerated():
        libc.mallopt(M_ARENA_MAX, 1)


def _accelerated() -> bool:
    """Whether there is a GPU or TPU that JAX may use, told without starting JAX."""
    allowed = os.environ.get("JAX_PLATFORMS", "") != "cpu"
    return allowed and any(path for name in DEVICE_FILES for path in Path("/dev").glob(name))


def keep_freed(mesh: jax.sharding.Mesh, compiled: Collection[Any]) -> None:
    """On a CPU: keeps what steps free for the next one, in huge pages; not if all of these need half of the memory.

    Kept blocks of different sizes may come to lie beside each other, so that all steps' needs count, not the largest.
    """
    size, mine = sum(map(needed, compiled)), _local_devices(mesh)
    libc = _glibc()
    if mesh.devices.flat[0].platform != "cpu" or not libc or size > room(mesh) // 2:
        return
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.free(libc.malloc(size * mine))  # the heap now ends so much later
    heap = next((line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if "[heap]" in line), "")
    if heap:
        begin, end = (int(word, 16) for word in heap.split("-"))
        begin = -(-begin // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(begin, max(0, end - begin), MADV_HUGEPAGE)


def _glibc() -> Any:
    """The C library, if it is glibc."""
    try:
        libc: Any = ctypes.CDLL("libc.so.6")
        libc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    except (OSError, AttributeError):  # another C library, or none of that name
        return None
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    return libc


def room(mesh: jax.sharding.Mesh) -> int:
    """Bytes that a device of the mesh has; on a CPU, its part of the machine's or container's. 0: not known."""
    device = next(d for d in mesh.devices.flat if d.process_index == jax.process_index())
    if device.platform != "cpu":
        return int((device.memory_stats() or {}).get("bytes_limit", 0))
    return _physical() // _local_devices(mesh)


def _local_devices(mesh: jax.sharding.Mesh) -> int:
    return sum(d.process_index == jax.process_index() for d in mesh.devices.flat)


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
