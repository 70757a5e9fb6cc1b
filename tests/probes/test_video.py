"""Videos from folders, files, arrays and streams: the right frame by index, and one-line refusals."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from sam2.utils.misc import load_video_frames

from probes.errors import InputError, LeftOut
from probes.frames import KEPT_FRAMES, KEPT_OF_STREAM
from probes.video import EndOfVideo, ModelFrames, notes_of, open_video

FRAMES = 40


def numbered_frames(count: int = FRAMES) -> np.ndarray:
    """Return frames whose grey value tells their index, uint8 [T, 48, 64, 3]."""
    values = (np.arange(count, dtype=np.uint8) * 6)[:, None, None, None]
    return np.broadcast_to(values, (count, 48, 64, 3)).copy()


def index_of(frame: np.ndarray) -> int:
    return round(float(frame.mean()) / 6)


def write_file(path: Path, frames: np.ndarray, codec: str = "libx264", **options: str) -> Path:
    """Write a video with a key frame every 12 frames and B-frames between."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = (*frames.shape[1:3], "yuv420p")
        if codec == "libx264":
            stream.options = {"g": "12", "bf": "2", "crf": "12"}
        else:
            stream.options = {"g": "12"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    return write_file(path, numbered_frames(), movflags="+faststart")


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10.png", "9.png", "100.png"], ["9", "10", "100"]),
        (["f10.PNG", "f9.png", "g1.Png"], ["f9", "f10", "g1"]),
        (["b.jpg", "a.jpg", "notes.txt"], ["a", "b"]),
        (["00002.jpg", "00001.jpg"], ["00001", "00002"]),
    ],
)
def test_any_names_that_sort(tmp_path: Path, names: list[str], order: list[str]) -> None:
    for name in names:
        if name.endswith("txt"):
            (tmp_path / name).write_text("not a frame")
        else:
            grey = 5 * order.index(Path(name).stem)
            Image.new("RGB", (64, 48), (grey, grey, grey)).save(tmp_path / name)
    source = open_video(str(tmp_path))
    assert source.names == order
    assert [round(float(source.frame(i).mean()) / 5) for i in range(len(order))] == [
        *range(len(order))
    ]


def test_grey_and_indexed_pictures_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (6, 4), 7).save(tmp_path / "0.png")
    Image.new("P", (6, 4), 0).save(tmp_path / "1.png")
    source = open_video(tmp_path)
    assert source.frame(0).shape == source.frame(1).shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mov", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")],
)
def test_video_files_by_index_in_any_order(tmp_path: Path, name: str, codec: str) -> None:
    source = open_video(write_file(tmp_path / name, numbered_frames(), codec))
    assert (source.height, source.width, source.num_frames) == (48, 64, FRAMES)
    assert source.fps == pytest.approx(25)
    order = [*range(FRAMES), 5, 39, 38, 37, 0, 30, 31, 12, 11, 39, 0, 25]
    assert [index_of(source.frame(i)) for i in order] == order


def with_one_more_packet(path: Path, source: Path, shown: bool) -> Path:
    """Copy a VP8 file; packet 6 comes twice, the second time hidden (RFC 6386, 9.1), or shown at the same time."""
    with av.open(str(source)) as given, av.open(str(path), "w") as container:
        stream = given.streams.video[0]
        into = container.add_stream_from_template(stream)
        packets = [packet for packet in given.demux(stream) if packet.size]
        copies = [(bytes(packet), packet.pts, packet) for packet in packets]
        data, pts, packet = copies[6]
        hidden = bytes([data[0] & ~0x10]) + data[1:], pts + 1, packet
        copies.insert(7, (data, pts, packet) if shown else hidden)
        for data, pts, packet in copies:
            copy = av.Packet(data)
            copy.pts = copy.dts = pts
            copy.time_base, copy.stream = packet.time_base, into
            copy.is_keyframe = packet.is_keyframe
            container.mux(copy)
    return path


def test_packets_that_show_no_frame_are_not_counted(tmp_path: Path) -> None:
    """VP8 refers to frames that are never shown, which WebM keeps as packets of their own."""
    plain = write_file(tmp_path / "plain.webm", numbered_frames(12), "libvpx")
    path = with_one_more_packet(tmp_path / "hidden.webm", plain, shown=False)
    with av.open(str(path)) as container:
        played = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    source = open_video(path)
    assert source.num_frames == len(played) == 12
    for i in (*range(12), 5, 8, 2):
        assert np.array_equal(source.frame(i), played[i])
    assert not np.array_equal(played[6], played[7])


