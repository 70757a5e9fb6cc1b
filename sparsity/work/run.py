"""One run of ``segment`` over one video: from its first frame, or a saved state, to its report, frame by frame."""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Literal

import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from probes.errors import InputError, some_of, tell_left_out
from probes.files import whole, write_text
from probes.frames import Pixels
from probes.tracking import track_back, track_forward
from probes.video import EndOfVideo, notes_of
from sparsity.acceleration.model.choice import CHOSEN
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.acceleration.report import ObjectReport, note_failures
from sparsity.clips.drawn import Ids
from sparsity.clips.masks import merge_objects
from sparsity.clips.sources import Clip
from sparsity.techniques import KEY
from sparsity.techniques.failure import FailureModel
from sparsity.work.formats import Format, FrameMasks
from sparsity.work.overlay import Overlay
from sparsity.work.run_folder import RunFolder

SCHEMA = "efficient-sam2/segment/2"

SECONDS_BETWEEN_STATES = 30.0
"""How much work an abrupt end can cost, at most."""

WAITING = 4
"""Jobs that wait for a thread at most; each may hold a frame."""

_UNREADABLE = (
    OSError, RuntimeError, EOFError, pickle.UnpicklingError, AttributeError, ImportError,
)  # fmt: skip
"""What loading a saved state raises where there is none, or one that is cut short or of other sources."""

_NOT_SAVED = ("images", "cached_features", "device", "storage_device")


