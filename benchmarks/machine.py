"""The machine that figures hold for: its processor, its arithmetic peak, its allocator, its memory."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.measure import seconds
from metarun.engine.device import keep_freed_memory, linux_memory, peak_memory_mb, processor


def allocate(choice: str) -> None:
    """`tuned`: metarun's own settings, for every system of this process; to be called before anything else."""
    if choice == "tuned":
        keep_freed_memory()


def facts(device: torch.device) -> dict[str, Any]:
    load = busy_cores()
    sgemm, convolution = sgemm_rate(device) / 1e9, convolution_rate(device) / 1e9
    return {
        "name": processor(device),
        "cores": os.cpu_count(),
        "load": load,  # cores that others keep busy
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(device),
        "sgemm_gflops": sgemm,
        "convolution_gflops": convolution,
        "peak_gflops": max(sgemm, convolution),
    }


def busy_cores(window: float = 1.0) -> float:
    """How many cores others use while this process sleeps; elsewhere than on Linux the load of the last minute."""
    if not Path("/proc/stat").exists():
        return os.getloadavg()[0]

    def worked() -> float:
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
        return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")

    before = worked()
    time.sleep(window)
    return (worked() - before) / window


def sgemm_rate(device: torch.device) -> float:
    """Operations per second of a float32 matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device)
    return 2 * n**3 / _best(lambda: a @ b, device)


def convolution_rate(device: torch.device) -> float:
    """The same of a 1x1 convolution: a matrix product too, but by oneDNN, which is faster than MKL on AMD."""
    rows, channels, side = 16, 512, 28
    x = torch.randn(rows, channels, side, side, device=device)
    weight = torch.randn(channels, channels, 1, 1, device=device)
    return 2 * rows * channels**2 * side**2 / _best(lambda: F.conv2d(x, weight), device)


def _best(work: Callable[[], Any], device: torch.device) -> float:
    with torch.inference_mode():
        return min(seconds(work, device) for _ in range(8))


def resident_mb(device: torch.device) -> float:
    """Memory held now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    now = linux_memory("self/status", "VmRSS")
    return peak_memory_mb(device) if now is None else now / 2**20  # elsewhere the peak is all that can be had
