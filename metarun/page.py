"""The page that `metarun --help` prints: what there is to choose, read from conf/ itself."""

from __future__ import annotations

from pathlib import Path

GROUPS = ("algo", "data", "backbone", "optim", "schedule", "device", "experiment")

PAGE = """\
metarun: meta-learning and multi-task learning in PyTorch.

  metarun [group=choice ...] [key=value ...]

One run builds data, network and algorithm, meta-trains, meta-tests on fixed episodes, and leaves a directory
under outputs/ with result.json, metrics.jsonl, TensorBoard events and checkpoints.

{groups}
Keys people change most
  seed=0                 data.ways=5  data.shots=1  data.queries=1
  data.root=DIR          where the data set lies (or the variable METARUN_DATA)
  train.steps=2500       train.tasks=32 (per meta-step)   train.max_time=10m
  algo.inner_lr=0.4      algo.inner_steps=1
  optim.lr=0.001         norm_stats=batch|support (transductive or inductive batch norm)
  val.every=250          val.patience=5 (validations without a better one before stopping)
  test.tasks=600         test.adapt_steps=3               test.data=omniglot (another data set)
  resume=RUN_DIR         go on with a run; with test.only=true, repeat its meta-test
  parallel=auto          loop, vmap: how tasks are mapped   chunk=16 (tasks at a time)

Examples
  metarun                                                    MAML on generated characters, two minutes
  metarun algo=reptile data=omniglot data.shots=5 seed=1     another algorithm, five images per class
  metarun -m algo=maml,reptile,mtl seed=0,1,2                nine runs, one after the other
  metarun data=folder data.root=photos norm_stats=support    your own images
  metarun resume=outputs/2026-11-21/10-12-33_maml_omniglot   after Ctrl-C

  metarun --cfg job prints the config, metarun -sc install=bash completes it in the shell, ./conf adds to it.
  metarun report DIR compares runs, tensorboard --logdir outputs shows their curves."""


def help_page(conf: Path) -> str:
    """The whole page."""
    return PAGE.format(groups="\n".join(_group(conf / group) for group in GROUPS))


def _group(folder: Path) -> str:
    lines = [f"{folder.name}="]
    lines += [f"  {file.stem:<20} {_comment(file)}" for file in sorted(folder.glob("*.yaml"))]
    return "\n".join(lines) + "\n"


def _comment(file: Path) -> str:
    """The first comment of a YAML file that is not an instruction to Hydra."""
    comments = (line[2:].strip() for line in file.read_text().splitlines() if line.startswith("# "))
    return next((c for c in comments if not c.startswith("@")), "")
