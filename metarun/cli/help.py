"""`metarun --help`: one page, whose groups and choices are read from conf/ itself."""

from __future__ import annotations

from pathlib import Path

from metarun.cli import CONF
from metarun.errors import few

# The groups in the order in which one asks for them; a folder of conf/ that is not named here comes after these.
FIRST = ("algo", "balance", "data", "backbone", "sharing", "optim", "schedule", "device", "experiment")
UNSEEN = ("pair",)  # nobody chooses these: they follow from the other choices

# What is typed, and what for. Each is held against the config by a test.
KEYS = (
    ("data.ways=5", "classes in a task"),
    ("data.shots=1", "images of each class to learn from (data.queries=15: to be judged by)"),
    ("data.root=DIR", "where the data set lies, if the variable METARUN_DATA does not say so"),
    ("train.steps=2500", "meta-steps, of train.tasks=32 tasks each (train.max_time=10m ends sooner)"),
    ("algo.inner_lr=0.4", "step size within a task, for algo.inner_steps=1 steps"),
    ("optim.lr=0.002", "step size of the meta-optimiser"),
    ("val.every=250", "validate and save; val.patience=5 stops after so many without a better one"),
    ("test.data=omniglot", "meta-test on another data set (test.tasks=600, test.adapt_steps=3)"),
    ("norm_stats=support", "batch norm sees the support set only; the default is batch, transductive"),
    ("seed=0", "of weights and tasks; the test tasks are the same for every seed"),
)
EXAMPLES = (
    ("metarun", "MAML on generated characters, two minutes"),
    ("metarun algo=reptile data=omniglot data.shots=5 seed=1", "another algorithm, five images per class"),
    ("metarun -m algo=maml,reptile,mtl seed=0,1,2", "nine runs, one after the other"),
    ("metarun data=folder data.root=photos norm_stats=support", "your own images"),
    ("metarun resume=outputs/2026-11-21/10-12-33_maml_omniglot", "go on after Ctrl-C"),
)

PAGE = """\
metarun: meta-learning and multi-task learning in PyTorch.

  metarun [group=choice ...] [key=value ...]

One run builds data, network and algorithm, meta-trains, meta-tests on fixed tasks, and leaves a directory under
outputs/ with result.json, metrics.jsonl, TensorBoard events and checkpoints.

Groups and their choices
{groups}
Keys people change most
{keys}

Examples
{examples}

More
  metarun check algo=maml data=omniglot before a long run: gradients, leaks, the time and memory it needs
  metarun report outputs                compare runs; tensorboard --logdir outputs shows their curves
  metarun resume=RUN_DIR train.steps=N  go on with a run; test.only=true repeats its meta-test
  metarun algo=mtl --cfg job            all keys and values of a run, without running it
  eval "$(metarun -sc install=bash)"    complete groups, choices and keys in the shell
  conf/algo/mine.yaml                   in a conf folder where you start metarun: a choice of your own"""


def main(arguments: list[str]) -> int:
    """Prints the page, whatever else was typed."""
    print(help_page(CONF, Path("conf")))
    return 0


def help_page(shipped: Path, *own: Path) -> str:
    """The whole page: the groups that metarun ships, with their choices in each of the conf folders."""
    return PAGE.format(
        groups="\n".join(_group(group, (shipped, *own)) for group in _groups(shipped)),
        keys=_columns(KEYS),
        examples=_columns(EXAMPLES),
    )


def _groups(conf: Path) -> list[str]:
    found = sorted(folder.name for folder in conf.iterdir() if folder.is_dir() and folder.name not in UNSEEN)
    return sorted(found, key=lambda group: FIRST.index(group) if group in FIRST else len(FIRST))


def _group(group: str, folders: tuple[Path, ...]) -> str:
    files = {file.stem: file for folder in folders for file in (folder / group).glob("*.yaml")}
    rows = [(f"  {name}", comment(files[name])) for name in sorted(files)]
    inner = sorted({sub.name for folder in folders for sub in (folder / group).glob("*/")})
    rows += [(f"  {name}/", few(sorted(_stems(folders, group, name)))) for name in inner]
    return f"{group}=\n" + _columns(rows) + "\n"


def _stems(folders: tuple[Path, ...], group: str, inner: str) -> set[str]:
    """The choices in a folder within a group."""
    return {file.stem for folder in folders for file in (folder / group / inner).glob("*.yaml")}


def _columns(rows: tuple[tuple[str, str], ...] | list[tuple[str, str]]) -> str:
    width = max((len(left) for left, _ in rows), default=0)
    return "\n".join(f"  {left.ljust(width)}  {right}" for left, right in rows)


def comment(file: Path) -> str:
    """The first comment of a YAML file that is not an instruction to Hydra."""
    comments = (line[2:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    return next((c for c in comments if not c.startswith("@")), "")
