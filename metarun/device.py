"""The machine: which device, how much memory was used, and the allocator's settings."""

from __future__ import annotations

import ctypes
import resource
import sys
from typing import Literal

import torch

from metarun.distributed import local_rank
from metarun.errors import UserError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


def pick(type: Literal["auto", "cpu", "cuda", "mps"], index: int, threads: int | None) -> torch.device:
    """The device a config asks for; `auto` takes the first accelerator there is, else the CPU.

    Of several processes on a machine each takes a CUDA device of its own, counted from `index`.
    """
    rank = local_rank()
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and rank is None,  # torch.distributed does not reach it
        "cpu": True,
    }
    if threads is not None:
        torch.set_num_threads(threads)
    if type == "auto":
        type = "cuda" if available["cuda"] else "mps" if available["mps"] else "cpu"
    if not available[type]:
        raise UserError(
            f"device={type}: this machine (or this build of torch) has none. Take device=auto or device=cpu."
        )
    if type == "cuda":
        index += rank or 0
        if index >= (devices := torch.cuda.device_count()):
            remedy = "" if rank is None else " Each rank takes one: start no more ranks than there are."
            raise UserError(f"device.index={index}: there are {devices} CUDA devices, counted from 0.{remedy}")
        if rank is not None:
            torch.cuda.set_device(index)
    return torch.device("cpu" if type == "cpu" else f"{type}:{index}")


def keep_freed_memory() -> bool:
    """Tells glibc not to map and unmap large activations on each operation: page faults cost up to half the time."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, 1 << 30), (M_TOP_PAD, 1 << 27))
    return all(mallopt(option, value) == 1 for option, value in settings)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory: of the device where it counts its own, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
