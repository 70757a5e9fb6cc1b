"""``efficient-sam2 segment``: a video and a prompt in; masks, an overlay and a report out.

Masks are written as they come. Every 30 seconds and when it is interrupted, the run also saves what
tracking needs to go on (memory, pointers, decisions: some 20 MiB an object at 1024 pixels), so that the
same command continues with the next frame and ends with the masks of a run that wasn't interrupted: bit
for bit with the profile ``dense``, up to rounding with the others, because they choose the fastest of
several equivalent formulations anew in each process. Without a saved state the run starts again. Only
whole files that carry the hash of the same settings are trusted.
"""

from __future__ import annotations

import json
import os
import pickle
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from probes.errors import InputError
from probes.models import configuration_of, fingerprint
from probes.video import VideoSource, open_video
from sparsity.acceleration.build import shared_predictor
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.masks import draw_over, merge_objects, read_mask, write_mask, written_by
from sparsity.options import ModelChoice as ModelChoice
from sparsity.overlay import write_video
from sparsity.profile import Profile
from sparsity.profiles import load_profile
from sparsity.prompt import CheckedPrompt
from sparsity.prompt import Prompt as Prompt
from sparsity.runs import RunFolder, listing, stop_after_the_frame, write_text

SCHEMA = "efficient-sam2/segment/1"

SECONDS_BETWEEN_STATES = 30.0
"""How much work an abrupt end can cost, at most."""

SHOWN = 6
"""Rescued frames that the summary names."""

_UNREADABLE = (
    OSError, RuntimeError, EOFError, pickle.UnpicklingError, AttributeError, ImportError,
)  # fmt: skip
"""What loading a saved state raises where there is none, or one that is cut short or of other sources."""

_NOT_SAVED = ("images", "cached_features", "device", "storage_device")


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    out: Path
    frames: int
    objects: list[int]
    milliseconds: float
    windows_share: float
    keys_share: float
    rescued: dict[str, str]

    def summary(self) -> str:
        """Return it in a few lines."""
        lines = [f"frame {frame} ({rule})" for frame, rule in list(self.rescued.items())[:SHOWN]]
        more = len(self.rescued) - len(lines)
        lines += [f"{more} more in the report"] if more else []
        return "\n".join(
            (
                f"masks    {self.out / 'masks'}  ({self.frames} frames, {len(self.objects)} objects)",
                f"overlay  {self.out / 'overlay.mp4'}",
                f"report   {self.out / 'report.json'}",
                f"{self.milliseconds:.0f} ms a frame (median); windows computed "
                f"{self.windows_share:.0%}, memory keys read {self.keys_share:.0%}",
                f"guard    encoded densely: {', '.join(lines) or 'no frame'}",
            )
        )


def run_segment(
    video: str | Path,
    prompt: Prompt | CheckedPrompt,
    choice: ModelChoice,
    out: Path,
    *,
    profile: Profile | str | Path = "paper",
    max_frames: int | None = None,
    force: bool = False,
) -> Outcome:
    """Track the prompted objects through a video, forward and then back from the prompt.

    Parameters
    ----------
    video
        Folder of frames or video file.
    prompt
        What to track.
    choice
        The model.
    out
        Folder for ``masks/NAME.png``, ``overlay.mp4`` and ``report.json``; new, empty, or of the same run.
    profile
        A profile, built-in name or file.
    max_frames
        Frames to track at most, the prompted one included.
    force
        Replace the results of another run, and use a profile that was made for another model.

    Raises
    ------
    InputError
        Something given can't be used; nothing has been written then.
    KeyboardInterrupt
        The run was interrupted; its state is saved.
    """
    source = open_video(video)
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max-frames {max_frames} given; expected 1 or more; leave it out for all")
    checked = prompt.check(source) if isinstance(prompt, Prompt) else prompt
    applied = load_profile(profile)
    folder = RunFolder(out)
    folder.look(force)
    predictor = shared_predictor(choice)
    with predictor.use(applied, force=force):
        settings = _settings(video, source, checked, predictor, applied, choice, max_frames)
        run = _Run(source, checked, predictor, choice, folder, settings, max_frames)
        if folder.enter(settings, force) and run.is_complete():
            if not force:
                return run.outcome()
            folder.clear()
        run.track()
        run.finish()
    return run.outcome()


def _settings(
    video: str | Path,
    source: VideoSource,
    prompt: CheckedPrompt,
    predictor: EfficientSAM2VideoPredictor,
    profile: Profile,
    choice: ModelChoice,
    max_frames: int | None,
) -> dict[str, Any]:
    """Return everything that decides what the masks will be."""
    return {
        "video": listing(Path(video)),
        "frames": source.num_frames,
        "size": [source.height, source.width],
        "prompt": prompt.digest(),
        "model": fingerprint(predictor),
        "configuration": configuration_of(predictor),
        "image_size": predictor.image_size,
        "dtype": choice.number_format(predictor.device.type),
        "device": predictor.device.type,
        "profile": profile.model_dump(mode="json", by_alias=True),
        "max_frames": max_frames,
        "versions": {name: version(name) for name in ("efficient-sam2", "sam2", "torch")},
    }


