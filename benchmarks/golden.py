"""What the code computes, to be held against what other code computes: short runs through the command line alone.

    python -m benchmarks.golden before.pt            # at one commit
    python -m benchmarks.golden after.pt             # at another, on the same machine
    python -m benchmarks.golden before.pt after.pt   # which parameters and test scores are the same

Each run takes 50 steps on a few generated characters or on sinusoids: as a loop over tasks, under vmap in chunks,
compiled, and on two ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

SHORT = "seed=3 train.steps=50 train.log_every=10 val.every=25 val.tasks=6 test.tasks=10 device=cpu device.threads=1"
GLYPHS = "data=glyphs data.alphabets=8 data.characters=6 data.drawings=12 backbone.channels=[8,8,8,8]"
MAML = f"algo=maml {GLYPHS} train.tasks=4 data.queries=2"
REPTILE = f"algo=reptile {GLYPHS} train.shots=4"
CASES = {
    "maml": MAML,
    "maml 5 steps": f"{MAML} algo.inner_steps=5 algo.inner_lr=0.1",
    "fomaml": f"{MAML} algo.first_order=true",
    "fomaml 5 steps": f"{MAML} algo.first_order=true algo.inner_steps=5 algo.inner_lr=0.1",
    "maml inductive": f"{MAML} norm_stats=support",
    "reptile sgd": f"{REPTILE} algo.inner_optim=sgd algo.inner_lr=0.1",
    "reptile adam": REPTILE,
    "mtl": f"algo=mtl {GLYPHS} train.shots=4",
    "transfer": f"algo=transfer {GLYPHS} train.shots=32",
    "sinusoid": "algo=maml data=sinusoid",
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
MAPPINGS = {
    "loop": ((), "parallel=loop"),
    "vmap": ((), "parallel=vmap chunk=3"),
    "compile": ((), "parallel=vmap compile=true"),
    "ranks": (TORCHRUN, "parallel=vmap chunk=3"),
}


def main(argv: list[str]) -> None:
    match argv:
        case [file]:
            write(Path(file))
        case [before, after]:
            compare(torch.load(before, weights_only=True), torch.load(after, weights_only=True))
        case _:
            print(__doc__, file=sys.stderr)
            sys.exit(2)


def write(file: Path) -> None:
    runs = [(f"{name}, {mapping}", name, mapping) for mapping in MAPPINGS for name in CASES]
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip((label for label, *_ in runs), pool.map(lambda run: outcome(*run[1:]), runs), strict=True))
    torch.save(found, file)
    for label, entry in found.items():
        print(f"{label:<28}{digest(entry['params']) if 'params' in entry else entry['error']}")


def outcome(name: str, mapping: str) -> dict[str, Any]:
    """Parameters and test scores of one run, or the line with which it was refused."""
    start, own = MAPPINGS[mapping]
    with TemporaryDirectory() as folder:
        command = [sys.executable, *start, "-m", "metarun", *f"{CASES[name]} {SHORT} {own}".split()]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        command.append(f"hydra.run.dir={folder}/run")
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            told = [line for line in done.stderr.splitlines() if line.startswith("metarun: ")]
            return {"error": told[0] if told else done.stderr[-500:]}
        params = torch.load(f"{folder}/run/checkpoints/last.pt", weights_only=True)["params"]
        return {"params": params, "test": json.dumps(json.loads(Path(f"{folder}/run/result.json").read_text())["test"])}


def digest(params: dict[str, torch.Tensor]) -> str:
    content = hashlib.sha256()
    for name in sorted(params):
        content.update(name.encode() + params[name].contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


def compare(before: dict[str, Any], after: dict[str, Any]) -> None:
    """A line for each run: the same to the bit, or by how much parameters and scores differ."""
    for label, old in before.items():
        new = after.get(label, {"error": "not run"})
        print(f"{label:<28}{_difference(old, new)}")


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    if "error" in old or "error" in new:
        return f"{old.get('error', 'ran')} | {new.get('error', 'ran')}"
    scores = _apart(json.loads(old["test"]), json.loads(new["test"]))
    gone = sorted(old["params"].keys() ^ new["params"].keys())
    apart = {n: float((p - new["params"][n]).abs().max()) for n, p in old["params"].items() if n not in gone}
    if not gone and not scores and not any(apart.values()):
        return "the same to the bit"
    worst = max(apart, key=apart.__getitem__)
    rest = max(far for name, far in apart.items() if name.rpartition(".")[2] != worst.rpartition(".")[2])
    words = f"parameters differ by up to {apart[worst]:.1e} in {worst}, {rest:.1e} beside such; scores by {scores:.1e}"
    return words + (f"; only in one: {', '.join(gone)}" if gone else "")


def _apart(old: Any, new: Any) -> float:
    """The largest difference of numbers that both results have."""
    if isinstance(old, dict):
        return max((_apart(value, new[key]) for key, value in old.items() if key in new), default=0.0)
    if isinstance(old, list):
        return max(map(_apart, old, new), default=0.0)
    return abs(old - new)


if __name__ == "__main__":
    main(sys.argv[1:])
