"""sam2's notebook of video segmentation: click, refine, propagate, correct, propagate again, begin anew with boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.clients.conftest import Answers, Plays, box, click

INSIDE = np.array([1], np.int32)


def notebook(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """One object by clicks, then two; `otherwise` the later correction is a click into the other object."""
    said: Answers = {}

    def answered(name: str, answer: tuple[Any, ...]) -> None:
        """Keep what the notebook draws."""
        frame, ids, logits = answer
        said[f"{name}, frame {frame}, objects {list(ids)}"] = logits.clone()

    def propagate(name: str, **options: int) -> None:
        """The notebook's loop."""
        for answer in predictor.propagate_in_video(state, **options):
            answered(name, answer)

    state = predictor.init_state(video_path=clip)
    predictor.reset_state(state)
    first = click("right")
    answered(
        "click", predictor.add_new_points_or_box(state, 0, obj_id=1, points=first, labels=INSIDE)
    )
    points, labels = np.concatenate([first, click("right", right=6)]), np.ones(2, np.int32)
    answered(
        "refined", predictor.add_new_points_or_box(state, 0, obj_id=1, points=points, labels=labels)
    )
    propagate("one")
    correction = click("upper" if otherwise else "right", 3, right=6)
    answered(
        "corrected",
        predictor.add_new_points_or_box(state, 3, obj_id=1, points=correction, labels=INSIDE),
    )
    propagate("one, corrected")

    predictor.reset_state(state)
    answered("box", predictor.add_new_points_or_box(state, 0, obj_id=4, box=box("upper")))
    middle = click("upper")
    answered(
        "box and click",
        predictor.add_new_points_or_box(
            state, 0, obj_id=4, box=box("upper"), points=middle, labels=INSIDE
        ),
    )
    answered("second", predictor.add_new_points_or_box(state, 0, obj_id=3, box=box("lower")))
    propagate("two")
    _, updated = predictor.remove_object(state, 4)
    for frame, logits in updated:
        answered("removed", (frame, state["obj_ids"], logits))
    propagate("the one that is left", start_frame_idx=3)
    return said


def test_the_notebook_is_answered_as_by_stock(plays: Plays, profile: str) -> None:
    plays.check(notebook, profile)
