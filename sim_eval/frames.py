"""Frames of a recording brought beside predicted ones: same canvas, same size, known place of every view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from wamserve.action_codec.errors import RunError
from wamserve.embodiments.canvas import Fit, canvas_fit, compose, crop_frame, fit_frame
from wamserve.embodiments.contract import Canvas, Embodiment
from wamserve.sim_eval.metrics.consistency import ImaginedChunk, executed_rows
from wamserve.sim_eval.metrics.video import Rectangle
from wamserve.sim_eval.task import Task

LATENT = 16  # pixels per latent row and column


def canvas_like(canvas: Canvas, images: Mapping[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Views uint8 [T, H, W, 3] by name -> canvas frames of `size` (height, width), as the model saw them.

    A predicted video comes padded to its tier, cropped to the picture in it (to whole latents, or exactly),
    or at the canvas's own size; each is met by the very same operation on the recording. RunError for any
    other size: nothing is stretched.
    """
    whole = compose(canvas, images)
    fit = canvas_fit(canvas)
    if size == (fit.height, fit.width):
        return fit_frame(whole, canvas.tier).pixels
    if size in ((fit.content_height, fit.content_width), _whole_latents(fit)):
        return crop_frame(fit_frame(whole, canvas.tier).pixels, fit)[:, : size[0], : size[1]]
    if size == (canvas.height, canvas.width):
        return whole
    raise RunError(
        "a predicted video has a size that its contract's canvas never has",
        seen=f"{size[0]} x {size[1]} (height x width)",
        expected=f"{fit.height} x {fit.width} padded, {fit.content_height} x {fit.content_width} or "
        f"{canvas.height} x {canvas.width}",
    )


def _whole_latents(fit: Fit) -> tuple[int, int]:
    """The part of the content that decodes from latents without padding: 540 rows become 33 x 16 = 528."""
    return fit.content_height // LATENT * LATENT, fit.content_width // LATENT * LATENT


def view_rectangles(canvas: Canvas, size: tuple[int, int]) -> dict[str, Rectangle]:
    """Where each view lies in a predicted frame of `size` (height, width); padding lies in none of them."""
    fit = canvas_fit(canvas)
    known = (fit.height, fit.width), (fit.content_height, fit.content_width), _whole_latents(fit)
    height, width = (fit.content_height, fit.content_width) if size in known else size
    half = width // 2
    if canvas.layout == "single":
        places = [Rectangle(0, 0, height, width)]
    elif canvas.layout == "side_by_side":
        places = [Rectangle(0, 0, height, half), Rectangle(0, half, height, width - half)]
    else:
        upper = round(height * 2 / 3)  # the lower pair has half the height of the upper view
        places = [
            Rectangle(0, 0, upper, width),
            Rectangle(upper, 0, height - upper, half),
            Rectangle(upper, half, height - upper, width - half),
        ]
    inside = [
        Rectangle(p.top, p.left, min(p.height, size[0] - p.top), min(p.width, size[1] - p.left))
        for p in places
    ]
    return dict(zip(canvas.views, inside, strict=True))


def seen_views(recording: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the policy saw at its queries: view name -> uint8 [N, h, w, 3]; {} where nothing was seen."""
    return {name[len("view/") :]: rows for name, rows in recording.items() if name.startswith("view/")}


def rendered_views(
    task: Task, recording: Mapping[str, np.ndarray], steps: Sequence[int]
) -> dict[str, np.ndarray]:
    """The cameras' frames at control steps `steps`, rendered again from the recorded simulator states."""
    states = recording["sim_states"]
    pictures = []
    for step in steps:
        task.restore(states[step])
        pictures.append(task.render())
    return {name: np.stack([picture[name] for picture in pictures]) for name in pictures[0]}


def frozen_chunks(
    recording: Mapping[str, np.ndarray], embodiment: Embodiment, chunks: Sequence[ImaginedChunk]
) -> list[ImaginedChunk]:
    """The same chunks as a model would imagine them that copies what it was shown: the baseline."""
    views = seen_views(recording)
    out = []
    for index, chunk in enumerate(chunks):
        first = chunk.imagined[:1]
        if views:
            shown = {name: rows[index : index + 1] for name, rows in views.items()}
            first = canvas_like(embodiment.model.canvas, shown, (first.shape[1], first.shape[2]))
        out.append(replace(chunk, imagined=np.repeat(first, len(chunk.imagined), axis=0)))
    return out


def imagined_chunks(
    recording: Mapping[str, np.ndarray], embodiment: Embodiment, task: Task | None = None
) -> list[ImaginedChunk]:
    """Every chunk that came with a video, beside the frames its own rows led to; [] where none did.

    With a `task` every executed frame is rendered again. Without one, only the frame that the policy saw at
    its next query is there to compare: one per chunk.
    """
    if "video" not in recording:
        return []
    if len(recording["video"]) != len(recording["chunk_step"]):
        raise RunError(
            "some chunks of an episode came with video and some without",
            seen=f"{len(recording['video'])} videos",
            expected=f"{len(recording['chunk_step'])} chunks",
        )
    imagined, queries = recording["video"], [int(step) for step in recording["chunk_step"]]
    size = imagined.shape[2], imagined.shape[3]
    seen, actions = seen_views(recording), recording["actions"]
    out = []
    for index, query in enumerate(queries):
        own = np.flatnonzero(recording["action_chunk"] == index)
        stop = int(own[-1]) + 1 if len(own) else query  # equal rows of the chunk after it are not its own
        rows = executed_rows(recording["chunk_actions"][index], actions[query:stop])
        rows = min(rows, len(imagined[index]) - 1)
        if task is not None:
            steps = [query + k for k in range(1, rows + 1)]
            views = rendered_views(task, recording, steps) if steps else {}
        else:
            later = [j for j, step in enumerate(queries) if query < step <= query + rows]
            steps = [queries[j] for j in later]
            views = {name: pictures[later] for name, pictures in seen.items()}
        executed = canvas_like(embodiment.model.canvas, views, size) if steps else imagined[index][:0]
        out.append(ImaginedChunk(imagined[index], executed, tuple(step - query for step in steps)))
    return out