class _Run:
    """One run over one video."""

    def __init__(
        self,
        source: VideoSource,
        prompt: CheckedPrompt,
        predictor: EfficientSAM2VideoPredictor,
        choice: ModelChoice,
        folder: RunFolder,
        settings: dict[str, Any],
        max_frames: int | None,
    ) -> None:
        self.source, self.prompt, self.predictor, self.choice = source, prompt, predictor, choice
        self.folder, self.settings = folder, settings
        total = source.num_frames
        assert total is not None, "folders and files know their length"
        ahead = list(range(prompt.frame, total))[:max_frames]
        back = list(range(prompt.frame - 1, -1, -1))
        if max_frames is not None:
            back = back[: max_frames - len(ahead)]
        self.order = [(frame, False) for frame in ahead] + [(frame, True) for frame in back]
        self.seconds: list[float] = []
        self.state: dict[str, Any] = {}

    def mask_file(self, frame: int) -> Path:
        """Return the file of a frame's mask."""
        name = self.source.names[frame] if self.source.names else f"{frame:05d}"
        return self.folder.masks / f"{name}.png"

    def is_complete(self) -> bool:
        """Tell whether everything has been written by a run with the same settings."""
        if not (self.folder.report.is_file() and self.folder.overlay.is_file()):
            return False
        return all(written_by(self.mask_file(f), self.folder.hash) for f, _ in self.order)

    def track(self) -> None:
        """Write a mask for every frame, going on from a saved state where there is one."""
        goes_back = any(reverse for _, reverse in self.order)
        self.state = self.predictor.init_state(
            self.source, history="full" if goes_back else "bounded"
        )
        done = self._restore()
        if not done:
            self.prompt.give_to(self.predictor, self.state)
        saved = time.monotonic()
        with stop_after_the_frame() as stop, self.choice.autocast(self.predictor.device.type):
            bar = tqdm(
                total=len(self.order), initial=done, unit="frame", desc="segment", disable=None
            )
            with bar:
                started = time.perf_counter()
                for frame, logits in self._frames(done):
                    ids = merge_objects(logits[:, 0].float().cpu().numpy(), self.state["obj_ids"])
                    write_mask(self.mask_file(frame), ids, self.folder.hash)
                    self.seconds.append(time.perf_counter() - started)
                    bar.update()
                    # the last frame is always worth finishing
                    if len(self.seconds) < len(self.order) - 1:
                        if stop or time.monotonic() - saved > SECONDS_BETWEEN_STATES:
                            self._save()
                            saved = time.monotonic()
                        if stop:
                            raise KeyboardInterrupt
                    started = time.perf_counter()

    def _frames(self, done: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the remaining frames with their logits ``[objects, 1, H, W]``."""
        for reverse in (False, True):
            left = [frame for frame, back in self.order[done:] if back == reverse]
            if not left:
                continue
            # sam2 tracks nothing back from frame 0, so going back begins on the prompt where it can
            start = self.prompt.frame if left[0] == self.prompt.frame - 1 else left[0]
            tracked = self.predictor.propagate_in_video(
                self.state, start, abs(left[-1] - start), reverse
            )
            for frame, _, logits in tracked:
                if frame in left:
                    yield frame, logits

    def _save(self) -> None:
        part = self.folder.state.with_suffix(".part")
        kept = {key: value for key, value in self.state.items() if key not in _NOT_SAVED}
        torch.save({"hash": self.folder.hash, "seconds": self.seconds, "state": kept}, part)
        os.replace(part, self.folder.state)

    def _restore(self) -> int:
        """Take up a saved state that belongs to these settings; return the number of frames done."""
        try:
            # pickled objects, so only ever a file that this command wrote into the user's own folder
            saved = torch.load(
                self.folder.state, map_location=self.predictor.device, weights_only=False
            )
        except _UNREADABLE:
            return 0
        done = len(saved["seconds"])
        whole = all(written_by(self.mask_file(f), self.folder.hash) for f, _ in self.order[:done])
        if saved["hash"] != self.folder.hash or not whole:
            return 0
        self.state.update(saved["state"])
        self.seconds = list(saved["seconds"])
        return done

    def finish(self) -> None:
        """Draw the overlay and write the report."""
        frames = sorted(frame for frame, _ in self.order)
        drawn = (draw_over(self.source.frame(f), read_mask(self.mask_file(f))) for f in frames)
        write_video(self.folder.overlay, drawn, self.source.fps)
        report = {
            "schema": SCHEMA,
            "settings_sha256": self.folder.hash,
            "settings": self.settings,
            "threads": torch.get_num_threads(),
            "objects": [int(i) for i in self.state["obj_ids"]],
            "milliseconds": [round(1000 * s, 2) for s in self.seconds],
            "report": json.loads(self.predictor.report(self.state).to_json()),
        }
        write_text(self.folder.report, json.dumps(report, indent=1))
        self.folder.state.unlink(missing_ok=True)

    def outcome(self) -> Outcome:
        """Read back what the report says."""
        report = json.loads(self.folder.report.read_text(encoding="utf-8"))
        summary = report["report"]["summary"]
        return Outcome(
            self.folder.path,
            len(self.order),
            report["objects"],
            statistics.median(report["milliseconds"]),
            summary["windows_share"],
            summary["keys_share"],
            summary["rescued"],
        )
