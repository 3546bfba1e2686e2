"""Whether training, validation and test share a class, or an image in any of its quarter turns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import combinations

import torch

from metarun.check.outcome import Outcome
from metarun.types import Data

WHAT = "splits"
SPLITS = ("train", "val", "test")


def disjoint(data: Data, test_data: Data) -> Outcome:
    """Of the data set that is trained on, and the one that is tested on; other data may call a class alike."""
    names = {split: set(data.classes.get(split, ())) for split in SPLITS}
    if test_data is not data:
        names["test"] = set()
    shared = [(name, a, b) for a, b in combinations(SPLITS, 2) for name in sorted(names[a] & names[b])]
    images, twins = _twins({"train": data, "val": data, "test": test_data})
    faults = []
    if shared:
        name, a, b = shared[0]
        faults.append(f"{len(shared)} classes of two splits, as {name} of {a} and {b}")
    if twins:
        faults.append(f"{len(twins)} images that are, turned or not, an image of another split, as {twins[0]}")
    if faults:
        return Outcome(WHAT, False, "; ".join(faults))
    sizes = "/".join(str(len(names[split])) for split in SPLITS if names[split])
    if not sizes and not images:
        return Outcome(WHAT, None, "there are no classes and no images to compare")
    classes = [f"{sizes} classes share no name"] if sizes else []
    return Outcome(
        WHAT, True, ", ".join([*classes, *([f"{images:,} images no content, turned or not"] if images else [])])
    )


def _twins(sources: dict[str, Data]) -> tuple[int, list[str]]:
    """How many images there are, and those of a later split that an earlier one has, in words."""
    seen: dict[bytes, tuple[str, str]] = {}
    images, found = 0, []
    for split, data in sources.items():
        for name, pieces in data.pictures(split):
            for digest in _digests(pieces):
                images += 1
                other, owner = seen.setdefault(digest, (split, name))
                if other != split:
                    found.append(f"{split}'s {name} has one of {other}'s {owner}")
    return images, found


def _digests(images: torch.Tensor) -> Iterator[bytes]:
    """Of each image, the same for its four quarter turns."""
    turned = [images.rot90(turns, (-2, -1)).contiguous().cpu().numpy() for turns in range(4)]
    for i in range(len(images)):
        yield min(hashlib.blake2b(t[i].data, digest_size=16).digest() for t in turned)
