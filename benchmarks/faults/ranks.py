"""Launches of torchrun: two or three ranks train, test and end, or are told of a mistake or of a lost rank."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed import TCPStore

from benchmarks.faults.checks import Short, completed, refused, result, spoken, whole
from benchmarks.faults.kills import checkpointed, here
from benchmarks.faults.place import Ended, Place, Running
from benchmarks.faults.variants import must, words
from metarun.tracking import checkpoint

CHOSEN = ("fomaml", "protonet", "sinusoid")  # variants
BOTH = {"train.tasks": "6", "optim": "sgd", "optim.lr": "0.01"}  # Adam, or large steps, would make rounding large
REAL = 0.3  # share of launches by torchrun itself: forks end later than new interpreters, and races differ
CLOSE = 1e-3  # what summing in another order may do to parameters
TORCHRUNS = re.compile(r"^[WIE]\d{4} .*torch/distributed/|^\*+$")  # its own lines of standard error
WRONG = ("optim.lr=abc", "train.stepz=5", "algo=nope", "data.ways=1000", "train.tasks=1")


def case(place: Place) -> list[Short]:
    """The launch ends as one process would, with its parameters up to rounding."""
    random = place.random
    variant = random.choice(CHOSEN)
    alone = place.shared.once(f"alone {variant}", lambda folder: _alone(place.elsewhere(folder), variant, folder))
    command = [*_words(variant), "hydra.run.dir=run"]
    size = random.choice((2, 2, 2, 3))
    run = here(place) / "run"
    dice = random.random()
    if dice < REAL:
        return real(place, size, command) or close(run, alone / "run")
    if dice < REAL + 0.08:
        return mistaken(place, size, [*command, random.choice(WRONG)])
    if dice < REAL + 0.16:
        short = lost(place, size, command)
        again = ["resume=run"] if checkpointed(run) else command
        return short + whole(run, alone / "run") or ends_well(place, size, again) or close(run, alone / "run")
    return ends_well(place, size, command) or close(run, alone / "run")


@contextmanager
def launch(place: Place, size: int, command: list[str]) -> Iterator[list[Running]]:
    """Forked ranks with the environment that torchrun gives them; as there, the store is none of theirs."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    world = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "TORCHELASTIC_RUN_ID": "faults"}
    world |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    yield [place.start(*command, env={**world, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(size)]


def ends_well(place: Place, size: int, command: list[str]) -> list[Short]:
    """Exit code 0 of every rank, and the first one alone speaks."""
    with launch(place, size, command) as ranks:
        ended = [rank.end() for rank in ranks]
    short = [fault for one in ended for fault in completed(one)]
    if talking := [rank for rank, one in enumerate(ended) if rank and one.out]:
        short.append(Short("that the first rank alone speaks", f"rank {talking[0]}: {ended[talking[0]].out[:200]!r}"))
    return short


def real(place: Place, size: int, command: list[str]) -> list[Short]:
    """The same by torchrun itself."""
    program = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}")
    ended = place.run("-m", "metarun", *command, program=program, seconds=120)
    own = "\n".join(line for line in ended.err.splitlines() if not TORCHRUNS.match(line))
    return completed(Ended(ended.code, ended.out, own, ended.seconds, ended.stopped))


def mistaken(place: Place, size: int, command: list[str]) -> list[Short]:
    """A mistake is told once, by one of the ranks, and all end with exit code 2."""
    with launch(place, size, command) as ranks:
        ended = [rank.end() for rank in ranks]
    short = [fault for one in ended for fault in spoken(one)]
    if not short and any(one.code != 2 for one in ended):
        short.append(Short("exit code 2 of all ranks", ", ".join(str(one.code) for one in ended)))
    lines = [line for one in ended for line in one.lines]
    if not short and len(lines) != 1:
        short.append(Short("one line by all ranks together", f"{len(lines)}: {lines}"))
    return short


def lost(place: Place, size: int, command: list[str]) -> list[Short]:
    """A rank is killed, or all are stopped as by torchrun: whoever is left ends soon, with lines of metarun's only."""
    random = place.random
    together = random.random() < 0.5
    with launch(place, size, command) as ranks:
        ranks[0].wait(random.uniform(0.1, 3.0))
        if not together:
            victim = ranks[random.randrange(size)]
            victim.signal(signal.SIGKILL)
            victim.end()
            ranks[0].wait(random.uniform(0.0, 3.0))
        for rank in ranks:  # torchrun ends the others when it sees that one has ended
            if rank.wait(0.0) is None:
                rank.signal(signal.SIGTERM)
        ended = [rank.end() for rank in ranks]
    short = []
    for number, one in enumerate(ended):
        if one.code == -signal.SIGKILL and not one.stopped:
            continue
        short += spoken(one)
        if one.code not in (0, 2, 143, -signal.SIGTERM) and not short:  # the last after metarun's own end
            short.append(Short("exit code 0, 2 or 143", f"{one.code} of rank {number}"))
        if not together and one.code == 2:
            short += refused(one) if one.lines else []
    return short


def close(run: Path, alone: Path) -> list[Short]:
    """Completed, with the parameters of one process up to rounding."""
    ours, theirs = result(run), result(alone)
    if (ours.get("status"), ours.get("steps")) != ("completed", theirs["steps"]):
        return [Short(f"a completed run of {theirs['steps']} steps", f"{ours.get('status')}, {ours.get('steps')}")]
    one, other = (checkpoint.load(folder / "checkpoints" / "last.pt")["params"] for folder in (run, alone))
    apart = [name for name, p in other.items() if not torch.allclose(one[name], p, rtol=CLOSE, atol=CLOSE)]
    if not apart:
        return []
    far = max(float((one[name] - other[name]).abs().max()) for name in apart)
    return [Short("the parameters of one process up to rounding", f"{far:.1e} apart in {apart[0]}")]


def _alone(place: Place, variant: str, folder: Path) -> None:
    must(place.run(*_words(variant), "hydra.run.dir=run", cwd=folder))


def _words(variant: str) -> list[str]:
    own = [word for word in words(variant) if word.partition("=")[0] not in BOTH]
    return own + [f"{key}={value}" for key, value in BOTH.items()]
