"""Image files, decoded piece by piece."""

from __future__ import annotations

import logging
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from metarun.data.images.mapped import PIECE
from metarun.engine.progress import watched
from metarun.errors import UserError, few, one_line, shown

FOREIGN = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}  # PIL has their names alone, or asks a program
PIXELS = 10**8  # of an image, at most: its copies on the way take a gigabyte or two
LARGE = 2**24  # pixels: images of more are decoded one after the other, however many threads there are
BYTES = 2**30  # of a file: some formats are read whole

File = tuple[str, Path | bytes]  # a name for people, and where it is or what is in it

one_large = threading.Lock()

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what it logs of a damaged file is printed


@cache
def suffixes() -> frozenset[str]:
    """Of files that are images, in lower case."""
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in known if kind not in FOREIGN)


def decode(files: Sequence[File], size: int, colour: bool) -> Iterator[Tensor]:
    """Named image files as uint8 [m, C, size, size], piece by piece: the middle square of each, resized.

    What cannot be read is told at the end, all at once.
    """
    unreadable: list[tuple[str, str]] = []
    starts = range(0, len(files), PIECE)
    pieces = (_decode_piece(files[start : start + PIECE], size, colour, unreadable) for start in starts)
    yield from watched(pieces, len(files), "decoding images", len)
    if len(unreadable) == 1:
        name, reason = unreadable[0]
        raise UserError(f"{name} cannot be read as an image ({reason}). Replace or remove it.")
    if unreadable:
        which = few([f"{name} ({reason})" for name, reason in unreadable])
        raise UserError(f"{len(unreadable)} of {len(files)} images cannot be read: {which}. Replace or remove them.")


def _decode_piece(files: Sequence[File], size: int, colour: bool, unreadable: list[tuple[str, str]]) -> Tensor:
    images = torch.zeros(len(files), 3 if colour else 1, size, size, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's name no file; what matters of them is an error here
        try:
            for row, image in enumerate(pool.map(partial(_attempt, size=size, colour=colour), files)):
                if isinstance(image, Tensor):
                    images[row] = image
                else:
                    unreadable.append((shown(files[row][0]), image))
        except BaseException:  # Ctrl-C: nobody waits for the rest
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return images


def _attempt(file: File, size: int, colour: bool) -> Tensor | str:
    """The image, or why there is none. PIL answers damaged files with nearly every kind of error there is."""
    try:
        return _decode_one(file[1], size, colour)
    except Image.DecompressionBombError:
        return _too_many(2 * (Image.MAX_IMAGE_PIXELS or PIXELS))
    except UnidentifiedImageError:
        return "unknown format"
    except OSError as error:
        return error.strerror or one_line(error)
    except Exception as error:
        return one_line(error)


def _decode_one(content: Path | bytes, size: int, colour: bool) -> Tensor:
    with Image.open(BytesIO(content) if isinstance(content, bytes) else _checked(content)) as image:
        if image.format in FOREIGN:
            raise ValueError(f"{image.format} is no format of pixels")
        whole = image.width * image.height
        image.draft(None, (4 * size, 4 * size))  # a large JPEG is decoded small: many times faster
        pixels = whole if "progressive" in image.info else image.width * image.height
        if pixels > PIXELS:
            raise ValueError(_too_many(PIXELS))
        with one_large if pixels > LARGE else nullcontext():
            upright = _opaque(ImageOps.exif_transpose(image)).convert("RGB" if colour else "L")
            square = np.array(ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS))
    return torch.from_numpy(square).view(size, size, -1).permute(2, 0, 1)


def _too_many(pixels: int) -> str:
    return f"more than {pixels / 1e6:.0f} million pixels"


def _checked(path: Path) -> Path:
    """A pipe would be waited for, and a device has no end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("no regular file")
    if status.st_size > BYTES:
        raise ValueError(f"{status.st_size / 1e9:.1f} GB")
    return path


def _opaque(image: Image.Image) -> Image.Image:
    """On white where it is transparent, and with 8 bits: `convert` would make most of 16 bits white."""
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers; which of them is white is not known")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
