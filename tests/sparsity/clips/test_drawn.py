"""Masks as people draw them: the objects they mean, or one line that says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, PngImagePlugin

from probes.errors import InputError
from sparsity.clips.drawn import check_mask_size, read_mask
from sparsity.clips.masks import PALETTE, write_mask

Y, X = np.mgrid[:96, :128]
DISC = (X - 40) ** 2 + (Y - 48) ** 2 < 20**2
BAR = (X > 80) & (X < 110) & (Y > 20) & (Y < 70)
WHITE_DISC = (DISC * 255).astype(np.uint8)
RESAMPLING = Image.Resampling


def two(first: int, second: int) -> np.ndarray:
    """Ids or greys of two objects."""
    return np.where(DISC, first, np.where(BAR, second, 0)).astype(np.uint8)


def smooth(radius: float = 1.0, level: int = 255) -> Image.Image:
    return Image.fromarray((DISC * level).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))


def shrunk() -> Image.Image:
    """The disc, drawn large and shrunk."""
    large = Image.new("L", (512, 384))
    ImageDraw.Draw(large).ellipse((80, 112, 240, 272), fill=255)
    return large.resize((128, 96), RESAMPLING.LANCZOS)


def enlarged() -> Image.Image:
    return Image.fromarray(WHITE_DISC[2::4, 2::4]).resize((128, 96), RESAMPLING.BILINEAR)


def with_palette(ids: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(ids)
    image.putpalette([value for colour in colours for value in colour])
    return image


def on_transparent(grey: np.ndarray, opaque: np.ndarray, mode: str) -> Image.Image:
    layers = [grey] * (len(mode) - 1) + [opaque]
    return Image.fromarray(np.stack(layers, -1).astype(np.uint8), mode)


ONE_OBJECT: dict[str, Callable[[], Image.Image]] = {
    "white on black": lambda: Image.fromarray(WHITE_DISC),
    "one bit": lambda: Image.fromarray(DISC),
    "shrunk": shrunk,
    "enlarged": enlarged,
    "blurred": smooth,
    "widely blurred": lambda: smooth(4),
    "blurred, in RGB": lambda: smooth().convert("RGB"),
    "blurred, in RGBA": lambda: smooth().convert("RGBA"),
    "blurred, with alpha": lambda: smooth().convert("LA"),
    "blurred, indexed": lambda: smooth().convert("P"),
    "white on transparent": lambda: on_transparent(
        np.full_like(WHITE_DISC, 255), np.asarray(smooth()), "RGBA"
    ),
    "white on transparent grey": lambda: on_transparent(
        np.full_like(WHITE_DISC, 255), WHITE_DISC, "LA"
    ),
    "indexed by convert": lambda: Image.fromarray(WHITE_DISC).convert("P"),
    "indexed in two greys": lambda: with_palette(DISC.astype(np.uint8), (0, 0, 0), (255, 255, 255)),
    "indexed, background last": lambda: with_palette(
        (~DISC).astype(np.uint8), (200, 30, 30), (0, 0, 0)
    ),
    "indexed, 255 in a palette of its own": lambda: with_palette(
        WHITE_DISC, *[(n, 90, 30) for n in range(256)]
    ),
    "sixteen greys": lambda: smooth(2).quantize(16, kmeans=1),
    "16 bits, white": lambda: Image.fromarray((DISC * 65535).astype(np.uint16)),
    "16 bits, smooth": lambda: Image.fromarray(np.asarray(smooth()).astype(np.uint16) * 257),
    "codec noise": lambda: Image.fromarray(
        np.where(DISC, 252 + (X + Y) % 4, (X * Y) % 3).astype(np.uint8)
    ).filter(ImageFilter.BoxBlur(1)),
}


@pytest.mark.parametrize("name", ONE_OBJECT)
def test_one_object_is_one_object(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    ONE_OBJECT[name]().save(path)
    ids = read_mask(path)
    assert set(np.unique(ids)) == {0, 1}
    assert ((ids == 1) & DISC).sum() / ((ids == 1) | DISC).sum() > 0.85
    assert not np.array_equal(ids == 1, BAR)
    write_mask(tmp_path / "written.png", ids, "")
    assert np.array_equal(read_mask(tmp_path / "written.png"), ids)


SEVERAL: dict[str, tuple[Callable[[], Image.Image], set[int]]] = {
    "grey and white": (lambda: Image.fromarray(two(128, 255)), {1, 128}),
    "the same, indexed": (lambda: Image.fromarray(two(128, 255)).convert("P"), {1, 128}),
    "the same, in RGB": (lambda: Image.fromarray(two(128, 255)).convert("RGB"), {1, 128}),
    "two greys": (lambda: Image.fromarray(two(100, 200)), {100, 200}),
    "ids": (lambda: Image.fromarray(two(1, 2)), {1, 2}),
    "ids of 16 bits": (lambda: Image.fromarray(two(1, 254).astype(np.uint16)), {1, 254}),
    "DAVIS": (lambda: with_palette(two(3, 40), *map(tuple, PALETTE.tolist())), {3, 40}),
    "DAVIS with void": (lambda: with_palette(two(3, 255), *map(tuple, PALETTE.tolist())), {3}),
    "DAVIS, void alone": (
        lambda: with_palette(two(255, 255), *map(tuple, PALETTE.tolist())),
        set(),
    ),
    "colours of a tool": (
        lambda: with_palette(two(2, 1), (0, 0, 0), (9, 200, 80), (250, 250, 0)),
        {1, 2},
    ),
    "black twice": (lambda: with_palette(two(2, 1), (0, 0, 0), (9, 9, 9), (0, 0, 0)), {1, 2}),
    "no black": (lambda: with_palette(two(2, 1), (1, 2, 3), (9, 200, 80), (250, 250, 0)), {1, 2}),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_objects_keep_their_ids(name: str, tmp_path: Path) -> None:
    make, expected = SEVERAL[name]
    path = tmp_path / "mask.png"
    make().save(path)
    ids = read_mask(path)
    assert set(np.unique(ids)) - {0} == expected
    assert all((ids[where] == ids[where][0]).all() for where in (DISC, BAR))
    write_mask(tmp_path / "written.png", ids, "")
    assert np.array_equal(read_mask(tmp_path / "written.png"), ids)


def test_an_id_does_not_depend_on_which_others_are_there(tmp_path: Path) -> None:
    Image.fromarray(two(255, 128)).save(tmp_path / "both.png")
    Image.fromarray(two(255, 0)).save(tmp_path / "white.png")
    Image.fromarray(two(0, 128)).save(tmp_path / "grey.png")
    both, white, grey = (read_mask(tmp_path / f"{n}.png") for n in ("both", "white", "grey"))
    assert np.array_equal(both, white + grey) and not np.array_equal(both, white)


def photograph() -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16), dtype=np.uint8))
    return coarse.resize((128, 96), RESAMPLING.BICUBIC)


def labels(count: int) -> np.ndarray:
    """Squares of 4 x 4 pixels, a value each."""
    ids = np.arange(24 * 32).reshape(24, 32)
    return np.kron(np.where(ids <= count, ids, 0), np.ones((4, 4), int)).astype(np.uint8)


REFUSED: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "two smooth greys": (
        lambda: Image.fromarray(two(255, 120)).filter(ImageFilter.GaussianBlur(1)),
        "has smooth edges between 2 or more greys",
    ),
    "a photograph": (photograph, "has smooth edges between .* or is a photograph"),
    "noise": (
        lambda: Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128), np.uint8)),
        "smooth edges|a photograph",
    ),
    "a ramp": (lambda: Image.fromarray((X * 2).astype(np.uint8)), "or is a photograph"),
    "too many": (lambda: Image.fromarray(labels(150)), "150 values, .* at most 100"),
    "smooth and coloured": (
        lambda: Image.composite(
            Image.new("RGB", (128, 96), "red"), Image.new("RGB", (128, 96)), smooth(2)
        ).quantize(32, dither=Image.Dither.NONE),
        "has smooth edges in colour",
    ),
    "smooth, in DAVIS's colours": (
        lambda: with_palette(np.asarray(smooth(0.6)), *map(tuple, PALETTE.tolist())),
        "has smooth edges in colour",
    ),
    "colour": (lambda: Image.new("RGB", (128, 96), "red"), "in mode RGB; expected indexed or grey"),
    "small ids and white": (lambda: Image.fromarray(two(2, 255)), "has ids such as 2 beside white"),
    "ids of 16 bits": (
        lambda: Image.fromarray(two(1, 2).astype(np.uint16) * 300),
        "has ids up to 600; expected 1 to 254",
    ),
    "background last, two objects": (
        lambda: with_palette(
            np.where(DISC, 0, np.where(BAR, 1, 2)).astype(np.uint8),
            (9, 9, 200),
            (250, 0, 0),
            (0, 0, 0),
        ),
        "black at index 2; expected black background at index 0",
    ),
    "floating point": (lambda: Image.fromarray(DISC.astype(np.float32)), "in mode F"),
    "CMYK": (lambda: Image.fromarray(WHITE_DISC).convert("CMYK"), "in mode CMYK"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_apart_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    make, words = REFUSED[name]
    path = tmp_path / "mask.tif"
    make().save(path)
    with pytest.raises(InputError, match=words) as caught:
        read_mask(path)
    assert str(caught.value).startswith(f"mask {path}") and "\n" not in str(caught.value)


def test_a_hundred_squares_are_a_hundred_objects(tmp_path: Path) -> None:
    Image.fromarray(labels(100)).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), labels(100))


def test_thin_objects_between_others_are_objects(tmp_path: Path) -> None:
    """A line of id 60 lies between 0 and 120 as a smooth edge would."""
    ids = two(120, 200)
    ids[np.pad(DISC, ((2, 0), (0, 0)))[:-2] & ~DISC] = 60
    Image.fromarray(ids).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), ids)


def test_animations_and_broken_pictures_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(two(n, 1)) for n in (1, 2)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    long = PngImagePlugin.PngInfo()
    long.add_text("workflow", "x" * 3_000_000, zip=True)
    Image.fromarray(WHITE_DISC).save(tmp_path / "noted.png", pnginfo=long)
    Image.fromarray(WHITE_DISC).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:150])
    Image.new("1", (20000, 9500)).save(tmp_path / "huge.png")
    for name, words in {
        "moving": "holds 2 pictures; expected one",
        "noted": "can't be read as a picture",
        "cut": "can't be read as a picture",
        "huge": "can't be read as a picture",
        "none": "does not exist",
    }.items():
        with pytest.raises(InputError, match=words) as caught:
            read_mask(tmp_path / f"{name}.png")
        assert "\n" not in str(caught.value)
    assert read_mask(tmp_path / "whole.png").max() == 1


def test_a_turned_mask_is_as_viewers_show_it(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise
    Image.fromarray(WHITE_DISC).save(tmp_path / "mask.png", exif=turned)
    assert np.array_equal(read_mask(tmp_path / "mask.png"), np.rot90(DISC, -1))
    check_mask_size(tmp_path / "mask.png", (128, 96))
    with pytest.raises(InputError, match="mask.png is 96x128; its video is 128x96"):
        check_mask_size(tmp_path / "mask.png", (96, 128))
