"""A convolution with weights for each task, in the forms it can take, at the sizes of W1's and W2's layers.

`grouped` is what vmap makes of it: tasks are folded into the channels. All get their input as [T, B, C, H, W].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command
from benchmarks.measure import in_turns, repeated
from metarun.engine.device import pick

TASKS, FILTERS, STRIDE = 32, 64, 2
LAYERS = [(1, 28), (64, 14), (64, 7), (64, 4)]  # channels and side of the input
ROWS = {"W1": 5, "W2": 75}  # images of a task


def grouped(x: Tensor, weight: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    tasks, rows, _, *size = x.shape
    folded = x.transpose(0, 1).reshape(rows, -1, *size).contiguous(memory_format=layout)
    y = F.conv2d(folded, weight.flatten(0, 1), stride=STRIDE, padding=1, groups=tasks)
    return y.unflatten(1, (tasks, -1)).transpose(0, 1)


def unfolded(x: Tensor, weight: Tensor) -> Tensor:
    """One product for each image: [F, 9 C] [9 C, H W]."""
    tasks, rows, *image = x.shape
    patches = F.unfold(x.reshape(-1, *image), 3, padding=1, stride=STRIDE).unflatten(0, (tasks, rows))
    side = (image[1] - 1) // STRIDE + 1
    return (weight.flatten(2)[:, None] @ patches).unflatten(-1, (side, side))


def multiplied(x: Tensor, weight: Tensor) -> Tensor:
    """One product for each task: [F, 9 C] [9 C, B H W]."""
    padded = F.pad(x.transpose(1, 2), (1, 1, 1, 1))
    patches = padded.unfold(3, 3, STRIDE).unfold(4, 3, STRIDE)  # [T, C, B, H, W, 3, 3]
    size = patches.shape[2:5]
    columns = patches.permute(0, 1, 5, 6, 2, 3, 4).flatten(4).flatten(1, 3)
    return torch.bmm(weight.flatten(2), columns).unflatten(2, size).transpose(1, 2)


def one_by_one(x: Tensor, weight: Tensor) -> Tensor:
    return torch.stack([F.conv2d(a, w, stride=STRIDE, padding=1) for a, w in zip(x, weight, strict=True)])


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grouped": grouped,
    "grouped, channels last": partial(grouped, layout=torch.channels_last),
    "unfold, product per image": unfolded,
    "unfold, product per task": multiplied,
    "one by one": one_by_one,
}


def main(argv: list[str]) -> None:
    args = command.timing(command.options("convolution", __doc__)).parse_args(argv)
    facts = command.begin(args)
    device = pick(args.device, 0, None)
    print("milliseconds, forward / with both gradients (the first layer's input needs none)")
    rows: list[dict[str, Any]] = []
    for name, images in ROWS.items():
        for channels, side in LAYERS:
            found = measured(images, channels, side, device, args.repeats, args.seconds)
            rows += [{"workload": name, "channels": channels, "side": side, "form": f, **s} for f, s in found.items()]
            print(f"{name}, {channels} channels of {side} x {side}")
            for form, s in found.items():
                print(f"  {form:<28}{1000 * s['forward_s']:>9.2f} /{1000 * s['both_s']:>9.2f}", flush=True)
    command.save(args, facts, rows)


def measured(
    images: int, channels: int, side: int, device: torch.device, repeats: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Seconds of every form at one layer, medians of turns."""
    x = torch.randn(TASKS, images, channels, side, side, device=device, requires_grad=channels > 1)
    weight = torch.randn(TASKS, FILTERS, channels, 3, 3, device=device, requires_grad=True)
    wanted = [leaf for leaf in (x, weight) if leaf.requires_grad]

    def both(form: Callable[[Tensor, Tensor], Tensor]) -> None:
        torch.autograd.grad(form(x, weight).sum(), wanted)

    def forward(form: Callable[[Tensor, Tensor], Tensor]) -> None:
        with torch.no_grad():
            form(x, weight)

    pieces = {(name, work): repeated(partial(work, form)) for name, form in FORMS.items() for work in (forward, both)}
    taken = in_turns(pieces, repeats, seconds, device)
    return {name: {"forward_s": median(taken[name, forward]), "both_s": median(taken[name, both])} for name in FORMS}


if __name__ == "__main__":
    command.answering(main)
