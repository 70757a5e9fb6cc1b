"""Recordings: they hold what the run did, are read strictly, go on where they stopped, and merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from figures import readings
from probes.errors import InputError
from probes.measure import received
from probes.models import build_predictor
from probes.observing import AttentionCall, Told, listen, observe
from probes.prompts import Prompt
from probes.recording import merge_recordings, name_clips, record, write_shard
from probes.records import HEADER, STATISTICS, Recording, load_recording
from probes.tracking import begin_video
from probes.video import open_video
from sparsity import accelerate


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    demo_stock: Any,
    clip_frames: np.ndarray,
    clip_mask: np.ndarray,
) -> Recording:
    """A recording of one clip with two objects, raw rows included."""
    out = tmp_path_factory.mktemp("made") / "two.recording"
    said: list[str] = []
    recording = record(
        demo_stock, clip_frames, {1: clip_mask, 4: np.roll(clip_mask, 6, 1)}, out=out, name="ellipse",
        rows=["encoder.*.global", "memory.*.cross", "*token_to_image"], query_rows=10**6, say=said.append,
    )  # fmt: skip
    size = (out / "ellipse.safetensors").stat().st_size
    assert "MB for one object on 8 frames" in said[0]
    assert float(said[0].split(", ")[1].split(" MB")[0]) * 1e6 < size * 1.1
    return recording


def stock_run(
    stock: Any, frames: np.ndarray, masks: dict[int, np.ndarray], most: int | None = None
) -> dict[str, Any]:
    with torch.inference_mode():
        state = begin_video(stock, open_video(frames))
        for object_id, mask in masks.items():
            stock.add_new_mask(state, 0, object_id, mask)
        list(stock.propagate_in_video(state, max_frame_num_to_track=most))
    return state


def test_masks_and_scores_are_the_runs(
    made: Recording, demo_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    masks = {1: clip_mask, 4: np.roll(clip_mask, 6, 1)}
    heads: dict[tuple[int | None, int], tuple[torch.Tensor, ...]] = {}

    def keep(told: Told) -> None:
        heads[told.moment.frame, told.moment.objects[0]] = told.what

    with listen(demo_stock, decoded=keep):
        state = stock_run(demo_stock, clip_frames, masks)
    clip = load_recording(made.path).clip("ellipse")
    for index, object_id in ((0, 1), (1, 4)):
        for frame, out in state["output_dict_per_obj"][index]["non_cond_frame_outputs"].items():
            i = clip.row(frame, object_id)
            assert np.array_equal(clip.masks()[i], (out["pred_masks"][0, 0] > 0).numpy())
            assert clip.score[i] == out["object_score_logits"].item()
            candidates, _, iou, *_ = heads[frame, object_id]
            assert np.array_equal(clip.masks("candidates")[i], (candidates[0] > 0).numpy())
            chosen = clip.masks("candidates")[i, int(iou[0].argmax())]
            assert np.array_equal(chosen, clip.masks()[i])
    assert not np.array_equal(clip.masks()[clip.row(7, 1)], clip.masks()[clip.row(7, 4)])
    assert clip.conditioning.tolist() == [frame == 0 for frame in clip.row_frame]
    assert not clip.reverse.any()


def test_saliency_is_what_the_predictor_routes_by(
    made: Recording, demo_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    from sparsity.acceleration.model.saliency import token_to_image

    clip = made.clip("ellipse")
    with torch.inference_mode():
        state = begin_video(demo_stock, open_video(clip_frames))
        demo_stock.add_new_mask(state, 0, 1, clip_mask)
        with token_to_image(demo_stock.sam_mask_decoder) as noted:
            list(demo_stock.propagate_in_video(state, max_frame_num_to_track=5))
        live = noted.saliency(16)
    assert live is not None
    assert np.allclose(clip.decoder_saliency[clip.row(5, 1)], live[0].numpy(), atol=1e-6)
    assert not np.allclose(clip.decoder_saliency[clip.row(4, 1)], live[0].numpy(), atol=1e-6)
    assert np.allclose(clip.decoder_saliency.sum((1, 2)), 1, atol=1e-5)


def test_mass_of_the_newest_frame_chooses_the_tokens_that_the_predictor_keeps(
    demo_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    mass: dict[str, np.ndarray] = {}
    kept: dict[str, set[int]] = {}

    def look(call: AttentionCall) -> None:
        if call.moment.frame == 2:
            by_frame = received(call)[1]
            assert by_frame is not None and call.moment.layouts[0].frames[1].frame == 1
            mass[call.site] = by_frame[0, :, 1].mean(0).numpy()

    def note(call: AttentionCall) -> None:
        if call.moment.frame == 3 and call.keys is not None:
            kept[call.site] = set(
                (call.keys[(call.keys >= 256) & (call.keys < 512)] - 256).tolist()
            )

    with observe(demo_stock, look, "memory.*.cross"):
        stock_run(demo_stock, clip_frames, {1: clip_mask}, most=2)
    predictor = accelerate(demo_stock, "paper")
    with torch.inference_mode(), observe(predictor, note, "memory.*.cross"):
        state = predictor.init_state(clip_frames)
        predictor.add_new_mask(state, 0, 1, clip_mask)
        list(predictor.propagate_in_video(state, max_frame_num_to_track=3))
    for site, tokens in kept.items():  # the predictor samples its queries
        best, typical = np.sort(mass[site])[-len(tokens) :].mean(), mass[site].mean()
        assert mass[site][list(tokens)].mean() >= 0.9 * best > typical
    assert len(kept) == 4


def test_memory_is_followed_over_ages(made: Recording) -> None:
    clip, settings = made.clip("ellipse"), made.header.settings
    row = clip.row(7, 1)
    assert clip.memory_frame[row].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert np.allclose(clip.slot_share[row].sum(-1), 1, atol=1e-5)
    newest = clip.recall[row, :, 6].astype(float)
    assert np.allclose(newest, clip.oracle_recall[row, :, 6].astype(float))
    assert np.allclose(clip.similarity[row, :, 6, [0, 2, 3]].astype(float), 1, atol=2e-3)
    oldest = clip.recall[row, :, 1].astype(float)
    assert (oldest <= clip.oracle_recall[row, :, 1].astype(float) + 2e-3).all()
    assert (np.diff(oldest, axis=-1) >= -2e-3).all() and np.allclose(oldest[:, -1], 1, atol=2e-3)
    assert not np.allclose(oldest, newest, atol=1e-3)
    assert settings.keep_shares[7] == 0.05
    assert np.isnan(clip.recall[clip.row(2, 1), :, 1:5]).all()


def test_statistics_and_maps_are_there(made: Recording) -> None:
    clip, settings = made.clip("ellipse"), made.header.settings
    assert np.allclose(clip.encoder_mass.astype(float).mean((2, 3)), 1, atol=0.01)
    entropy = clip.encoder_statistics[..., settings.statistics.index("entropy")]
    assert (np.nanmax(entropy) <= 1 + 1e-4) and np.nanmin(entropy) > 0
    lift = clip.object_statistics[..., settings.statistics.index("lift")]
    decoder = settings.object_sites.index("decoder.final.token_to_image")
    assert np.isfinite(lift[:, decoder]).all()
    assert clip.thumbnail.std() > 0


def test_raw_rows_are_the_attention(made: Recording, demo_calls: Any) -> None:
    clip, settings = made.clip("ellipse"), made.header.settings
    site = "encoder.stage3.block5.global"
    call = next(c for c in demo_calls("dense") if c.site == site)
    p = (call.q[0].float() @ call.k[0].float().mT * call.q.shape[-1] ** -0.5).softmax(-1).mean(0)
    expected = p[list(settings.row_queries)].view(-1, 16, 16).numpy()
    stored = clip.attention_rows(site, 3)
    assert np.abs(stored - expected).max() < 0.01 * expected.max()
    assert np.abs(stored - clip.attention_rows(site, 4)).max() > 0.01 * expected.max()
    memory = clip.attention_rows("memory.layer1.cross", clip.row(7, 1))
    assert memory.shape == (256, 7, 16, 16)
    shares = memory.sum((2, 3)).mean(0)
    assert np.allclose(shares, clip.slot_share[clip.row(7, 1), 1, :7], atol=0.01)


def test_a_second_start_does_nothing_again(
    tmp_path: Path, small_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    out, few = tmp_path / "r.recording", clip_frames[:2]
    record(small_stock, few, {1: clip_mask}, out=out, name="a", statistics="memory.*")
    stamp = (out / "a.safetensors").stat().st_mtime_ns
    record(small_stock, few, {1: clip_mask}, out=out, name="a", statistics="memory.*")
    assert (out / "a.safetensors").stat().st_mtime_ns == stamp
    record(small_stock, few, {1: clip_mask}, out=out, name="b", statistics="memory.*")
    assert load_recording(out).names == ["a", "b"]
    with pytest.raises(InputError, match="'a' is in .* with another prompt"):
        record(small_stock, few, {1: ~clip_mask}, out=out, name="a", statistics="memory.*")
    with pytest.raises(InputError, match="another settings"):
        record(small_stock, few, {1: clip_mask}, out=out, name="c", statistics="decoder.*")
    assert sorted(p.name for p in out.iterdir()) == ["a.safetensors", "b.safetensors", HEADER]


def test_recordings_merge(
    tmp_path: Path, small_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    for name in ("a", "b"):
        record(
            small_stock, clip_frames[:2], {1: clip_mask}, out=tmp_path / name, name=name,
            statistics="decoder.final.*",
        )  # fmt: skip
    merged = merge_recordings([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert load_recording(merged.path).names == ["a", "b"]
    assert np.array_equal(merged.clip("a").score, load_recording(tmp_path / "a").clip("a").score)
    with pytest.raises(InputError, match="clips a are in several"):
        merge_recordings([tmp_path / "a", merged.path], tmp_path / "twice")


def test_prompts_in_the_middle_are_tracked_both_ways(
    tmp_path: Path, small_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    def give(predictor: Any, state: Any) -> None:
        predictor.add_new_points_or_box(state, 3, 1, points=[[51.0, 48.0]], labels=[1])

    recording = record(
        small_stock, clip_frames[:6], give, out=tmp_path / "r", statistics="decoder.final.*"
    )
    clip = recording.clip("clip")
    assert clip.frame.tolist() == [3, 4, 5, 2, 1, 0]
    assert clip.reverse.tolist() == [False] * 3 + [True] * 3
    last = clip.row(0, 1)
    assert clip.memory_frame[last].tolist() == [3, -1, 5, 4, -1, 2, 1]
    # frames 4 and 5 were tracked forward: going back, no tokens of theirs were chosen when they were newest
    for found in (clip.recall, clip.oracle_recall, clip.similarity):
        assert np.isnan(found[last][:, 2:4]).all() and np.isfinite(found[last][:, [0, 5, 6]]).all()
    assert (clip.slot_share[last][:, [0, 2, 3, 5, 6]] > 0).all()
    assert np.isfinite(clip.recall[clip.row(5, 1)][:, 6]).all()


def test_the_prompted_frames_that_memory_held_are_recorded(
    tmp_path: Path, small_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    """Those that are still ahead or behind the last frame too; those given later from then on."""
    moved = np.roll(clip_mask, 8, 1)

    def at_once(predictor: Any, state: Any) -> None:
        predictor.add_new_mask(state, 0, 1, clip_mask)
        predictor.add_new_mask(state, 6, 1, moved)

    later = [Prompt(0, 1, mask=clip_mask), Prompt(2, 1, mask=moved)]
    for name, prompts, expected in (
        ("at once", at_once, {1: [0, 6], 3: [0, 6]}),
        ("later", later, {1: [0], 3: [0, 2]}),
    ):
        clip = record(
            small_stock, clip_frames, prompts, out=tmp_path / name, statistics="decoder.final.*", max_frames=4
        ).clip("clip")  # fmt: skip
        assert clip.frame.tolist() == [0, 1, 2, 3]
        for frame, held in expected.items():
            found = clip.prompt_frames[clip.row(frame, 1)]
            assert found[found >= 0].tolist() == held


def test_ages_are_frames_with_fewer_memory_frames_and_a_stride(
    tmp_path: Path, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    frames = np.concatenate([clip_frames, clip_frames[::-1]])
    for stride, expected in ((1, [13, 3, 2, 1]), (3, [13, 7, 4, 1])):
        predictor = build_predictor("demo", image_size=128, device="cpu")
        predictor.num_maskmem, predictor.memory_temporal_stride_for_eval = 4, stride
        predictor.maskmem_tpos_enc = torch.nn.Parameter(predictor.maskmem_tpos_enc[:4].detach())
        recording = record(
            predictor, frames[:14], {1: clip_mask}, out=tmp_path / str(stride), statistics="decoder.final.*",
            rows="memory.layer2.cross",
        )  # fmt: skip
        clip = recording.clip("clip")
        assert clip.ages()[clip.row(13, 1)].tolist() == [*expected, -1, -1, -1]
        curve = readings.recall_curves(recording, 0.05)["layer 2"]
        assert list(curve.ages) == [0, 1, 2] if stride == 1 else curve.ages[-1] == 6
        mass = readings.key_mass(recording, "memory.layer2.cross")
        assert mass.shape[1] == 4 * 64 and mass.sum(1) == pytest.approx(1, abs=0.3)


def test_prompted_frames_ahead_are_remembered_with_their_masks(
    tmp_path: Path, demo_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    """Lift of memory attention between two prompts, against both of their masks."""
    site, seen = "memory.layer2.cross", {}

    def give(predictor: Any, state: Any) -> None:
        predictor.add_new_mask(state, 0, 1, clip_mask)
        predictor.add_new_mask(state, 3, 1, np.roll(clip_mask, 40, 1))

    def keep(call: AttentionCall) -> None:
        p = torch.softmax(call.q @ call.k.mT * call.q.shape[-1] ** -0.5, -1)
        seen[call.moment.frame] = p.mean(2)[0].numpy(), call.moment.layouts[0]

    with observe(demo_stock, keep, site):
        made = record(demo_stock, clip_frames[:5], give, out=tmp_path / "r", statistics=site)
    clip = made.clip("clip")
    covered = [clip.masks()[clip.row(t, 1)].reshape(16, 4, 16, 4).mean((1, 3)) for t in range(5)]
    for t, (mass, layout) in seen.items():
        frames = [entry.frame for entry in layout.frames]
        assert frames[:2] == [0, 3]

        def lift(of: list[int], mass: np.ndarray = mass) -> float:
            on = np.concatenate([covered[f].ravel() for f in of])
            mass = mass[0, : len(on)]
            return float((mass * on).sum() / mass.sum() / on.mean())

        found = clip.object_statistics[clip.row(t, 1), 0, 0, STATISTICS.index("lift")]
        assert found == pytest.approx(lift(frames), rel=1e-3)
        assert found != pytest.approx(lift([0, 0, *frames[2:]]), rel=0.02)
    assert sorted(seen) == [1, 2, 4]


@pytest.mark.parametrize("most", [6, 20])
def test_frames_are_recorded_up_to_the_limit_in_both_directions(
    small_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray, tmp_path: Path, most: int
) -> None:
    def prompts(predictor: Any, state: dict[str, Any]) -> None:
        predictor.add_new_mask(state, 5, 1, clip_mask)

    options = {"out": tmp_path / "x.recording", "statistics": "decoder.final.*", "max_frames": most}
    recording = record(small_stock, clip_frames, prompts, **options)
    frames = [5, 6, 7, 4, 3, 2, 1, 0][:most]
    assert recording.clip("clip").frame.tolist() == frames
    again = record(small_stock, clip_frames, prompts, **options)
    assert [info.frames for info in again.header.clips] == [len(frames)]
    with pytest.raises(InputError, match="another prompt or length"):
        record(small_stock, clip_frames, prompts, **{**options, "max_frames": 4})
    other = clip_frames.copy()
    other[frames[-1]] = 0
    with pytest.raises(InputError, match="with other frames"):
        record(small_stock, other, prompts, **options)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("shard", "its hash differs"),
        ("absent", "damaged"),
        ("header", "no JSON"),
        ("schema", "schema is 'efficient-sam2/recording/9'"),
        ("old", "schema is 'efficient-sam2/recording/2'.*record it again"),
        ("key", "colour is 'red'"),
        ("folder", "is no recording"),
        ("clip", "'nothing' was asked for"),
    ],
)
def test_what_is_damaged_is_refused(
    made: Recording, tmp_path: Path, damage: str, message: str
) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(made.path, folder)
    header, shard = folder / HEADER, folder / "ellipse.safetensors"
    content = json.loads(header.read_text())
    if damage == "shard":
        shard.write_bytes(shard.read_bytes()[:-8] + b"damaged!")
    elif damage == "absent":
        shard.unlink()
    elif damage == "header":
        header.write_text("{")
    elif damage == "folder":
        header.unlink()
    elif damage in ("schema", "old", "key"):
        content |= {
            "schema": {"schema": "efficient-sam2/recording/9"},
            "old": {"schema": "efficient-sam2/recording/2"},
            "key": {"colour": "red"},
        }[damage]
        header.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_recording(folder).clip("nothing" if damage == "clip" else "ellipse")


@pytest.mark.parametrize("name", ["joint_recall", "colour"])
def test_arrays_that_nobody_reads_any_more_are_passed_over(
    made: Recording, tmp_path: Path, name: str
) -> None:
    """Older recordings hold some; others are still refused."""
    arrays = load_file(made.path / "ellipse.safetensors")
    (info,) = made.header.clips
    digest = write_shard(tmp_path / "r" / info.shard, arrays | {name: arrays["recall"]})
    older = name_clips(
        tmp_path / "r",
        made.header.model_copy(update={"clips": ()}),
        [info.model_copy(update={"sha256": digest})],
    )
    if name == "colour":
        with pytest.raises(InputError, match=r"unknown arrays \['colour'\]"):
            older.clip("ellipse")
    else:
        assert np.array_equal(older.clip("ellipse").score, made.clip("ellipse").score)


def test_rows_of_each_head_can_be_kept(
    tmp_path: Path, demo_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    encoder, memory = "encoder.stage3.block9.global", "memory.layer1.cross"
    by_head, of_mean = (
        record(
            demo_stock, clip_frames[:2], {1: clip_mask}, out=tmp_path / str(heads), name="a", row_heads=heads,
            statistics="decoder.final.*", rows=[encoder, memory, "decoder.final.*"], row_side=4,
        )["a"]
        for heads in (True, False)
    )  # fmt: skip
    heads = by_head.row_heads(encoder)
    assert heads > 1 and by_head.row_heads(memory) == 1 and of_mean.row_heads(encoder) == 0
    for site in by_head.rows:
        found, expected = (clip.attention_rows(site, 1) for clip in (by_head, of_mean))
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 0.01 * expected.max()
    each = [by_head.attention_rows(encoder, 1, head) for head in range(heads)]
    assert np.allclose(np.mean(each, 0), by_head.attention_rows(encoder, 1))
    assert np.abs(each[0] - each[1]).max() > 0.01 * each[0].max()
    with pytest.raises(
        InputError, match=f"encoder.* asked for; the clip holds those of .*{encoder}"
    ):
        by_head.attention_rows("encoder.stage3.block5.global", 1)
    for clip, words in ((by_head, f"heads 0 to {heads - 1}"), (of_mean, "the mean over heads")):
        with pytest.raises(InputError, match=f"head {heads} of {encoder} .* {words}"):
            clip.attention_rows(encoder, 1, heads)
