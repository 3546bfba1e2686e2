"""A process that imports metarun and torch once and forks for each command line, so that a run begins in milliseconds.

Requests are JSON lines on standard input, each answered by one line on standard output. A fork ends as a process of its
own does: through the interpreter's finalisation, with the exit code of metarun's `main`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

IMPORTED = (
    "metarun.cli.main",
    "metarun.cli.train",
    "metarun.cli.report",
    "metarun.run",
    "metarun.tracking.trackers",
    "torch.distributed",
    "torch.utils.tensorboard",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "torch._dynamo",
)
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, CAPABILITIES_3 = 1, 24, 0x20080522  # of Linux
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
TICK = 0.005  # seconds


def main() -> int:
    """Serves until standard input ends. In a fork it returns metarun's exit code."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that is imported may speak into the answers
    for name in IMPORTED:
        importlib.import_module(name)
    assert _threads() == 1, "a fork would lose the other threads, and with them their locks"
    as_ordinary_user()
    gc.collect()
    gc.freeze()  # a fork that ends need not look at all that was imported
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            answer = waited(**request)
        else:
            reader, writer = os.pipe()
            if not (child := os.fork()):
                os.close(reader)
                answers.close()
                return _child(request, writer)
            os.close(writer)
            os.read(reader, 1)  # the child is ready, or the program that it became has begun
            os.close(reader)
            answer = {"pid": child}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


def _child(request: dict[str, Any], ready: int) -> int:
    os.setsid()  # a process group of its own, which can be killed whole
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    if request["file_size"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    program, *words = [os.fsencode(word) for word in request["words"]]
    if program != b"metarun":
        os.execv(program, [program, *words])
    if request["fault"]:
        from benchmarks.faults.injected import inject

        inject(**request["fault"])
    from metarun.cli.main import main as metarun

    sys.argv = request["words"]
    os.write(ready, b"!")
    os.close(ready)
    return metarun()


def waited(pid: int, seconds: float, megabytes: float) -> dict[str, Any]:
    """The exit code once the process has ended, or None after so many seconds; it dies where it grows beyond a size."""
    end = time.monotonic() + seconds
    grown = False
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return {"code": os.waitstatus_to_exitcode(status), "grown": grown}
        if not grown and resident_mb(pid) > megabytes:
            grown = True
            os.killpg(pid, signal.SIGKILL)
        if time.monotonic() >= end:
            return {"code": None, "grown": grown}
        time.sleep(TICK)


def resident_mb(pid: int) -> float:
    """Of a process; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def as_ordinary_user() -> None:
    """Root opens what chmod forbids: that right is given up, here and for all that is started from here."""
    if not sys.platform.startswith("linux") or os.geteuid():
        return
    libc = ctypes.CDLL(None)
    header, data = (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        for kind in (0, 1):  # effective and permitted ones
            data[kind] &= ~(1 << capability)
    libc.capset(header, data)


def _threads() -> int:
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else 1


if __name__ == "__main__":
    sys.exit(main())
