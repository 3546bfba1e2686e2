"""MAML by the libraries of the field, as their own examples write it; with the same model and loss as plain.maml."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.plain import Loss, tasks_of
from metarun.types import Episode


def higher(model: nn.Module, loss: Loss, episode: Episode, lr: float, steps: int) -> None:
    """github.com/facebookresearch/higher: a functional copy of the model and a differentiable optimiser."""
    from higher import innerloop_ctx

    inner = torch.optim.SGD(model.parameters(), lr=lr)
    tasks = tasks_of(episode)
    for support_x, support_y, query_x, query_y in tasks:
        with innerloop_ctx(model, inner, copy_initial_weights=False) as (fast, descent):
            for _ in range(steps):
                descent.step(loss(fast(support_x), support_y))
            (loss(fast(query_x), query_y) / len(tasks)).backward()


def learn2learn(model: nn.Module, loss: Loss, episode: Episode, lr: float, steps: int) -> None:
    """github.com/learnables/learn2learn: a clone of the model that adapts in place."""
    from learn2learn.algorithms import MAML

    learner = MAML(model, lr=lr)
    tasks = tasks_of(episode)
    for support_x, support_y, query_x, query_y in tasks:
        clone = learner.clone()
        for _ in range(steps):
            clone.adapt(loss(clone(support_x), support_y))
        (loss(clone(query_x), query_y) / len(tasks)).backward()
