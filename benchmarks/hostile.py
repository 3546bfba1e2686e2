"""Folders of photos as the world leaves them: each function does one kind of mischief to a folder of class folders.

Whatever was done, `data=folder` takes the folder or refuses it with one line: no traceback, no waiting for ever, no
gigabytes.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

HEADS = (  # by which PIL tells a format
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"RIFF\0\1\0\0WEBPVP8 ", b"P6 "),
    *(b"8BPS\0\1", b"\0\0\1\0", b"qoif", b"DDS ", b"icns", b"\0\0\0\x0cjP  \r\n\x87\n", b"%!PS-Adobe", b"SIMPLE  ="),
)

Mischief = Callable[[Path, random.Random], object]


def photos(root: Path, dice: random.Random, classes: int = 6, images: int = 3) -> Path:
    """A good folder, to begin with."""
    for c in range(classes):
        folder = root / f"c{c}"
        folder.mkdir(parents=True)
        for i in range(images):
            pixels = np.frombuffer(dice.randbytes(12 * 10 * 3), np.uint8).reshape(10, 12, 3)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def bare_png(width: int, height: int, rows: int) -> bytes:
    """A grey PNG that promises width x height pixels and holds black ones for so many rows, packed a thousandfold."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(width + 1)) for _ in range(rows)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(tag: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def _class(root: Path, dice: random.Random) -> Path:
    return dice.choice(sorted(path for path in root.iterdir() if path.is_dir()))


def _image(root: Path, dice: random.Random) -> Path:
    return dice.choice(sorted(_class(root, dice).iterdir()))


def empty_file(root: Path, dice: random.Random) -> None:
    _image(root, dice).write_bytes(b"")


def text_named_png(root: Path, dice: random.Random) -> None:
    _image(root, dice).write_text("<html>404</html>")


def cut_short(root: Path, dice: random.Random) -> None:
    path = _image(root, dice)
    path.write_bytes(path.read_bytes()[: dice.randrange(path.stat().st_size)])


def flipped_bytes(root: Path, dice: random.Random) -> None:
    path = _image(root, dice)
    content = bytearray(path.read_bytes())
    for _ in range(dice.randrange(1, 20)):
        content[dice.randrange(len(content))] ^= dice.randrange(1, 256)
    path.write_bytes(content)


def noise_after_a_header(root: Path, dice: random.Random) -> None:
    _image(root, dice).write_bytes(dice.choice(HEADS) + dice.randbytes(dice.randrange(2000)))


def huge_by_its_header(root: Path, dice: random.Random) -> None:
    side = dice.choice([12_000, 40_000, 2**31 - 1])
    _image(root, dice).write_bytes(bare_png(side, dice.choice([1, side]), 1 if side < 10**6 else 0))


def packed_a_thousandfold(root: Path, dice: random.Random) -> None:
    _image(root, dice).write_bytes(bare_png(11_000, 11_000, 11_000))


def no_pixels(root: Path, dice: random.Random) -> None:
    _image(root, dice).write_bytes(bare_png(*dice.choice([(0, 0), (0, 9), (9, 0)]), 0))


def a_line_of_pixels(root: Path, dice: random.Random) -> None:
    Image.new("L", dice.choice([(1, 1), (1, 60_000), (60_000, 1)])).save(_image(root, dice))


def a_file_without_end(root: Path, dice: random.Random) -> None:
    """Sparse: a thousand gigabytes that take no room."""
    path = _image(root, dice)
    with path.open("r+b") as file, suppress(OSError):  # not every file system lets it
        file.truncate(10**12)


def animation(root: Path, dice: random.Random) -> None:
    frames = [Image.new("RGB", (9, 9), (shade, 0, 0)) for shade in range(5)]
    ending = dice.choice(["gif", "webp", "tiff", "png"])
    frames[0].save(_class(root, dice) / f"moving.{ending}", save_all=True, append_images=frames[1:])


def odd_modes(root: Path, dice: random.Random) -> None:
    folder = _class(root, dice)
    for mode, ending in (("CMYK", "jpg"), ("CMYK", "tif"), ("I;16", "png"), ("1", "png"), ("LA", "png"), ("P", "gif")):
        Image.new(mode, (9, 9)).save(folder / f"{mode.replace(';', '')}.{ending}")


def floats(root: Path, dice: random.Random) -> None:
    Image.new("F", (9, 9), 0.5).save(_class(root, dice) / "floats.tiff")


def postscript(root: Path, dice: random.Random) -> None:
    """A program, which PIL would have another program run."""
    _image(root, dice).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


def other_files(root: Path, dice: random.Random) -> None:
    folder = _class(root, dice)
    for name in ("notes.txt", "IMG_1.HEIC", "film.mp4", "no_suffix", ".hidden", "Thumbs.db", "9.png.part"):
        (folder / name).write_bytes(dice.randbytes(99))


def class_without_images(root: Path, dice: random.Random) -> None:
    folder = root / "hollow"
    folder.mkdir()
    if dice.random() < 0.5:
        (folder / "readme.md").write_text("soon")


def suffix_of_another_kind(root: Path, dice: random.Random) -> None:
    path = _image(root, dice)
    path.rename(path.with_suffix(dice.choice([".JPG", ".Jpeg", ".BMP", ".tif", ".Png"])))


def pipe(root: Path, dice: random.Random) -> None:
    os.mkfifo(_class(root, dice) / "9.png")