def test_two_frames_of_one_time_are_two(tmp_path: Path) -> None:
    plain = write_file(tmp_path / "plain.webm", numbered_frames(12), "libvpx")
    path = with_one_more_packet(tmp_path / "twice.webm", plain, shown=True)
    with av.open(str(path)) as container:
        played = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    with pytest.warns(LeftOut, match="1 frames with the time stamp of another"):
        twice = open_video(path)
    assert twice.num_frames == len(played) == 13
    assert all(np.array_equal(twice.frame(i), played[i]) for i in (*range(13), 3, 7, 6))
    assert open_video(plain).num_frames == 12


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.ts"])
def test_a_file_that_was_cut_between_key_frames_begins_with_the_first(
    tmp_path: Path, name: str
) -> None:
    """As recordings of a stream do; players show nothing of what comes before either."""
    plain = write_file(tmp_path / f"plain{Path(name).suffix}", numbered_frames())
    with av.open(str(plain)) as given, av.open(str(tmp_path / name), "w") as container:
        stream = given.streams.video[0]
        into = container.add_stream_from_template(stream)
        for packet in [packet for packet in given.demux(stream) if packet.size][5:]:
            packet.stream = into
            container.mux(packet)
    with pytest.warns(LeftOut, match="frames before its first key frame can't be decoded"):
        source = open_video(tmp_path / name)
    assert source.num_frames == FRAMES - 12
    order = [*range(FRAMES - 12), 0, 20, 3]
    assert [index_of(source.frame(i)) for i in order] == [12 + i for i in order]
    assert [index_of(open_video(plain).frame(i)) for i in (0, 20, 3)] == [0, 20, 3]


def test_a_colon_in_a_name_is_no_protocol(
    mp4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "12:30.mp4").write_bytes(mp4.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert open_video("12:30.mp4").num_frames == FRAMES
    with pytest.raises(InputError, match=r"^12:31.mp4 does not exist"):
        open_video("12:31.mp4")


def test_reading_on_decodes_each_frame_once(mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_video(mp4)
    seeks: list[int] = []
    seek = source._seek
    monkeypatch.setattr(source, "_seek", lambda i: seeks.append(i) or seek(i))
    for i in range(FRAMES):
        source.frame(i)
    assert seeks == []
    source.frame(3)
    assert seeks == [3]
    assert len(source._kept) <= KEPT_FRAMES


def test_bytes_of_a_video_file(mp4: Path) -> None:
    source = open_video(mp4.read_bytes())
    assert source.num_frames == FRAMES
    assert index_of(source.frame(17)) == 17


def test_a_camera_held_upright_gives_upright_frames(tmp_path: Path) -> None:
    frames = numbered_frames(4)
    frames[:, :10, :10] = 255  # a mark in the upper left corner
    path = write_file(tmp_path / "turned.mp4", frames)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    turned = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # 90 degrees clockwise
    data[matrix : matrix + 36] = struct.pack(">9i", *turned)
    path.write_bytes(data)
    source = open_video(path)
    assert (source.height, source.width) == (64, 48)
    frame = source.frame(0)
    assert frame[:10, -10:].mean() > 240
    assert frame[:10, :10].mean() < 40


def test_arrays_and_sequences() -> None:
    frames = numbered_frames(5)
    for given in (frames, list(frames), torch.from_numpy(frames)):
        source = open_video(given)
        assert (source.num_frames, source.height, source.width) == (5, 48, 64)
        assert index_of(source.frame(4)) == 4
        assert index_of(source.frame(0)) == 0
    assert open_video(source) is source


def _camera(count: int) -> Iterator[np.ndarray]:
    yield from numbered_frames(count)


def test_a_stream_is_read_only_as_far_as_asked() -> None:
    read: list[int] = []
    source = open_video(read.append(i) or frame for i, frame in enumerate(numbered_frames(30)))
    assert read == [0]
    assert source.num_frames is None
    assert index_of(source.frame(3)) == 3
    assert read == [0, 1, 2, 3]
    assert index_of(source.frame(1)) == 1
    with pytest.raises(TypeError, match="no length before its end"):
        len(ModelFrames(source, 64, "cpu"))


def test_a_stream_ends_and_forgets() -> None:
    source = open_video(_camera(30))
    source.frame(29)
    with pytest.raises(
        InputError, match=f"frame 3 of a stream .* only frames {30 - KEPT_OF_STREAM} to 29"
    ):
        source.frame(3)
    with pytest.raises(EndOfVideo, match="ended after 30 frames"):
        source.frame(30)
    assert source.num_frames == 30


def test_a_frame_after_the_last_is_the_end(mp4: Path, clip_folder: Path) -> None:
    for given in (mp4, clip_folder, numbered_frames(3)):
        source = open_video(given)
        with pytest.raises(EndOfVideo, match=f"the video has {source.num_frames} frames"):
            source.frame(source.num_frames)
        with pytest.raises(InputError, match="count frames from 0"):
            source.frame(-1)


def _refusal(given: object) -> str:
    with pytest.raises(InputError) as caught:
        source = open_video(given)
        for i in range(source.num_frames):
            source.frame(i)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message
    return message


@pytest.mark.parametrize("share", [0.7, 0.9, 0.995])
def test_a_truncated_file_is_refused(mp4: Path, tmp_path: Path, share: float) -> None:
    data = mp4.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: int(len(data) * share)])
    assert f"promises {FRAMES} frames" in _refusal(tmp_path / "cut.mp4")


