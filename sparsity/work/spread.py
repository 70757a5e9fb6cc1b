"""Many clips: in this process, on local worker processes, or on a Dask cluster, with the same numbers.

A clip is one task. Its result is a JSON file of its own, written by the process that was started by the
user, so nothing needs a shared file system but the clips, and a second start goes on with the clips that
have no file yet. What a dying worker held, Dask gives to another one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

from tqdm import tqdm

from probes.errors import InputError
from sparsity.work.store import held, keep

if TYPE_CHECKING:
    from distributed import Client


LONGEST_NAME = 100
"""Letters of a file's name that are left as they are; some file systems hold 143, with the suffixes."""

SECONDS_TO_CONNECT = 10

TO_COME_BACK = "1 day"
"""How long a local worker that died may take to start again: Dask would give it up after 15 seconds, which loading torch
takes on a busy machine, and wait forever for a worker where it was the only one."""

Work = Callable[[str], Any]
"""From a clip's name to its result, which JSON can hold; picklable, the same for the same name."""


@dataclass(frozen=True)
class Spread:
    """Where clips are worked on: in this process unless something else is said.

    Attributes
    ----------
    jobs
        Local worker processes to start; 0 for none.
    scheduler
        Address of a Dask scheduler, such as ``tcp://10.0.0.5:8786``.
    threads
        Of torch in each process. Numbers are equal to the last digit only for equal threads. None leaves
        this process and a cluster's workers as they are, and shares the cores among local workers.
    gpu
        Whether a clip occupies a GPU where there is one: of a cluster's workers those are asked that announce one
        (the resource ``GPU``).
    """

    jobs: int = 0
    scheduler: str | None = None
    threads: int | None = None
    gpu: bool = False

    def __post_init__(self) -> None:
        if self.jobs < 0:
            raise InputError(f"jobs {self.jobs} given; expected 1 or more; leave it out for none")
        if self.jobs and self.scheduler:
            raise InputError(
                f"jobs {self.jobs} and scheduler {self.scheduler} given; expected one of the two; a "
                "cluster brings its own workers"
            )
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads {self.threads} given; expected 1 or more; leave it out")


@dataclass
class Summary:
    """What became of the clips.

    Attributes
    ----------
    results
        By clip, in the order asked for.
    resumed
        Clips whose result was there already.
    retried
        Clips that were begun again because a worker died, and how often.
    failed
        Clips that can't be worked on, and why.
    """

    results: dict[str, Any] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    retried: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Return it in a line for each thing worth knowing."""
        lines = [f"{len(self.results)} clips done"]
        if self.resumed:
            lines[0] += f", {len(self.resumed)} of them before"
        for clip, times in self.retried.items():
            lines.append(f"{clip} was begun again {times} times: its worker died")
        lines += [f"{clip} failed: {why}" for clip, why in self.failed.items()]
        return "\n".join(lines)

    def check(self) -> None:
        """Raise where a clip failed.

        Raises
        ------
        InputError
            With the first failure.
        """
        if self.failed:
            clip, why = next(iter(self.failed.items()))
            raise InputError(
                f"{len(self.failed)} of {len(self.failed) + len(self.results)} clips failed, first {clip} "
                f"({why}); {'the others are' if self.results else 'none is'} done; mend it and run the same "
                "command again"
            )


def map_clips(
    work: Work,
    clips: list[str],
    folder: Path,
    settings: dict[str, Any],
    spread: Spread,
    contents: Mapping[str, str] | None = None,
    together: Callable[[list[str]], Iterator[ClipOutcome]] | None = None,
) -> Summary:
    """Work on every clip once.

    Parameters
    ----------
    work
        Called with a clip's name, in whatever process takes the clip.
    clips
        Names, each once.
    folder
        For one JSON file a clip; made when it is not there, and gone again where none came.
    settings
        Everything that decides the results. One of other settings doesn't count.
    spread
        Where to work.
    contents
        By clip: another text where the clip itself was changed, see `probes.files.listing`.
    together
        Works on clips in this process in place of all that, several at once; yields what becomes of each.

    Returns
    -------
    Summary
        With the results in the order of `clips`, wherever and whenever they were made.

    Raises
    ------
    InputError
        The scheduler doesn't answer. What is wrong with single clips stands in the summary.
    """
    known = contents or {}
    keys = {clip: {**settings, "content": known.get(clip)} for clip in clips}
    summary = Summary()
    found: dict[str, Any] = {clip: held(result_name(folder, clip), keys[clip]) for clip in clips}
    summary.resumed = [clip for clip in clips if found[clip] is not None]
    left = [clip for clip in clips if found[clip] is None]
    with (
        _there(folder),
        tqdm(
            total=len(clips), initial=len(clips) - len(left), unit="clip", disable=None
        ) as progress,
    ):
        if together is None:
            together = partial(outcomes, work, spread=spread, retried=summary.retried)
        for clip, result, why in together(left):
            progress.update()
            if why is not None:
                summary.failed[clip] = why
                continue
            found[clip] = {"clip": clip, "result": result}
            keep(result_name(folder, clip), keys[clip], found[clip])
    summary.results = {clip: entry["result"] for clip, entry in found.items() if entry is not None}
    return summary


@contextmanager
def _there(folder: Path) -> Iterator[None]:
    """Make a folder, and take it away again where nothing came into it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # it holds something, as a rule
            folder.rmdir()