class Run:
    """One run over one video, a `sparsity.acceleration.videos.Video`.

    Parameters
    ----------
    settings
        What decides the results.
    failure
        Says how likely masks are wrong.

    Attributes
    ----------
    state, frames, upcoming
        As there; `frames` is set by who runs it.
    finished
        Whether the report is written; a run that was interrupted has saved its state.
    """

    def __init__(
        self,
        clip: Clip,
        predictor: EfficientSAM2VideoPredictor,
        folder: RunFolder,
        form: Format,
        settings: dict[str, Any],
        failure: FailureModel | None,
    ) -> None:
        self.failure = failure
        self.clip, self.source, self.predictor = clip, clip.video, predictor
        self.folder, self.form, self.settings = folder, form, settings
        self.overlay = Overlay(folder.overlay, clip.video.fps) if settings["overlay"] else None
        self.notes = list(notes_of(clip.video))
        self.first, most = clip.prompts[0].frame, settings["max_frames"]
        self.stream = clip.video.num_frames is None
        self.ahead, self.back = self._order(clip, most)
        last = self.ahead[-1] if self.ahead else sys.maxsize
        self.prompts = [prompt for prompt in clip.prompts if prompt.frame <= last]
        late = {str(p.object) for p in clip.prompts} - {str(p.object) for p in self.prompts}
        if late:
            self._leave_out(
                f"objects {some_of(sorted(late))} come after the last frame that is tracked"
            )
        self.seconds: list[float] = []
        self.parts: dict[str, float] = {}
        self.state: dict[str, Any] = {}
        self.frames: Generator[int]
        self.upcoming: int | None = None
        self.finished = False
        self._began = self._behind_model = 0.0

    def _order(self, clip: Clip, most: int | None) -> tuple[range, range]:
        """Return the frames forward and back; of a stream, whose end isn't known, those that are wanted."""
        if self.stream:
            return range(self.first, sys.maxsize if most is None else self.first + most), range(0)
        ahead = range(self.first, clip.num_frames)[:most]
        left = self.first if most is None else min(self.first, most - len(ahead))
        return ahead, range(self.first - 1, self.first - 1 - left, -1)

    def _first_of(self, count: int | None) -> list[int]:
        """Return the first frames in order, or all."""
        return list(islice(chain(self.ahead, self.back), count))

    def _leave_out(self, what: str) -> None:
        """Say on stderr and in the report that something is left out."""
        self.notes.append(f"{self.folder.path}: {what}, left out")
        tell_left_out(self.notes[-1:])

    def name(self, frame: int) -> str:
        """Return the name of a frame's files."""
        return self.source.names[frame] if self.source.names else f"{frame:05d}"

    def objects_on(self, frame: int) -> list[int]:
        """Return the objects that are tracked on a frame: from their prompt to their removal, or back from the first one."""
        there: dict[int, None] = {}
        for prompt in self.prompts:
            if prompt.frame > max(frame, self.first):
                break
            if prompt.remove:
                there.pop(prompt.object, None)
            else:
                there[prompt.object] = None
        return sorted(there)

    def _written(self, frames: Sequence[int]) -> bool:
        """Whether these frames were written by a run with the same settings."""
        return all(
            self.form.has(self.name(frame), self.objects_on(frame), self.folder.hash)
            for frame in frames
        )

    def is_complete(self) -> bool:
        """Tell whether everything has been written by a run with the same settings."""
        if self.stream or not self.folder.report.is_file():
            return False
        if self.form.result != self.form.masks:
            return self.form.result.is_file()
        return self._written(self._first_of(None))

    def steps(self, stop: Sequence[int]) -> Generator[int]:
        """Write results frame by frame, going on from a saved state where there is one, and at the end the report.

        Parameters
        ----------
        stop
            Not empty from when the run is to be interrupted.

        Yields
        ------
        int
            Each frame, when its results are on their way; `took` is to be called then.
        """
        history: Literal["full", "bounded"] = "full" if self.back else "bounded"
        self._tell_memory(history)
        self.form.masks.mkdir(parents=True, exist_ok=True)
        self.state = self.predictor.init_state(self.source, history=history, corrections="keep")
        done = self._restore()
        if self.overlay is not None:
            self.overlay.keep(self._first_of(done))
        count = None if self.stream else len(self.ahead) + len(self.back)
        bar = tqdm(
            total=count, initial=done, unit="frame", desc=self.clip.name, disable=None, leave=None
        )
        saved = self._began = time.perf_counter()
        with bar, Behind() as files, Behind() as film:
            for frame, reverse, ids, logits in self._frames(done):
                tracked = time.perf_counter()
                found = self._found(frame, ids, logits)
                files.give(self.form.write, found, self.folder.hash)
                if self.overlay is not None:
                    pixels = self.state["images"].pixels(frame)
                    film.give(self.overlay.add, frame, pixels, found.ids, reverse)
                self._behind_model = time.perf_counter() - tracked
                bar.update()
                self.upcoming = None if stop else self._upcoming()
                yield frame
                if self.stream:
                    if stop:
                        break
                    continue
                # the last frame is always worth finishing
                if len(self.seconds) < len(self.ahead) + len(self.back) - 1:
                    if stop or time.perf_counter() - saved > SECONDS_BETWEEN_STATES:
                        if stop and self.overlay is not None:
                            film.give(self.overlay.close)
                        files.wait()
                        film.wait()
                        self._save()
                        saved = self._began = time.perf_counter()
                    if stop:
                        return
        self._spend("frames", self.state["images"].seconds)
        self._spend("masks", files.seconds)
        self._spend("overlay", film.seconds)
        self._finish()
        self.finished = True

    def took(self, among: int) -> None:
        """Note the time of the frame that was just tracked: since the one before, shared with the videos beside it."""
        now = time.perf_counter()
        self.seconds.append((now - self._began) / among)
        self._spend("model", max(0.0, self.seconds[-1] - self._behind_model))
        self._began = now

    def _upcoming(self) -> int | None:
        """Return the frame that is tracked next, where it may be encoded beforehand.

        Without the rewrites results are stock's, bit for bit, which those of a batch aren't.
        """
        done = len(self.seconds) + 1
        if done >= len(self.ahead) or not self.settings["profile"]["exact"]:
            return None
        following = self.ahead[done]
        return None if any(p.frame == following for p in self.prompts) else following

    def _spend(self, what: str, seconds: float) -> None:
        self.parts[what] = self.parts.get(what, 0.0) + seconds

    def _tell_memory(self, history: str) -> None:
        """Say how much memory many objects take, before they do."""
        objects = len({prompt.object for prompt in self.prompts})
        frames = len(self.ahead) + len(self.back) if history == "full" else sys.maxsize
        needed = memory_of(self.predictor, objects, frames, (self.source.height, self.source.width))
        device = self.predictor.device
        free = psutil.virtual_memory().available
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
        if objects >= MANY or needed > free:
            print(
                f"{objects} objects take about {needed / 2**30:.1f} GiB of memory beside the model; {free / 2**30:.1f} GiB are "
                f"free{'' if needed < free else ', so the run may end early: give fewer objects at once'}",
                file=sys.stderr,
            )  # fmt: skip

    def _frames(self, done: int) -> Iterator[tuple[int, bool, list[int], Tensor | None]]:
        """Yield the remaining frames, in order, with whether they are reached going back, objects and their logits."""
        state, predictor = self.state, self.predictor
        if done < len(self.ahead):
            last = None if self.stream and self.ahead[-1] == sys.maxsize - 1 else self.ahead[-1]
            try:
                for found in track_forward(predictor, state, self.prompts, self.ahead[done], last):
                    yield found[0], False, *found[1:]
            except EndOfVideo:
                pass  # a stream says where it ends when it does
            except (InputError, KeyboardInterrupt) as error:
                if not (self.stream and self.seconds):
                    raise
                if isinstance(error, InputError):  # what came before it broke is kept
                    self._leave_out(f"after frame {self.ahead[len(self.seconds) - 1]}: {error}")
        back = self.back[max(0, done - len(self.ahead)) :]
        if back:
            for found in track_back(predictor, state, self.prompts, self.first, back):
                yield found[0], True, *found[1:]

    def _found(self, frame: int, ids: list[int], logits: Tensor | None) -> FrameMasks:
        """Bring a frame's masks to the host."""
        size = self.source.height, self.source.width
        given = torch.zeros(0, *size) if logits is None else logits[:, 0].float()
        merged: Ids = merge_objects(given, ids, size)
        layers = (given > 0).cpu().numpy() if self.form.layered else ()
        report = self.predictor.report(self.state)
        figures: dict[int, ObjectReport] = {}
        if report.frames and report.frames[-1].frame == frame:
            if self.failure is not None:
                note_failures(report, self.state, self.failure)
            figures = dict(report.frames[-1].objects)
        by_object = dict(zip(ids, layers, strict=True)) if self.form.layered else {}
        return FrameMasks(frame, self.name(frame), merged, by_object, figures)

    def _save(self) -> None:
        kept = {key: value for key, value in self.state.items() if key not in _NOT_SAVED}
        kept[KEY] = replace(kept[KEY], published=None)  # features that lie in the cache, too
        saved = {"hash": self.folder.hash, "seconds": self.seconds, "state": kept}
        with whole(self.folder.state) as part:
            torch.save({**saved, "parts": self.parts, "chosen": dict(CHOSEN)}, part)

    def _restore(self) -> int:
        """Take up a saved state that belongs to these settings; return the number of frames done."""
        try:
            # pickled objects, so only ever a file that this command wrote into the user's own folder
            saved = torch.load(
                self.folder.state, map_location=self.predictor.device, weights_only=False
            )
        except _UNREADABLE:
            return 0
        if not isinstance(saved, dict) or saved.get("hash") != self.folder.hash:
            return 0
        done = len(saved["seconds"])
        if not self._written(self._first_of(done)):
            return 0
        CHOSEN.update({**saved.get("chosen", {}), **CHOSEN})
        self.state.update(saved["state"])
        self.predictor.take_up(self.state)  # the hash holds model, number format and profile
        self.seconds, self.parts = list(saved["seconds"]), dict(saved["parts"])
        return done

    def _finish(self) -> None:
        """Finish the overlay and the results, and write the report."""
        if self.stream:
            self.ahead = self.ahead[: len(self.seconds)]
            lost = [note for note in notes_of(self.source) if note not in self.notes]
            self.notes += lost
            tell_left_out(lost)
        frames = sorted((*self.ahead, *self.back))
        begun = time.perf_counter()
        if self.overlay is not None:
            self.overlay.finish([] if self.stream else frames, self._drawn)
            if self.overlay.failed:
                self._leave_out(f"overlay.mp4 can't be encoded ({self.overlay.failed})")
        self.form.finish(self.name(frame) for frame in frames)
        self._spend("end", time.perf_counter() - begun)
        count = max(1, len(self.seconds))
        spent = {"all": sum(self.seconds) + self.parts["end"], **self.parts}
        report = {
            "schema": SCHEMA,
            "settings_sha256": self.folder.hash,
            "settings": self.settings,
            "threads": torch.get_num_threads(),
            "frames": len(frames),
            "objects": sorted({prompt.object for prompt in self.prompts}),
            "labels": {str(p.object): p.label for p in self.prompts if p.label},
            "left_out": self.notes,
            "milliseconds": [round(1000 * s, 2) for s in self.seconds],
            "milliseconds_a_frame": {k: round(1000 * s / count, 2) for k, s in spent.items()},
            "report": json.loads(self.predictor.report(self.state).to_json()),
        }
        write_text(self.folder.report, json.dumps(report, indent=1))
        self.folder.state.unlink(missing_ok=True)

    def _drawn(self, frame: int) -> tuple[Pixels, Ids]:
        """Return a frame and its objects as they were written."""
        size = self.source.height, self.source.width
        objects = self.objects_on(frame)
        return self.source.frame(frame), self.form.ids(self.name(frame), objects, size)