def plug(root: Path, dice: random.Random) -> None:
    """A socket's name may have no more than a hundred bytes: from within, it is short."""
    folder = os.open(_class(root, dice), os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(f"/proc/self/fd/{folder}/9.png")
    os.close(folder)


def device(root: Path, dice: random.Random) -> None:
    (_class(root, dice) / "9.png").symlink_to(dice.choice(["/dev/zero", "/dev/null", "/dev/tty"]))


def link_to_nowhere(root: Path, dice: random.Random) -> None:
    (_class(root, dice) / "9.png").symlink_to("gone.png")


def link_to_itself(root: Path, dice: random.Random) -> None:
    (_class(root, dice) / "9.png").symlink_to("9.png")


def link_to_an_image(root: Path, dice: random.Random) -> None:
    (_class(root, dice) / "9.png").symlink_to(_image(root, dice).absolute())


def link_to_a_parent(root: Path, dice: random.Random) -> None:
    folder = _class(root, dice)
    (folder / "loop").symlink_to(dice.choice([root, folder, root.parent]).absolute())


def link_to_a_class(root: Path, dice: random.Random) -> None:
    (root / dice.choice(["again", "zebra"])).symlink_to(_class(root, dice).absolute())


def links_to_each_other(root: Path, dice: random.Random) -> None:
    (root / "left").symlink_to("right")
    (root / "right").symlink_to("left")


def folder_named_png(root: Path, dice: random.Random) -> None:
    (_class(root, dice) / "9.png").mkdir()


def class_that_is_no_utf8(root: Path, dice: random.Random) -> None:
    _class(root, dice).rename(root / os.fsdecode(dice.choice([b"caf\xe9", b"\xff\xfe", b"\xed\xa0\x80"])))


def file_that_is_no_utf8(root: Path, dice: random.Random) -> None:
    path = _image(root, dice)
    path = path.rename(path.with_name(os.fsdecode(b"caf\xe9.png")))
    if dice.random() < 0.5:
        path.write_bytes(b"")


def names_that_write_to_the_terminal(root: Path, dice: random.Random) -> None:
    folder = _class(root, dice)
    folder = folder.rename(root / dice.choice(["two\nlines", "\x1b[31mred", "over\rwritten", "\u202eback", "a\tb"]))
    (folder / "new\nline.png").write_bytes(b"")


def long_names(root: Path, dice: random.Random) -> None:
    folder = _class(root, dice)
    folder = folder.rename(root / ("n" * 255))
    for path in folder.iterdir():
        path.rename(folder / f"{path.stem}{'m' * 250}.png")


def names_that_differ_in_case(root: Path, dice: random.Random) -> None:
    photos(root / "X", dice, 1)
    photos(root / "x", dice, 1)


def names_that_differ_in_composition(root: Path, dice: random.Random) -> None:
    photos(root / "\u00e9", dice, 1)
    photos(root / "e\u0301", dice, 1)


def names_that_are_shown_alike(root: Path, dice: random.Random) -> None:
    (photos(root / "one", dice, 1) / "c0").rename(root / os.fsdecode(b"\xe9"))
    (photos(root / "two", dice, 1) / "c0").rename(root / "\\xe9")
    for name in ("one", "two"):
        (root / name).rmdir()


def deep(root: Path, dice: random.Random) -> None:
    folder = root
    for _ in range(dice.choice([10, 400])):
        folder = folder / "d"
        folder.mkdir()
    Image.new("L", (9, 9)).save(folder / "0.png")


def closed_file(root: Path, dice: random.Random) -> None:
    _image(root, dice).chmod(0)


def closed_folder(root: Path, dice: random.Random) -> None:
    _class(root, dice).chmod(dice.choice([0o000, 0o100, 0o400]))


def splits_that_share_a_class(root: Path, dice: random.Random) -> None:
    folder = _class(root, dice)
    for split in ("train", "test"):
        (root / split).mkdir()
    folder.rename(root / "train" / "a")
    (root / "test" / "b").symlink_to((root / "train" / "a").absolute())


def lists(root: Path, dice: random.Random) -> None:
    names = sorted(path.name for path in root.iterdir())
    odd = [b"", b"\xff\xfe", b"# none", b"nowhere", b"../..", b"/", b"c0\nc0", b"\xef\xbb\xbfc0\nc1", b"\0", b"c0\rc1"]
    (root / "train.txt").write_bytes(dice.choice(odd))
    for split in ("val", "test"):
        (root / f"{split}.txt").write_text("\n".join(names[-2:] if split == "test" else names[-4:-2]))


KINDS: tuple[Mischief, ...] = (
    empty_file,
    text_named_png,
    cut_short,
    flipped_bytes,
    noise_after_a_header,
    huge_by_its_header,
    packed_a_thousandfold,
    no_pixels,
    a_line_of_pixels,
    a_file_without_end,
    animation,
    odd_modes,
    floats,
    postscript,
    other_files,
    class_without_images,
    suffix_of_another_kind,
    pipe,
    plug,
    device,
    link_to_nowhere,
    link_to_itself,
    link_to_an_image,
    link_to_a_parent,
    link_to_a_class,
    links_to_each_other,
    folder_named_png,
    class_that_is_no_utf8,
    file_that_is_no_utf8,
    names_that_write_to_the_terminal,
    long_names,
    names_that_differ_in_case,
    names_that_differ_in_composition,
    names_that_are_shown_alike,
    deep,
    closed_file,
    closed_folder,
    splits_that_share_a_class,
    lists,
)
