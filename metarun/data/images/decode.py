"""Image files, decoded piece by piece."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from metarun.data.images.mapped import PIECE
from metarun.engine.progress import watched
from metarun.errors import UserError

File = tuple[str, Path | bytes]  # a name for people, and where it is or what is in it


def decode(files: Sequence[File], size: int, colour: bool) -> Iterator[Tensor]:
    """Named image files as uint8 [m, C, size, size], piece by piece: the middle square of each, resized."""
    pieces = (_decode_piece(files[start : start + PIECE], size, colour) for start in range(0, len(files), PIECE))
    return watched(pieces, len(files), "decoding images", len)


def _decode_piece(files: Sequence[File], size: int, colour: bool) -> Tensor:
    images = torch.empty(len(files), 3 if colour else 1, size, size, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        try:
            for row, image in enumerate(pool.map(partial(_decode_one, size=size, colour=colour), files)):
                images[row] = image
        except BaseException:  # Ctrl-C, or a damaged image: nobody waits for the rest
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return images


def _decode_one(file: File, size: int, colour: bool) -> Tensor:
    name, content = file
    try:
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.draft(None, (4 * size, 4 * size))  # a large JPEG is decoded small: many times faster
            upright = _opaque(ImageOps.exif_transpose(image)).convert("RGB" if colour else "L")
            pixels = np.array(ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS))
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{name} cannot be read as an image ({reason}). Replace or remove it.") from error
    return torch.from_numpy(pixels).view(size, size, -1).permute(2, 0, 1)


def _opaque(image: Image.Image) -> Image.Image:
    """On white where it is transparent, and with 8 bits: `convert` would make most of 16 bits white."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
