"""Odd files and folders to read, each made from the same numbered frames: a table of names, makers and outcomes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from PIL import Image, PngImagePlugin

COUNT = 16
HEIGHT, WIDTH = 96, 128
READ = tuple(range(COUNT))
TURN = 1 << 16
"""One, in a display matrix."""


def picture(index: int) -> np.ndarray:
    """Return a frame that tells its index and which way up it is, uint8 [96, 128, 3]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frame = np.stack([x * 200 // WIDTH, y * 200 // HEIGHT, np.full_like(x, 90)], -1)
    for bit in range(5):
        frame[:24, bit * 24 : bit * 24 + 24] = 235 if (index >> bit) & 1 else 16
    return frame.astype(np.uint8)


FRAMES = [picture(index) for index in range(COUNT)]


def index_of(frame: np.ndarray) -> int:
    """Return the index that a frame tells; -1 where it is not one of these, the right way up."""
    if frame.shape != (HEIGHT, WIDTH, 3):
        return -1
    bits = [frame[6:18, bit * 24 + 6 : bit * 24 + 18].mean() for bit in range(5)]
    index = sum(int(bit > 125) << place for place, bit in enumerate(bits))
    rest = np.abs(frame[40:].astype(int) - FRAMES[0][40:]).mean()
    return index if rest < 12 else -1


def write(
    path: Path, codec: str = "libx264", frames: Sequence[np.ndarray] = FRAMES, **how: Any
) -> Path:
    """Write a video; `how`: format, pix (default yuv420p), rate, container (options) and the codec's options."""
    options = {"g": "8", "bf": "2", "crf": "12"} if codec == "libx264" else {"g": "8"}
    options |= how.get("options", {})
    with av.open(
        str(path), "w", format=how.get("format"), options=how.get("container", {})
    ) as file:
        stream = file.add_stream(codec, rate=how.get("rate", 25))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = how.get("pix", "yuv420p"), options
        for index, frame in enumerate(frames):
            if index in how.get("without", ()):
                continue
            made = av.VideoFrame.from_ndarray(frame, format="rgb24")
            made.pts, made.time_base = index, 1 / Fraction(how.get("rate", 25))
            file.mux(stream.encode(made))
        file.mux(stream.encode())
    return path


def cut(path: Path, share: float) -> Path:
    """Leave out the end of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def twice(path: Path) -> Path:
    """Join a file to itself."""
    path.write_bytes(path.read_bytes() * 2)
    return path


def without_packets(path: Path, first: int, count: int, size: int = 188) -> Path:
    """Lose packets of a transport stream."""
    data = path.read_bytes()
    path.write_bytes(data[: first * size] + data[(first + count) * size :])
    return path


def mirrored(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write frames lying so that the display matrix brings them upright."""
    lying = []
    for frame in FRAMES:
        source = frame.transpose(1, 0, 2) if a == 0 else frame
        # where the matrix is to turn an axis round, the frame has it turned round already
        right, down = (b, c) if a == 0 else (a, d)
        source = source[:, ::-1] if right < 0 else source
        lying.append(np.ascontiguousarray(source[::-1] if down < 0 else source))
    data = bytearray(write(path, frames=lying).read_bytes())
    place = data.index(b"tkhd") + 44
    numbers = (a * TURN, b * TURN, 0, c * TURN, d * TURN, 0, 0, 0, 1 << 30)
    data[place : place + 36] = struct.pack(">9i", *numbers)
    path.write_bytes(data)
    return path


def with_cover(path: Path, flagged: bool, second: Sequence[np.ndarray] = ()) -> Path:
    """Write a still picture, or a second video, in front of the video."""
    with av.open(str(path), "w") as file:
        still = file.add_stream("mjpeg", rate=25)
        still.width, still.height, still.pix_fmt = 64, 64, "yuvj420p"
        if flagged:
            still.disposition = Disposition.attached_pic
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"g": "8", "crf": "12"}
        for frame in second or [np.full((64, 64, 3), 200, np.uint8)]:
            file.mux(still.encode(av.VideoFrame.from_ndarray(frame[:64, :64], format="rgb24")))
        file.mux(still.encode())
        for frame in FRAMES:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path


def folder(path: Path, suffix: str = ".png", frames: Sequence[Any] = FRAMES, **saved: Any) -> Path:
    """Write a folder of pictures."""
    path.mkdir(exist_ok=True)
    for index, frame in enumerate(frames):
        image = frame if isinstance(frame, Image.Image) else Image.fromarray(frame)
        image.save(path / f"{index:03d}{suffix}", **saved)
    return path


def in_mode(mode: str) -> list[Image.Image]:
    return [Image.fromarray(frame).convert(mode) for frame in FRAMES]


def turned(path: Path, orientation: int, suffix: str = ".jpg") -> Path:
    """Write pictures that are lying, and EXIF that says so."""
    lying = {
        1: FRAMES,
        2: [frame[:, ::-1] for frame in FRAMES],
        3: [np.rot90(frame, 2) for frame in FRAMES],
        6: [np.rot90(frame, 1) for frame in FRAMES],
        8: [np.rot90(frame, -1) for frame in FRAMES],
    }[orientation]
    said = Image.Exif()
    said[0x0112] = orientation
    whole = [np.ascontiguousarray(frame) for frame in lying]
    options = {"quality": 95} if suffix == ".jpg" else {}
    return folder(path, suffix, whole, exif=said, **options)


def exif_mjpeg(path: Path, orientation: int) -> Path:
    """Write a stream of JPEG pictures, each of which says how it lies."""
    pictures = turned(path.with_suffix(""), orientation)
    path.write_bytes(b"".join(p.read_bytes() for p in sorted(pictures.iterdir())))
    return path


def animated(path: Path, **options: Any) -> Path:
    path.mkdir()
    first, *rest = map(Image.fromarray, FRAMES)
    first.save(path / "000.png", save_all=True, append_images=rest, **options)
    return path


def pages(path: Path) -> None:
    first, *rest = map(Image.fromarray, FRAMES)
    first.save(path, save_all=True, append_images=rest)


def beside(path: Path, make: Callable[[Path], Any]) -> Path:
    """Write something else into a folder of frames."""
    make(folder(path))
    return path


def with_text(path: Path) -> Path:
    long = PngImagePlugin.PngInfo()
    long.add_text("workflow", "x" * 3_000_000, zip=True)
    return folder(path, pnginfo=long)


def broken(path: Path, name: str, data: bytes) -> Path:
    (folder(path) / name).write_bytes(data)
    return path


@dataclass(frozen=True)
class Odd:
    """A file or folder to read.

    Attributes
    ----------
    frames
        The indices it is read as; or None where it is refused, in a line with these words.
    said
        Words of what is said to be left out, or of the refusal; "" where nothing is.
    """

    make: Callable[[Path], Any]
    frames: tuple[int, ...] | None = READ
    said: str = ""


def refused(make: Callable[[Path], Any], words: str) -> Odd:
    return Odd(make, None, words)


KINDS: dict[str, Odd] = {
    name: Odd(lambda path, codec=codec, how=how: write(path, codec, **how))
    for name, codec, how in [
        ("mp4.mp4", "libx264", {}),
        ("upper.MP4", "libx264", {}),
        ("m4v.m4v", "libx264", {}),
        ("mov.mov", "libx264", {}),
        ("mkv.mkv", "libx264", {}),
        ("webm.webm", "libvpx", {"options": {"b": "2M"}}),
        ("vp9.webm", "libvpx-vp9", {"options": {"b": "2M"}}),
        ("ts.ts", "libx264", {}),
        ("mts.mts", "libx264", {"format": "mpegts"}),
        ("mpg.mpg", "mpeg2video", {"options": {"bf": "2", "b": "4M"}}),
        ("vob.vob", "mpeg2video", {"options": {"b": "4M"}}),
        ("m2v.m2v", "mpeg2video", {"format": "mpeg2video", "options": {"b": "4M"}}),
        ("flv.flv", "libx264", {}),
        ("wmv.wmv", "wmv2", {"options": {"b": "4M"}}),
        ("3gp.3gp", "libx264", {}),
        ("mxf.mxf", "mpeg2video", {"options": {"b": "4M"}}),
        ("nut.nut", "libx264", {}),
        ("y4m.y4m", "rawvideo", {}),
        ("gif.gif", "gif", {"pix": "rgb8"}),
        ("apng.apng", "apng", {"format": "apng", "pix": "rgb24"}),
        ("h264.h264", "libx264", {"format": "h264"}),
        ("hevc.hevc", "libx265", {"format": "hevc", "options": {"x265-params": "log-level=none:crf=12"}}),
        ("mjpeg.mjpeg", "mjpeg", {"format": "mjpeg", "pix": "yuvj420p"}),
        ("b-frames.avi", "libx264", {}),
        ("xvid.avi", "mpeg4", {"options": {"bf": "2", "b": "4M"}}),
        ("mjpeg.avi", "mjpeg", {"pix": "yuvj420p"}),
        ("raw.avi", "rawvideo", {"pix": "bgr24"}),
        ("lossless.mkv", "ffv1", {"pix": "yuv420p"}),
        ("deep.mkv", "libx264", {"pix": "yuv420p10le"}),
        ("fragments.mp4", "libx264", {"container": {"movflags": "frag_keyframe+empty_moov"}}),
        ("slow.mp4", "libx264", {"rate": Fraction(1, 2)}),
        ("a name.without a suffix", "libx264", {"format": "mp4"}),
    ]
}  # fmt: skip

FRONT = {"container": {"movflags": "faststart"}}
LOST: dict[str, Odd] = {
    "dropped.avi": Odd(
        lambda p: write(p, "mjpeg", pix="yuvj420p", without=(5, 6, 9)),
        tuple(i for i in READ if i not in (5, 6, 9)),
        "3 frames were dropped when it was recorded; 13 are read",
    ),
    "joined.ts": Odd(lambda p: twice(write(p)), READ * 2, "1. frames with the time stamp"),
    "joined.mpg": Odd(
        lambda p: twice(write(p, "mpeg2video", options={"b": "4M"})),
        READ * 2,
        "16 frames with the time stamp",
    ),
    "joined.h264": Odd(lambda p: twice(write(p, format="h264")), READ * 2),
    "joined.mkv": Odd(lambda p: twice(write(p)), READ * 2, "1. frames with the time stamp"),
    "joined.mp4": Odd(lambda p: twice(write(p)), READ, "another video joined to its end"),
    "cut.mkv": Odd(lambda p: cut(write(p), 0.6), (), "is cut off 0.*s before the end"),
    "cut.ts": Odd(lambda p: cut(write(p), 0.6), (), "is cut off"),
    "cut.h264": Odd(lambda p: cut(write(p, format="h264"), 0.6), (), "is cut off or damaged"),
    "cut.gif": Odd(lambda p: cut(write(p, "gif", pix="rgb8"), 0.5), (), "is cut off"),
    "cut.y4m": Odd(lambda p: cut(write(p, "rawvideo"), 0.5), (), "is cut off"),
    "lost.ts": Odd(lambda p: without_packets(write(p), 18, 4), (), "frames lost between others"),
    "crashed.mp4": Odd(
        lambda p: cut(write(p, container={"movflags": "frag_keyframe+empty_moov"}), 0.7),
        (),
        "is cut off or damaged",
    ),
    "cut.mp4": refused(lambda p: cut(write(p), 0.6), "can't be opened as a video"),
    "cut in front.mp4": refused(
        lambda p: cut(write(p, **FRONT), 0.8), "its header promises 16 frames"
    ),
    "empty.mp4": refused(lambda p: p.touch(), "can't be opened as a video"),
    "text.mp4": refused(lambda p: p.write_text("no video"), "can't be opened as a video"),
}

TURNED: dict[str, Odd] = {
    "hflip.mp4": Odd(lambda p: mirrored(p, -1, 0, 0, 1)),
    "vflip.mp4": Odd(lambda p: mirrored(p, 1, 0, 0, -1)),
    "rot180.mp4": Odd(lambda p: mirrored(p, -1, 0, 0, -1)),
    "rot90.mp4": Odd(lambda p: mirrored(p, 0, 1, -1, 0)),
    "rot270.mp4": Odd(lambda p: mirrored(p, 0, -1, 1, 0)),
    "rot90 mirrored.mp4": Odd(lambda p: mirrored(p, 0, 1, 1, 0)),
    "rot270 mirrored.mp4": Odd(lambda p: mirrored(p, 0, -1, -1, 0)),
    "exif 1.mjpeg": Odd(lambda p: exif_mjpeg(p, 1)),
    "exif 6.mjpeg": Odd(lambda p: exif_mjpeg(p, 6)),
    "exif 8.mjpeg": Odd(lambda p: exif_mjpeg(p, 8)),
    "exif 2": Odd(lambda p: turned(p, 2)),
    "exif 3": Odd(lambda p: turned(p, 3)),
    "exif 6": Odd(lambda p: turned(p, 6)),
    "exif 8": Odd(lambda p: turned(p, 8)),
    "exif 6, png": Odd(lambda p: turned(p, 6, ".png")),
}

STREAMS: dict[str, Odd] = {
    "cover.mp4": Odd(lambda p: with_cover(p, True)),
    "still.mp4": Odd(lambda p: with_cover(p, False)),
    "cover.mkv": Odd(lambda p: with_cover(p, True), READ, "1 more video streams"),
    "two.mkv": Odd(lambda p: with_cover(p, False, FRAMES), (), "1 more video streams"),
}

PICTURES: dict[str, Odd] = {
    "png": Odd(folder),
    "jpeg": Odd(lambda p: folder(p, ".jpg", quality=95)),
    "rgba": Odd(lambda p: folder(p, frames=in_mode("RGBA"))),
    "palette": Odd(lambda p: folder(p, frames=[image.quantize(64) for image in in_mode("RGB")])),
    "cmyk": Odd(lambda p: folder(p, ".jpg", in_mode("CMYK"), quality=95)),
    "jpeg and png": Odd(
        lambda p: beside(folder(p, ".jpg", quality=95), folder),
        READ,
        "16 pictures are PNG, where JPEG files are the frames",
    ),
    "tif beside": Odd(
        lambda p: beside(p, lambda f: Image.new("RGB", (9, 9)).save(f / "a.tif")),
        READ,
        r"1 pictures end in other than .* \(a.tif\), left out",
    ),
    "a link to nowhere": Odd(
        lambda p: beside(p, lambda f: (f / "099.png").symlink_to(f / "gone.png")),
        READ,
        r"1 links lead nowhere \(099.png\), left out",
    ),
    "hidden files": Odd(lambda p: broken(p, "._000.png", b"of a system")),
    "tif alone": refused(
        lambda p: folder(p, ".tif"), "holds no frames but 16 others such as 000.tif"
    ),
    "16 bits": refused(
        lambda p: folder(p, frames=[np.arange(99, dtype=np.uint16).reshape(9, 11)]), "has 16 bits"
    ),
    "animation": refused(animated, "000.png holds 16 pictures; expected one"),
    "long text": refused(with_text, "000.png can't be read as a picture"),
    "too large": refused(
        lambda p: folder(p, frames=[Image.new("1", (20000, 9500))]), "can't be read as a picture"
    ),
    "a picture of another size": refused(
        lambda p: beside(p, lambda f: Image.new("RGB", (9, 9)).save(f / "007.png")),
        "007.png is 9x9; expected 128x96",
    ),
    "a broken one": refused(lambda p: broken(p, "007.png", b"no picture"), "007.png can't be read"),
    "pages.tif": refused(pages, "pages.tif holds 16 pictures; expected one"),
    "picture.png": Odd(lambda p: Image.fromarray(FRAMES[3]).save(p), (3,)),
    "no files": refused(lambda p: p.mkdir(), "holds no frames; expected files"),
}

FILES = {**KINDS, **LOST, **TURNED, **STREAMS, **PICTURES}
