"""Photo folders as they come: what is in order, and what lies among it that nobody expects."""

from __future__ import annotations

import gzip
import os
import socket
import struct
import zipfile
import zlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from random import Random

from PIL import Image

GB = 1 << 30
ODD = [
    b"\xff\xfe",
    b"caf\xe9",
    b"a\nb",
    b"-rf",
    b" ",
    "😀\u202e".encode(),
    b"x" * 250,
    b"a'\"b",
    b"%s",
    b"[1]",
    b"a\\b",
]
LEFT = ["Thumbs.db", ".DS_Store", "notes.txt", "labels.csv", "movie.mp4", "photos.zip", "raw.CR2", "README", "a.png~"]


def good(folder: Path, classes: int = 8, images: int = 4) -> None:
    """Class folders of small images in colour."""
    random = Random(0)
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(images):
            picture(random).save(folder / f"class{c}" / f"{i}.png")


def picture(random: Random, mode: str = "RGB", size: tuple[int, int] = (20, 16)) -> Image.Image:
    """Noise."""
    return Image.frombytes("RGB", size, random.randbytes(3 * size[0] * size[1])).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@lru_cache
def bomb(side: int) -> bytes:
    """A PNG of side x side black pixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(bytes((side // 8 + 2) * side), 1)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def links(root: Path, inside: Path, random: Random) -> None:
    """To a parent, in a circle, to nothing, to a device."""
    target = random.choice(("..", ".", "../..", "nothing", "/dev/null", "/dev/zero", "loop.png", str(root)))
    (inside / random.choice(("loop", "loop.png"))).symlink_to(target)


def linked_class(root: Path, inside: Path, random: Random) -> None:
    """A class folder that is a link: to another class, to itself, to where all classes lie."""
    (root / "linked").symlink_to(random.choice((inside.name, "linked", ".", "..", "nothing")))


def fifo(root: Path, inside: Path, random: Random) -> None:
    """What is no file, with the name of one."""
    name = inside / random.choice(("9.png", "9.jpg"))
    if random.random() < 0.7:
        os.mkfifo(name)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            here = os.open(inside, os.O_RDONLY)
            server.bind(f"/proc/self/fd/{here}/{name.name}")  # the path itself may be too long for a socket
            os.close(here)


def damaged(root: Path, inside: Path, random: Random) -> None:
    """One to three images that are empty, cut, noise, text, or with flipped bits."""
    for number in range(random.randint(1, 3)):
        kind = random.choice(("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"))
        whole = bytearray(encoded(picture(random, size=(60, 50)), kind))
        for _ in range(5):
            whole[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        cut = bytes(whole[: random.randrange(len(whole))])
        content = random.choice((b"", cut, bytes(whole), random.randbytes(300), b"no image\n", b"\x89PNG\r\n\x1a\n"))
        (inside / f"bad{number}.{kind.lower()}").write_bytes(content)


def bombs(root: Path, inside: Path, random: Random) -> None:
    """Images that unpack to very many pixels."""
    (inside / "bomb.png").write_bytes(bomb(random.choice((11000, 30000))))


def strange(root: Path, inside: Path, random: Random) -> None:
    """Images that are in order and rare: stacks, palettes, 16 bits, slivers, odd suffixes."""
    name = inside / "strange"
    kind = random.choice(("GIF", "TIFF", "P", "I;16", "CMYK", "LA", "1", "F", "sliver", "dot", "JPG", "none"))
    frames = [picture(random) for _ in range(3)]
    if kind in ("GIF", "TIFF"):
        frames[0].save(f"{name}.{kind.lower()}", kind, save_all=True, append_images=frames[1:])
    elif kind in ("CMYK", "F"):
        picture(random, kind).save(f"{name}.tif", "TIFF")
    elif kind in ("P", "LA", "1"):
        picture(random, kind).save(f"{name}.png")
    elif kind == "I;16":
        Image.frombytes("I;16", (9, 9), random.randbytes(162)).save(f"{name}.png")
    elif kind in ("sliver", "dot"):
        picture(random, size=(1, 5000) if kind == "sliver" else (1, 1)).save(f"{name}.png")
    else:
        Path(f"{name}{'.JPG' if kind == 'JPG' else ''}").write_bytes(encoded(picture(random), "JPEG"))


def names(root: Path, inside: Path, random: Random) -> None:
    """A class or an image with a name that is not UTF-8, or long, or with odd signs."""
    name = os.fsdecode(random.choice(ODD))
    if random.random() < 0.5:
        (inside / f"{name}.png").write_bytes(encoded(picture(random)))
    else:
        (root / name).mkdir()
        for i in range(3):
            (root / name / f"{i}.png").write_bytes(encoded(picture(random)))


def foreign(root: Path, inside: Path, random: Random) -> None:
    """Files that systems and people leave among photos."""
    for name in random.sample(LEFT, 3):
        (random.choice((root, inside)) / name).write_bytes(random.randbytes(50))


def empty(root: Path, inside: Path, random: Random) -> None:
    """Classes without images, with one, or deep below others."""
    kind = random.choice(("empty", "one", "deep", "nested"))
    folder = root / "other"
    if kind == "deep":
        folder = folder.joinpath(*["d"] * 60)
    folder.mkdir(parents=True)
    for i in range({"empty": 0, "one": 1}.get(kind, 4)):
        picture(random).save(folder / f"{i}.png")
    if kind == "nested":
        (folder / "inner").mkdir()
        picture(random).save(folder / "inner" / "0.png")


def permissions(root: Path, inside: Path, random: Random) -> None:
    """A folder or a file that may not be read."""
    random.choice((inside, inside / "0.png", root)).chmod(random.choice((0o000, 0o200, 0o400)))


def splits(root: Path, inside: Path, random: Random) -> None:
    """Lists or folders of splits that are not quite right."""
    kind = random.choice(("lists", "lists", "folders"))
    names = [path.name for path in root.iterdir() if path.is_dir()]
    for split in random.sample(("train", "val", "test"), random.randint(1, 3)):
        if kind == "folders":
            (root / split / "only").mkdir(parents=True)
            picture(random).save(root / split / "only" / "0.png")
            continue
        lines = random.choice((names[:4], names, ["nope"], [], ["# nothing"], ["../.."], [names[0]] * 2, [""] * 3))
        content = "\n".join(lines).encode()
        (root / f"{split}.txt").write_bytes(random.choice((content, content, random.randbytes(40))))


NASTY = (links, linked_class, fifo, damaged, damaged, bombs, strange, names, foreign, empty, permissions, splits)


def omniglot(root: Path, random: Random, shared_bomb: Path) -> None:
    """The two archives of Omniglot, damaged in some way."""
    for part in ("images_background", "images_evaluation"):
        file = root / f"{part}.zip"
        kind = random.choice(("noise", "empty", "cut", "flipped", "few", "escape", "bomb", "bomb", "folder", "text"))
        if kind == "bomb":
            file.symlink_to(shared_bomb / f"{part}.zip")
        elif kind == "folder":
            file.mkdir()
        elif kind in ("noise", "empty", "text"):
            file.write_bytes({"noise": random.randbytes(900), "empty": b"", "text": b"404: not found"}[kind])
        else:
            with zipfile.ZipFile(file, "w") as archive:
                for i in range(20):
                    name = f"{part}/Greek/character01/{i:04}.png"
                    archive.writestr(f"../../{name}" if kind == "escape" else name, encoded(picture(random, "1")))
            whole = bytearray(file.read_bytes())
            if kind == "flipped":
                whole[random.randrange(len(whole))] ^= 255
            file.write_bytes(whole[: random.randrange(len(whole))] if kind == "cut" else whole)


def zip_bombs(folder: Path) -> None:
    """Archives named as Omniglot's whose few megabytes unpack to six gigabytes."""
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(folder / f"{part}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for i in range(3):
                with archive.open(f"{part}/Greek/character01/{i:04}.png", "w", force_zip64=True) as file:
                    for _ in range(64):
                        file.write(bytes(GB // 64))


def mnist(root: Path, random: Random) -> None:
    """MNIST's four files, all of them something else."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            name = raw / f"{part}-{kind}-ubyte"
            content = random.choice((b"", random.randbytes(100), bytes([0, 0, 8, 3]) + random.randbytes(40), b"text"))
            if random.random() < 0.5:
                packed = gzip.compress(random.choice((content, bytes(GB // 4))), 1)
                name.with_name(f"{name.name}.gz").write_bytes(packed[: random.choice((len(packed), 20))])
            else:
                name.write_bytes(content)
