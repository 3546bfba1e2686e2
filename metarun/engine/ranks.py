"""Many devices: the processes that `torchrun` started train one run together.

In each meta-step every rank draws the same tasks and takes its share of them; one all-reduce of gradients and metrics
then gives all ranks the same step. What tensors of the CPU are asked goes by gloo, those of CUDA by nccl, so the
ranks can agree on when to end at every step without waiting for a GPU.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from metarun.errors import UserError, one_line

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Lost(UserError):
    """Another rank is gone: nothing can be asked of all any more."""

    def __init__(self, error: RuntimeError) -> None:
        reason = re.sub(r"^\[.*?\] ", "", one_line(error)).partition(". ")[0]
        super().__init__(f"another rank ended or cannot be reached (torchrun's report says which): {reason}.")
        self.folder: Path | None = None  # to resume from


@dataclass(frozen=True)
class Team:
    """The ranks of a run; the first one alone speaks and writes. Where it is the only one, nothing is exchanged."""

    rank: int = 0
    size: int = 1
    store: Any = None

    def broadcast(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank, on every rank."""
        if self.size == 1:
            return make()
        made: list[Any] = [None if self.rank else make()]
        with others() as dist:
            dist.broadcast_object_list(made, src=0)
        return made[0]

    def agreed(self, seconds: float, signal: int | None) -> tuple[float, int | None]:
        """The same on every rank: the first rank's clock, and the signal that came to any of them."""
        if self.size == 1:
            return seconds, signal
        import torch

        words = torch.tensor([0.0 if self.rank else seconds, signal or 0], dtype=torch.float64)
        with others() as dist:
            dist.all_reduce(words, dist.ReduceOp.MAX)
        if words[1]:
            _deaf()
        return words[0].item(), int(words[1]) or None

    def barrier(self) -> None:
        """Returns once every rank has called it."""
        self.agreed(0.0, None)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first rank, then all others: what it downloads and decodes, they find in the cache."""
        if self.rank:
            self.barrier()
        yield
        if not self.rank:
            self.barrier()

    def share(self, total: int) -> slice:
        """Which of a meta-step's `total` tasks this rank works on. No share differs from another by more than one task,
        and the first rank's is never smaller than another's."""
        if total < self.size:
            raise UserError(
                f"a meta-step of {total} {'task' if total == 1 else 'tasks'} cannot be shared by {self.size} ranks. "
                "Start no more ranks than it has tasks, or raise train.tasks where the algorithm has more."
            )
        return slice(-(-self.rank * total // self.size), -(-(self.rank + 1) * total // self.size))

    def mean(self, tree: T, count: int) -> T:
        """The mean over ranks of each tensor; every rank's counts `count` times. One all-reduce."""
        if self.size == 1:
            return tree
        return self._reduced(tree, count)

    def total(self, tree: T) -> T:
        """The sum over ranks of each tensor. One all-reduce."""
        if self.size == 1:
            return tree
        return self._reduced(tree, None)

    def _reduced(self, tree: T, count: int | None) -> T:
        """All tensors as one vector through a functional collective: a plain one, traced, is dropped without a word.

        It is told the group's name. A group that it is handed it keeps for ever, with threads that `leave` has to end.
        """
        import torch
        import torch.distributed._functional_collectives  # which tells tracing about the two operations
        from torch.utils._pytree import tree_flatten, tree_unflatten

        leaves, form = tree_flatten(tree)
        flat = torch.cat([leaf.detach().flatten() for leaf in leaves])
        if count is not None:
            flat = torch.cat([flat, flat.new_ones(1)]) * count
        with others() as dist:
            operations = torch.ops._c10d_functional
            flat = operations.wait_tensor(operations.all_reduce(flat, "sum", dist.group.WORLD.group_name))
        if count is not None:
            flat = flat[:-1] / flat[-1]
        parts = flat.split([leaf.numel() for leaf in leaves])
        return tree_unflatten([p.view_as(leaf).to(leaf.dtype) for p, leaf in zip(parts, leaves, strict=True)], form)

    def deal(self, total: int) -> Tensor:
        """Indices this rank evaluates. All ranks get equally many; the surplus repeats and is cut by `gather`."""
        import torch

        each = -(-total // self.size)
        return (torch.arange(each) + self.rank * each) % total

    def gather(self, values: Tensor, total: int) -> Tensor:
        """The values of all ranks' tasks, in the order of the `total` tasks that were dealt."""
        if self.size == 1:
            return values
        import torch

        parts = [torch.empty_like(values) for _ in range(self.size)]
        with others() as dist:
            dist.all_gather(parts, values)
        return torch.cat(parts)[:total]

    def tell_once(self) -> None:
        """Silences this rank if another one has told already why the run ends."""
        with suppress(RuntimeError):  # torchrun itself may be gone
            if self.size > 1 and self.store.add("told", 1) > 1:
                _silence(sys.stderr)

    def leave(self) -> None:
        """Ends the exchange, once the first rank has written all: torchrun ends it when another ends badly."""
        if self.size > 1:
            self.barrier()
            with others() as dist:
                dist.destroy_process_group()

    def end(self, code: int) -> None:
        """Ends this process, if it is one of several, at once. A thread of the exchange that lets go of its last tensor
        while the interpreter ends would end it with an error instead, after all was done."""
        if self.size > 1:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    stream.flush()
            os._exit(code)


ALONE = Team()


def local_rank() -> int | None:
    """This process's number on its machine, if torchrun started several in all."""
    several = "TORCHELASTIC_RUN_ID" in os.environ and os.environ["WORLD_SIZE"] != "1"
    return int(os.environ["LOCAL_RANK"]) if several else None


def join() -> Team:
    """The team that torchrun's environment variables describe; without them, this process alone."""
    if local_rank() is None:
        return ALONE
    import torch
    import torch.distributed as dist

    store, rank, size = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    if rank:
        _silence(sys.stdout)
    return Team(rank, size, store)


@contextmanager
def others() -> Iterator[Any]:
    """torch.distributed, whose errors mean that another rank is gone."""
    import torch.distributed as dist

    try:
        yield dist
    except RuntimeError as error:
        _deaf()
        raise Lost(error) from error


def _silence(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _deaf() -> None:
    """When one rank has ended, torchrun sends SIGTERM to all others: they know, and still write and tell."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
