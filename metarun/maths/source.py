"""A network that a finished run left, and how another run takes it over: as a start, as features, or as a teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from metarun.maths import closed_head, new_head
from metarun.maths.net import HEAD, TRUNK, Net
from metarun.types import MEMORY, Batch, Outputs, Params, UserError

TEACHER = f"{MEMORY}teacher."  # θ's entries for the network of a teacher
SEEN = 2  # random inputs on which two networks are held against each other
CLOSE = 1e-3  # of the length of a feature


@dataclass(frozen=True)
class Pretrained:
    """What a finished run learned.

    `params` are those of its trunk, as `trunk.`, and where they are `known`, those of its output layer: for the very
    classes that the run at hand trains on. Else `net` has no heads that it was trained on.
    """

    net: Net
    params: Params
    known: bool
    shape: tuple[int, ...]  # of an input

    def played_by(self, net: Net) -> Pretrained:
        """Another network in its place, with parameters as they are drawn: to try what an algorithm makes of it."""
        drawn = net.init(torch.Generator().manual_seed(0), head=self.known)
        params = {name.removeprefix(MEMORY): p for name, p in drawn.items()}
        net = net.testing(net.heads)
        return replace(self, net=net if self.known else replace(net, trained={}), params=params)


def begun(net: Net, fresh: Params, source: Pretrained) -> Params:
    """θ that begins where the source ended: with its output layer, too, where that is known and has the same form."""
    layer, own = _layer(source.params), _layer(fresh)
    fits = {name: p.shape for name, p in layer.items()} == {name: p.shape for name, p in own.items()}
    return {**_with_trunk(net, fresh, source), **(layer if fits else {})}


def on_features(net: Net, fresh: Params, source: Pretrained) -> Params:
    """θ with the trunk of the source, which nothing moves, and an output layer of its own."""
    params = _with_trunk(net, fresh, source)
    return {MEMORY + name if name.startswith(TRUNK) else name: p for name, p in params.items()}


def with_teacher(fresh: Params, source: Pretrained) -> Params:
    """θ that keeps the network of the source beside its own."""
    return {**fresh, **{TEACHER + name: p for name, p in source.params.items()}}


def told_by(teacher: Net, params: Params, support: Batch) -> Outputs:
    """What the teacher in θ makes of a support set: by its own output layer where that is the task's, else by one that
    logistic regression fits to the set on features of length 1."""
    own = {name.removeprefix(TEACHER): p for name, p in params.items() if name.startswith(TEACHER)}
    given = teacher.given(own, support)
    if teacher.fits:
        return new_head.predict(teacher, given, support.x)
    name, ways = teacher.classes()
    x = F.normalize(teacher.features(given, support.x), dim=-1)
    return {name: F.linear(x, *closed_head.logistic(x, support.y[name], ways))}


def _layer(params: Params) -> Params:
    return {name: p for name, p in params.items() if name.startswith(HEAD)}


def _with_trunk(net: Net, fresh: Params, source: Pretrained) -> Params:
    """θ with the trunk of the source in place of its own; that of another network is refused."""
    own = {name.removeprefix(MEMORY): name for name in fresh}
    here = {name: tuple(fresh[full].shape) for name, full in own.items() if name.startswith(TRUNK)}
    there = {name: tuple(p.shape) for name, p in source.params.items() if name.startswith(TRUNK)}
    if here != there:
        name = next(n for n in (*here, *there) if here.get(n) != there.get(n))
        raise _other(f"{name} is {there.get(name, 'absent')} there and {here.get(name, 'absent')} here")
    params = {**fresh, **{own[name]: source.params[name] for name in there}}
    if not _alike(net, params, source):
        raise _other("its layers have the same sizes, and make other features of an image")
    return params


def _alike(net: Net, params: Params, source: Pretrained) -> bool:
    """Whether both networks make the same of random inputs: strides and poolings have no parameters."""
    device = next((buffer.device for buffer in net.module.buffers()), torch.device("cpu"))
    x = torch.rand(SEEN, *source.shape, generator=torch.Generator().manual_seed(0))
    one, other = (
        made.testing(made.heads).features({name: p.to(device) for name, p in own.items()}, x.to(device))
        for made, own in ((net, params), (source.net, source.params))
    )
    return bool((one - other).norm() <= CLOSE * other.norm())


def _other(how: str) -> UserError:
    return UserError(
        f"algo.source has another network: {how}. Choose the backbone= that it has, or algo.mode=target, "
        "which takes any."
    )
