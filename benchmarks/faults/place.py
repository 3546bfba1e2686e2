"""Where one case is tried: a folder of its own, a server that starts processes, and the story of what was done."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any

import metarun

ROOT = Path(metarun.__file__).parents[1]
LIMIT = 60.0  # seconds that a process may take
MEMORY = 4000.0  # MB
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
HIDDEN = {"PATH", "PYTHONPATH", *ONE_THREAD, *NO_NETWORK}  # of the environment, in a story


class Server:
    """The process of server.py."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server ended with {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


@dataclass(frozen=True)
class Ended:
    """How a process ended and what it said."""

    code: int  # negative: the signal that killed it
    out: str
    err: str
    seconds: float
    stopped: str  # why the campaign killed it, if it did

    @property
    def lines(self) -> list[str]:
        """Of standard error."""
        return [line for line in self.err.splitlines() if line.strip()]


@dataclass
class Running:
    """A process that was started; the story gets a line when it is signalled and when it has ended."""

    server: Server
    pid: int
    streams: tuple[Path, Path]
    story: list[str]
    memory: float
    since: float = field(default_factory=time.monotonic)
    ended: dict[str, Any] | None = None
    seconds: float = 0.0

    def wait(self, seconds: float) -> int | None:
        """The exit code, if it ends within so many seconds."""
        if self.ended is None:
            found = self.server.ask(pid=self.pid, seconds=seconds, megabytes=self.memory)
            self.seconds = time.monotonic() - self.since
            if found["code"] is None:
                return None
            self.ended = found
        return self.ended["code"]

    def signal(self, number: signal.Signals) -> None:
        """Sends it to the process, if that is still there."""
        if self.ended is None:
            self.story.append(f"    {number.name} to process {self.pid} after {time.monotonic() - self.since:.3f} s")
            os.kill(self.pid, number)  # not reaped yet, so that the number is still its own

    def end(self, seconds: float = LIMIT) -> Ended:
        """Waits for it, and kills it after so many seconds."""
        stopped = ""
        if self.wait(seconds) is None:
            stopped = f"killed, as it was still running after {self.seconds:.0f} s"
            os.killpg(self.pid, signal.SIGKILL)
            while self.wait(1.0) is None:
                pass
        assert self.ended is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started and left behind
        if self.ended["grown"]:
            stopped = f"killed, as it took more than {self.memory:.0f} MB of memory"
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in self.streams)
        self.story.append(
            f"    process {self.pid}: exit code {self.ended['code']} after {self.seconds:.2f} s {stopped}"
        )
        self.story += [f"    | {line[:300]}" for line in err.splitlines()[-12:]]
        return Ended(self.ended["code"], out, err, self.seconds, stopped)


class Shared:
    """What cases have in common, such as a run that nobody disturbed: made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lock = folder, Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """The folder of that name, which `make` fills."""
        with self.lock:
            folder = self.folder / name
            if not folder.exists():
                folder.mkdir()
                try:
                    make(folder)
                except BaseException:
                    shutil.rmtree(folder)
                    raise
            return folder


@dataclass
class Place:
    server: Server
    folder: Path  # of this case
    shared: Shared
    random: Random
    story: list[str] = field(default_factory=list)
    started: int = 0

    def start(
        self,
        *words: str,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        program: tuple[str, ...] = ("metarun",),
        fault: dict[str, Any] | None = None,
        file_size: int | None = None,
        memory: float = MEMORY,
    ) -> Running:
        """Starts metarun with these words; another program in a process that knows nothing of the server's."""
        cwd = cwd or self.folder / "in" / "here"
        home = self.folder / "home"
        for folder in (cwd, home):
            folder.mkdir(parents=True, exist_ok=True)
        environment = {
            **{"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(home), "LANG": "C.UTF-8"},
            **{"METARUN_CACHE": str(self.shared.folder / "cache"), "METARUN_DATA": str(self.folder / "no data")},
            **ONE_THREAD,
            **NO_NETWORK,
            **(env or {}),
        }
        own = [f"{name}={shlex.quote(value)}" for name, value in environment.items() if name not in HIDDEN]
        command = shlex.join([*program, *words]).encode(errors="backslashreplace").decode()
        self.story.append(f"cd {shlex.quote(str(cwd))} && {' '.join(own)} {command}")
        for name, value in (("fault", fault), ("RLIMIT_FSIZE", file_size)):
            if value is not None:
                self.story.append(f"    with {name}: {value}")
        self.started += 1
        streams = (self.folder / f"{self.started}.out", self.folder / f"{self.started}.err")
        pid = self.server.ask(
            words=[*program, *words],
            cwd=str(cwd),
            env=environment,
            out=str(streams[0]),
            err=str(streams[1]),
            fault=fault,
            file_size=file_size,
        )["pid"]
        return Running(self.server, pid, streams, self.story, memory)

    def run(self, *words: str, seconds: float = LIMIT, **how: Any) -> Ended:
        """Starts metarun and waits for its end."""
        return self.start(*words, **how).end(seconds)

    def elsewhere(self, folder: Path) -> Place:
        """A place for what this case shares with others, which is no part of its story."""
        return Place(self.server, folder, self.shared, self.random)


FRESH = (sys.executable, "-m", "metarun")  # a new interpreter, for what happens while it starts
