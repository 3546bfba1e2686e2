"""The machine: which device, how much memory was used, and the allocator's settings."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import sys
from pathlib import Path
from typing import Annotated, Literal

import torch

from metarun.engine.ranks import local_rank
from metarun.types import COMPUTE_ONLY, AtLeast, Natural, UserError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
THREADS = max(64, 4 * (os.cpu_count() or 1))  # at most: of some ten thousand the process dies without a word


def pick(
    type: Annotated[Literal["auto", "cpu", "cuda", "mps"], COMPUTE_ONLY],
    index: Annotated[Natural, COMPUTE_ONLY],
    threads: Annotated[int | None, AtLeast(1, below=THREADS + 1), COMPUTE_ONLY],
) -> torch.device:
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
        torch.cuda.set_device(index)  # streams and graphs are made on the current one
        torch.backends.cudnn.deterministic = True  # else a slope's last bits differ from run to run
    return torch.device("cpu" if type == "cpu" else f"{type}:{index}")


def processor(device: torch.device) -> str:
    """The model of the GPU, or of the machine's CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def seed_draws(device: torch.device, seed: int) -> None:
    """For what draws from the device's own generator. torch.manual_seed seeds those of all devices there might be one
    day, and remembers each call for them, with a traceback: a fifth of a millisecond, and kilobytes for ever."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA may round what it multiplies to 10 bits; torch lets convolutions do so unless told."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


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


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device, or on the machine where the device has none of its own."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for later use
        return torch.cuda.mem_get_info(device)[0] + kept
    known = linux_memory("meminfo", "MemAvailable")
    if known is not None:
        return known
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # macOS knows only all there is


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory: of the device where it counts its own, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    known = linux_memory("self/status", "VmHWM")  # ru_maxrss begins with the parent's
    if known is not None:
        return known / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def linux_memory(file: str, key: str) -> int | None:
    """Bytes, as a file of /proc has them."""
    try:
        found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc", file).read_text())
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None
