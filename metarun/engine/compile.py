"""A meta-gradient as one program: traced, then compiled, recorded as a CUDA graph, or both."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from metarun.engine.grouped import PRODUCTS
from metarun.errors import UserError, one_line
from metarun.types import MetaGradient, Metrics, ParallelMap, Params

Program = Callable[[Params, Any], tuple[Params, Metrics]]


@dataclass(frozen=True)
class Traced:
    """The same meta-gradient, for each mapping traced to plain operations on tensors at its first call.

    Tracing comes before compiling because torch.compile does not take derivatives inside vmap inside derivatives; and
    before recording because vmap and derivatives then need no Python any more.
    """

    algo: MetaGradient
    compiles: bool
    records: bool
    programs: dict[Any, Program] = field(default_factory=dict)

    def meta_grad(self, params: Params, sample: Any, parallel: ParallelMap) -> tuple[Params, Metrics]:
        key = parallel, tuple(leaf.shape for leaf in tree_leaves(sample))
        if key not in self.programs:
            device = next(iter(params.values())).device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):  # a resumed run traces anew
                self.programs[key] = self._program(params, sample, parallel)
        return self.programs[key](params, sample)

    def _program(self, params: Params, sample: Any, parallel: ParallelMap) -> Program:
        whole: Program = partial(self.algo.meta_grad, parallel=parallel)
        if not self.compiles:
            print(f"recording the meta-step ({parallel}): its first run takes some seconds", flush=True)
        try:
            program: Program = make_fx(whole, PRODUCTS if self.records else {})(params, sample)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an algorithm of the user's own may ask for a tensor's value
            if self.compiles:
                raise UserError(f"compile=true: {_reason(error)}. Take compile=false.") from error
            print(f"the meta-step is not recorded as a CUDA graph: {_reason(error)}", flush=True)
            return whole
        if self.compiles:
            print(f"compiling the meta-step ({parallel}): its first run takes a minute or more", flush=True)
            program = torch.compile(program, dynamic=False)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"torch\._inductor")  # it recommends what precision= decides
                program(params, sample)
        return recorded(program, params, sample) if self.records else program


def recorded(program: Program, params: Params, sample: Any) -> Program:
    """The same program as a CUDA graph: thousands of kernels that are started as one. If it waits for the device, which
    no graph does, the program as it is."""
    given, form = tree_flatten((params, sample))
    held = [leaf.detach().clone() for leaf in given]  # a replay reads and writes the memory of the recording
    graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(aside):
        program(*tree_unflatten(held, form))  # what libraries set up at their first use must not be recorded
        waiting = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            program(*tree_unflatten(held, form))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            print(f"the meta-step is not recorded as a CUDA graph: {_reason(error)}", flush=True)
            return program
        finally:
            torch.cuda.set_sync_debug_mode(waiting)
    torch.cuda.current_stream().wait_stream(aside)
    try:
        with torch.no_grad(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            found, shape = tree_flatten(program(*tree_unflatten(held, form)))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # after which CUDA is in no state to go on
        raise UserError(
            f"the meta-step cannot be recorded as a CUDA graph: {_reason(error)}. Take compile=false."
        ) from error

    def replay(params: Params, sample: Any) -> tuple[Params, Metrics]:
        with torch.no_grad():
            torch._foreach_copy_(held, tree_leaves((params, sample)))
            graph.replay()
            return tree_unflatten([leaf.clone() for leaf in found], shape)

    return replay


def _reason(error: RuntimeError) -> str:
    """The first sentence of what torch says."""
    return one_line(error).partition(". ")[0].rstrip(".")


def traced(algo: MetaGradient, compile: bool | str, parallel: str, device: torch.device, ranks: int) -> MetaGradient:
    """The algorithm as one program where it is to be compiled, or, by `auto`, recorded. What ranks tell each other is
    not recorded, nor a loop, which would be unrolled for that."""
    records = device.type == "cuda" and ranks == 1
    if compile is True or (compile == "auto" and records and parallel != "loop"):
        return Traced(algo, compile is True, records)
    return algo


def check_compiler(device: torch.device) -> None:
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UserError("compile=true needs a C++ compiler on a CPU. Install g++, or leave compile out.")
