"""Small runs of every kind, a second each, and how each ends when nobody disturbs it."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.faults.place import Ended, Place

SHORT = (
    "seed=3 train.steps=24 train.log_every=3 val.every=6 val.tasks=3 test.tasks=4 test.adapt_steps=2 "
    "parallel=loop device=cpu device.threads=1"
)
GLYPHS = "data=glyphs data.alphabets=6 data.characters=5 data.drawings=6 data.ways=3"
CONV, MLP = "backbone=conv4 backbone.channels=[4,4,4,4]", "backbone=mlp_omniglot backbone.hidden=[8]"
VARIANTS = {
    "maml": f"algo=maml {GLYPHS} {CONV} train.tasks=2",
    "fomaml": f"algo=maml algo.first_order=true {GLYPHS} {MLP} train.tasks=2 val.patience=3",
    "phases": f"algo=maml algo.phases={{9:{{first_order:true}}}} {GLYPHS} {MLP} train.tasks=2 optim=sam",
    "from disk": f"algo=maml {GLYPHS} {MLP} train.tasks=2 data.resident=false",
    "metasgd": f"algo=metasgd {GLYPHS} {MLP} train.tasks=2",
    "mamlpp": f"algo=mamlpp algo.inner_steps=2 algo.anneal_steps=9 {GLYPHS} {MLP} train.tasks=2",
    "reptile": f"algo=reptile algo.inner_steps=2 {GLYPHS} {MLP} train.tasks=2 train.shots=2",
    "protonet": f"algo=protonet {GLYPHS} {CONV} train.tasks=2 train.queries=2",
    "r2d2": f"algo=r2d2 {GLYPHS} {CONV} train.tasks=2 train.queries=2",
    "mtl": f"algo=mtl balance=famo {GLYPHS} {MLP} train.tasks=3 train.shots=2",
    "transfer": f"algo=transfer {GLYPHS} backbone=conv2 backbone.channels=[4,4] backbone.hidden=[8] train.shots=8",
    "sinusoid": "algo=maml data=sinusoid backbone.hidden=[8] train.tasks=4",
}


def words(variant: str) -> list[str]:
    """What is typed after `metarun`."""
    return [*VARIANTS[variant].split(), *SHORT.split()]


def unbroken(place: Place, variant: str) -> tuple[Path, float]:
    """The folder of the variant's run that nobody disturbed, and the seconds it took."""

    def make(folder: Path) -> None:
        ended = must(place.elsewhere(folder).run(*words(variant), "hydra.run.dir=run", cwd=folder))
        (folder / "seconds.json").write_text(json.dumps(ended.seconds))

    folder = place.shared.once(f"unbroken {variant}", make)
    return folder / "run", json.loads((folder / "seconds.json").read_text())


def must(ended: Ended) -> Ended:
    """The process, if it went well: without that there is nothing to compare with."""
    if ended.code:
        raise RuntimeError(f"a run that nobody disturbed ended with {ended.code}: {ended.err[-2000:]}")
    return ended