MANY = 9
"""Objects whose memory is said beforehand."""


def memory_of(
    predictor: EfficientSAM2VideoPredictor, objects: int, frames: int, size: tuple[int, int]
) -> int:
    """Return about how many bytes results and masks of some objects take, beside the model and its work on a frame.

    A result is memory features of 64 channels in two bytes a token, mask logits of 16 a token in four, and a pointer;
    those of so many frames are kept as future frames can read; masks at the video's size are held some four times.
    """
    tokens = predictor.sam_image_embedding_size**2
    reach = max(
        predictor.memory_temporal_stride_for_eval * predictor.num_maskmem,
        predictor.max_obj_ptrs_in_encoder,
    )
    result = tokens * (2 * predictor.mem_dim + 4 * 16) + 4 * predictor.hidden_dim
    held: int = objects * (min(frames, reach + 2) * result + 4 * 4 * size[0] * size[1])
    return held


class Behind:
    """Does jobs behind the model, one after the other, in a thread of its own.

    Attributes
    ----------
    seconds
        That it was at work so far.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._jobs: deque[Future[None]] = deque()
        self.seconds = 0.0

    def give(self, job: Callable[..., None], *given: Any) -> None:
        """Do a job when the earlier ones are done; wait where many are waiting, and raise what an earlier one raised."""
        while self._jobs and (len(self._jobs) >= WAITING or self._jobs[0].done()):
            self._jobs.popleft().result()
        self._jobs.append(self._pool.submit(self._do, job, *given))

    def _do(self, job: Callable[..., None], *given: Any) -> None:
        begun = time.perf_counter()
        try:
            job(*given)
        finally:
            self.seconds += time.perf_counter() - begun

    def wait(self) -> None:
        """Wait until all is done."""
        while self._jobs:
            self._jobs.popleft().result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=kind is not None)
