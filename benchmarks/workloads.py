"""What is measured: overrides of metarun's own config, each with a name and a line of text."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from metarun.cli import CONF
from metarun.construct import nearest
from metarun.errors import UserError
from metarun.settings import Job

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Workload:
    text: str
    typed: str  # what one types after `metarun`
    gpu_only: bool = False

    @property
    def overrides(self) -> list[str]:
        return self.typed.split()


MAML = "algo=maml algo.first_order=false algo.inner_steps=1 train.tasks=32"
REPTILE = "algo=reptile algo.inner_optim=sgd algo.inner_lr=0.1 algo.inner_batch=25 algo.inner_steps=5"
OMNIGLOT = "data=omniglot backbone=conv4"

WORKLOADS = {
    "W1": Workload("MAML second order, Omniglot 5w1s, 1 query, 32 tasks, 1 inner step", f"{OMNIGLOT} {MAML}"),
    "W2": Workload(
        "MAML second order, Omniglot 5w1s, 15 queries, 32 tasks, 1 inner step",
        f"{OMNIGLOT} {MAML} data.queries=15",
    ),
    "W3": Workload(
        "MAML second order, Omniglot 5w5s, max-pool conv4-64, 15 queries, 16 tasks, 5 inner steps",
        f"{MAML} data=omniglot backbone=conv4_pool data.shots=5 data.queries=15 algo.inner_steps=5 train.tasks=16",
    ),
    "W4": Workload(
        "Reptile, Omniglot 5w5s, 5 inner SGD steps on the whole support set, 5 tasks",
        f"{OMNIGLOT} {REPTILE} data.shots=5 train.shots=5 train.tasks=5",
    ),
    "W5": Workload(
        "MAML second order, sinusoids of 10 points, MLP 40-40, 25 tasks, 1 inner step",
        f"{MAML} data=sinusoid train.tasks=25",
    ),
    "W6": Workload(
        "multi-task learning, Omniglot's background alphabets (25 of 30: 5 validate), 8 images of each",
        f"{OMNIGLOT} algo=mtl data.split=lake",
    ),
    "W7": Workload(
        "MAML second order, ResNet-12, 84x84 colour noise, 5w5s, 15 queries, 4 tasks, 5 inner steps",
        f"{MAML} data=noise data.size=84 data.channels=3 backbone=resnet12 backbone.dropblock=0.0 "
        "data.shots=5 data.queries=15 algo.inner_steps=5 train.tasks=4",
        gpu_only=True,
    ),
}
ON_NOISE = f"data=noise backbone=conv4 {MAML}".split()  # W1's arithmetic without its files, at any size


def chosen(names: str, choices: Iterable[str], option: str) -> list[str]:
    """The names of a comma-separated list, all of them known."""
    known, found = list(choices), names.split(",")
    for name in found:
        if name not in known:
            raise UserError(f"{option}: {name} is unknown.{nearest(name, known)}")
    return found


def job(*overrides: str) -> Job:
    """What metarun's command line makes of these overrides; nothing is written into its folder."""
    typed = [f"hydra.searchpath=[file://{HERE}/conf]", "name=benchmark", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", typed, return_hydra_config=True)
    choices = {group: str(choice) for group, choice in config.hydra.runtime.choices.items()}
    with open_dict(config):
        del config.hydra
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return Job(plain, choices, None, Path("never written"), "", lambda: None)


if __name__ == "__main__":
    print(WORKLOADS[sys.argv[1]].typed)