def test_a_truncated_file_without_its_index_is_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "late.mp4", numbered_frames())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "can't be opened as a video" in _refusal(path)


def test_what_holds_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.mp4").write_bytes(b"")
    assert "can't be opened" in _refusal(tmp_path / "text.mp4")
    assert "can't be opened" in _refusal(tmp_path / "none.mp4")
    assert "holds no frames" in _refusal(tmp_path / "empty")
    assert "does not exist" in _refusal(tmp_path / "absent.mp4")
    assert "0 frames" in _refusal(np.zeros((0, 4, 4, 3), np.uint8))
    assert "ended before its first frame" in _refusal(iter(()))
    assert "int given as video" in _refusal(7)


@pytest.mark.parametrize(
    "frame",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)],
)
def test_frames_of_another_kind_are_refused(frame: np.ndarray) -> None:
    assert "expected uint8 [H, W, 3]" in _refusal([frame])


def test_frames_of_several_sizes_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "1.png")
    assert "1.png is 8x6; expected 8x8" in _refusal(tmp_path)


def test_pictures_of_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    """Pillow would clip them: what is brighter than 255 of 65535 would come out white."""
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "0.png")
    assert "0.png has 16 bits or more a pixel; expected 8 bits a channel" in _refusal(tmp_path)
    Image.fromarray((deep // 257).astype(np.uint8)).save(tmp_path / "0.png")
    assert open_video(tmp_path).frame(0).max() == 255


def test_a_broken_or_doubled_picture_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "0.jpg")
    data = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(data[: len(data) // 2])
    assert "1.jpg can't be read as a picture" in _refusal(tmp_path)
    (tmp_path / "1.jpg").unlink()
    Image.new("RGB", (64, 64)).save(tmp_path / "0.jpeg")
    assert "both 0.jpeg and 0.jpg" in _refusal(tmp_path)


def test_frames_of_a_stream_that_reuses_its_buffer_are_held_as_they_were() -> None:
    def camera() -> Iterator[np.ndarray]:
        buffer = np.empty((48, 64, 3), np.uint8)
        for frame in numbered_frames(8):
            buffer[:] = frame
            yield buffer

    source = open_video(camera())
    for i in range(6):
        source.frame(i)
    assert [index_of(source.frame(i)) for i in range(6)] == [*range(6)]
    listed = open_video(
        [*camera()]
    )  # a list of one buffer shows the last picture, as the caller sees it
    assert [index_of(listed.frame(i)) for i in range(3)] == [7, 7, 7]


def test_pictures_that_lie_come_out_upright_and_others_equal_stock(tmp_path: Path) -> None:
    """Stock sam2 takes them as they lie."""
    frame = numbered_frames(1)[0]
    frame[:10, :10] = 255
    said = Image.Exif()
    for orientation in (1, 6):
        said[0x0112] = orientation
        folder = tmp_path / str(orientation)
        folder.mkdir()
        Image.fromarray(frame).save(folder / "0.jpg", exif=said, quality=95)
    upright, turned = (open_video(tmp_path / name) for name in ("1", "6"))
    assert (upright.width, upright.height) == (turned.height, turned.width) == (64, 48)
    assert np.array_equal(turned.frame(0), np.rot90(upright.frame(0), -1))
    stock, _, _ = load_video_frames(str(tmp_path / "1"), 64, True)
    assert torch.equal(ModelFrames(upright, 64, "cpu")[0], stock[0])
    lying, _, _ = load_video_frames(str(tmp_path / "6"), 64, True)
    assert not torch.equal(ModelFrames(turned, 64, "cpu")[0], lying[0])


def test_what_is_left_out_is_named_once_and_refused_where_nothing_may_be(tmp_path: Path) -> None:
    for name in ("0.jpg", "1.jpg", "1.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.warns(LeftOut, match=r"1 pictures are PNG, .* \(1.png\), left out") as warned:
        source = open_video(tmp_path)
    assert len(warned) == 1 and [str(w.message) for w in warned] == list(notes_of(source))
    assert source.names == ["0", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_video(source) is source
    for given in (tmp_path, source):
        with pytest.raises(InputError, match="expected that nothing is left out .*; mend it"):
            open_video(given, strict=True)
    (tmp_path / "1.png").unlink()
    assert notes_of(open_video(tmp_path, strict=True)) == notes_of(open_video([*FEW])) == ()


FEW = numbered_frames(2)


def test_a_warning_that_is_shown_once_is_not_shown_for_each_frame(clip_folder: Path) -> None:
    """Python shows it anew whenever somebody changes what is shown."""
    source = open_video(clip_folder)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        for i in range(4):
            source.frame(i)
            warnings.warn("once", UserWarning, stacklevel=1)
        shown = len(warned)
        with warnings.catch_warnings():
            pass
        for _ in range(2):
            warnings.warn("once", UserWarning, stacklevel=1)
    assert shown == 1 and len(warned) == 2
