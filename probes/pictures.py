"""Pictures in files: whole, upright as viewers show them, and refused in one line where they can't be read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps

from probes.errors import InputError

JPEG_SUFFIXES = (".jpg", ".jpeg")

IMAGE_SUFFIXES = (*JPEG_SUFFIXES, ".png")
"""Of frames."""

OTHER_IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".dng", ".dpx", ".exr", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".pbm",
    ".pgm", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Of pictures that are no frames, and are named where they lie among them."""

ORIENTATION = 0x0112
"""The tag of EXIF that says how a camera was held; 1 is upright."""

SEVERAL_VIEWS = "MPO"
"""Format of JPEG files whose further pictures are other views of the first, such as its depth."""


@contextmanager
def open_picture(path: Path, expected: str) -> Iterator[Image.Image]:
    """Open a picture; whatever its decoder raises, now or while the context lasts, becomes one line.

    Raises
    ------
    InputError
        It can't be read, or is an animation, of which all but the first picture would be left out.
    """
    try:
        with Image.open(path) as image:
            if image.format == "PNG" and not png_is_whole(path):
                raise ValueError("a check sum is wrong")
            count = getattr(image, "n_frames", 1)
            if count > 1 and image.format != SEVERAL_VIEWS:
                raise InputError(
                    f"{path} holds {count} pictures; expected one; save each as a file of its own"
                )
            yield image
    except InputError:
        raise
    except Exception as error:  # decoders raise what they like on damaged files
        raise InputError(
            f"{path} can't be read as a picture ({reason_of(error)}); expected {expected}; replace it"
        ) from None


def png_is_whole(path: Path) -> bool:
    """Whether the pixels and colours of a PNG are as they were written: Pillow doesn't look at their check sums."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind not in (b"IDAT", b"PLTE"):
                file.seek(length + 4, 1)
                continue
            data, told = file.read(length), file.read(4)
            if zlib.crc32(kind + data) != int.from_bytes(told, "big"):
                return False
    return True


def upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF says, as viewers and tools to draw on it do."""
    return ImageOps.exif_transpose(image) if _orientation(image) > 1 else image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of a picture that is upright, without decoding it."""
    width, height = image.size
    return (height, width) if _orientation(image) > 4 else (width, height)


def _orientation(image: Image.Image) -> int:
    """Return 1 to 8."""
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & set(image.info):
        return 1  # to look for it behind the pixels is to decode them
    found = image.getexif().get(ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def reason_of(error: BaseException) -> str:
    """Return an error in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