def result_name(folder: Path, clip: str) -> Path:
    """What a clip's result is kept as: under its name, or a hash where that is too long when it is quoted."""
    name = quote(os.fsencode(clip), safe=" ")
    if len(name) > LONGEST_NAME:
        name = hashlib.sha256(name.encode()).hexdigest()
    return folder / f"{name}.json"


ClipOutcome = tuple[str, Any, "str | None"]
"""A clip, and its result or why there is none."""


def outcomes(
    work: Work, clips: list[str], spread: Spread, retried: dict[str, int]
) -> Iterator[ClipOutcome]:
    """Yield what becomes of each clip, as it comes; how often one was begun again goes into `retried`."""
    if not clips:
        return
    if not spread.jobs and not spread.scheduler:
        for clip in clips:
            yield outcome_of(clip, partial(_Task(work, spread.threads), clip))
        return
    try:
        with _client(spread) as client:
            yield from _on_cluster(client, work, clips, spread, retried)
    except OSError as error:
        raise InputError(
            f"the scheduler of the workers went away ({type(error).__name__}); expected one that lasts until all clips are "
            "done; start it again, the same command goes on with what is not finished"
        ) from None


def _on_cluster(
    client: Client, work: Work, clips: list[str], spread: Spread, retried: dict[str, int]
) -> Iterator[ClipOutcome]:
    from distributed import as_completed

    topic = f"efficient-sam2-{uuid4().hex}"
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    if not workers:
        print("the scheduler has no workers; waiting for one", file=sys.stderr, flush=True)
    announced = any("GPU" in worker.get("resources", {}) for worker in workers)
    resources = {"GPU": 1} if spread.gpu and announced else None
    task = _Task(_placed(work), _threads(spread), topic, bool(spread.jobs))
    keys = [f"{topic}-{clip}" for clip in clips]
    futures = client.map(task, clips, key=keys, resources=resources, pure=False)
    clip_of = dict(zip((future.key for future in futures), clips, strict=True))
    again: set[str] = set()
    try:
        for future in (done := as_completed(futures)):
            clip = clip_of[future.key]
            if clip not in again and _only_waited(client, topic, clip, future):
                again.add(clip)
                key = f"again-{future.key}"
                futures.append(client.submit(task, clip, key=key, resources=resources, pure=False))
                clip_of[key] = clip
                done.add(futures[-1])
                continue
            yield outcome_of(clip, future.result)
            future.release()
    finally:
        client.cancel(futures, force=True)
        begun = Counter(clip for _, clip in client.get_events(topic))
        retried.update({clip: begun[clip] - 1 for clip in clips if begun[clip] > 1})


def _placed(value: Any) -> Any:
    """The same with absolute paths, in dataclasses too: a user's workers were started in other folders."""
    if isinstance(value, Path):
        return value.absolute()
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _placed(getattr(value, f.name)) for f in fields(value)})
    return value


def _only_waited(client: Client, topic: str, clip: str, future: Any) -> bool:
    """Whether Dask gave a clip up that waited where another one killed workers: it blames all that a worker holds."""
    from distributed import KilledWorker

    error = future.exception() if future.status == "error" else None
    if not isinstance(error, KilledWorker):
        return False
    begun = sum(each == clip for _, each in client.get_events(topic))
    return begun <= error.allowed_failures


def outcome_of(clip: str, result: Callable[[], Any]) -> ClipOutcome:
    """Return a clip's result, or why there is none. One clip that can't be read must not cost the others."""
    try:
        return clip, result(), None
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        return (
            clip,
            None,
            said if isinstance(error, InputError) else f"{type(error).__name__}: {said}",
        )


_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class _Task:
    """What a worker does with a clip: one at a time in each process, and on a GPU of its own."""

    work: Work
    threads: int | None = None
    topic: str | None = None
    local: bool = False

    def __call__(self, clip: str) -> Any:
        import torch

        with _one_at_a_time:
            if self.topic is not None:
                from distributed import get_worker

                worker = get_worker()
                worker.log_event(self.topic, clip)
                if self.local:
                    # tqdm's own is a semaphore between processes, left behind where a worker is stopped
                    tqdm.set_lock(threading.RLock())
                if self.local and torch.cuda.is_available():
                    torch.cuda.set_device(int(worker.name) % torch.cuda.device_count())
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            return self.work(clip)


def _threads(spread: Spread) -> int | None:
    if spread.threads is not None or not spread.jobs:
        return spread.threads
    import torch

    return max(1, torch.get_num_threads() // spread.jobs)


@contextmanager
def _client(spread: Spread) -> Iterator[Client]:
    """Connect to the user's cluster, or to one of this machine for as long as the context lasts."""
    import dask
    from distributed import Client, LocalCluster

    if spread.scheduler is None:
        # dashboard on a free port, for another command may have the usual one; no ceiling of memory: a worker is
        # as large as its model; why a clip failed is told by who asked for it, so its traceback isn't
        with dask.config.set({"distributed.deploy.lost-worker-timeout": TO_COME_BACK}):
            cluster = LocalCluster(
                n_workers=spread.jobs,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",
                memory_limit=0,
                silence_logs="CRITICAL",
            )
            with closing(cluster), Client(cluster) as client:
                yield client
        return
    try:
        client = Client(spread.scheduler, timeout=SECONDS_TO_CONNECT)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"scheduler {spread.scheduler} does not answer ({type(error).__name__}); expected the address of a "
            "running Dask scheduler such as tcp://host:8786; start one with 'dask scheduler'"
        ) from None
    logger = logging.getLogger("distributed.client")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # a scheduler that goes away is told of in a line
    try:
        with client:
            yield client
    finally:
        logger.setLevel(level)
