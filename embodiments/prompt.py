"""The text a model reads beside the picture: byte-exact JSON and plain forms of the published checkpoints."""

from __future__ import annotations

import json
from math import gcd
from typing import Literal, get_args

from wamserve.action_codec.errors import RequestError
from wamserve.embodiments.canvas import TIERS, Fit, canvas_fit
from wamserve.embodiments.contract import ModelHalf

Mode = Literal["policy", "fd", "id"]

VIEWPOINTS = {
    "ego_view": "This video is captured from a first-person perspective looking at the scene.",
    "third_person_view": "This video is captured from a third-person perspective looking towards the agent "
    "from the front.",
    "wrist_view": "This video is captured from a wrist-mounted camera.",
    "concat_view": "This video contains concatenated views from multiple camera perspectives.",
    "top_down_2d_view": "This video is captured from a top-down view of a flat 2D scene.",
}


def render(
    model: ModelHalf,
    task: str,
    *,
    mode: Mode = "policy",
    idle: int | None = None,
    fit: Fit | None = None,
    rows: int | None = None,
    prompt_format: Literal["json", "plain"] | None = None,
) -> str:
    """The prompt of one request in the contract's form. An empty task stays empty: the unconditional prompt.

    idle: number of idle action rows, told to the model in JSON except in id mode (see `idle.idle_rows`);
    None leaves it out, as the published servers do. rows: action rows of the request, without the state row
    (default: the contract's chunk); the video has one frame more. fit: default the contract's own canvas.
    """
    if not isinstance(task, str):
        raise RequestError("the instruction is not text", seen=type(task).__name__, expected="str")
    task = model.instruction or task
    fit = fit or canvas_fit(model.canvas)
    count = model.chunk if rows is None else rows
    form = prompt_format or model.prompt_format
    for what, value, known in (("mode", mode, get_args(Mode)), ("prompt format", form, ("json", "plain"))):
        if value not in known:
            raise RequestError(f"no {what} {value!r}", expected=", ".join(known))
    if count < 1:
        raise RequestError("a prompt is about at least one action row", seen=count)
    if idle is not None and not 0 <= idle <= count + model.state_row:
        raise RequestError(
            "more rows are idle than there are", seen=idle, expected=f"0 .. {count + model.state_row}"
        )
    if form == "plain":
        return plain_prompt(
            task,
            model.viewpoint,
            model.view_text,
            frames=count + 1,
            fps=model.rate_hz,
            height=fit.height,
            width=fit.width,
        )
    return json_prompt(
        task,
        model.viewpoint,
        model.view_text,
        frames=count + 1,
        fps=model.rate_hz,
        height=fit.height,
        width=fit.width,
        idle=None if mode == "id" or idle is None else (idle, count + model.state_row),
    )


def json_prompt(
    task: str,
    viewpoint: str,
    view_text: str,
    *,
    frames: int,
    fps: int,
    height: int,
    width: int,
    idle: tuple[int, int] | None = None,
) -> str:
    """The structured form. height, width: the padded frame. idle: (idle rows, all rows) or None."""
    if task == "":
        return ""
    seconds = frames / fps
    action = {"time": f"0:00-{_minutes(round(seconds))}", "description": sentence(task)}
    if idle is not None:
        action["idle_frame"] = f"{idle[0]} out of {idle[1]}."
    return json.dumps(
        {
            "cinematography": {"framing": framing(viewpoint, view_text)},
            "actions": [action],
            "duration": f"{int(seconds)}s",
            "fps": float(fps),
            "resolution": {"H": height, "W": width},
            "aspect_ratio": aspect_ratio(height, width),
        }
    )


def plain_prompt(
    task: str, viewpoint: str, view_text: str, *, frames: int, fps: int, height: int, width: int
) -> str:
    """The sentence form. The duration is cut to whole seconds and then printed with one decimal."""
    if task == "":
        return ""
    joint = " " if task.endswith(".") else ". "  # a question mark still gets a full stop, as in training
    return (
        f"{task}{joint}{framing(viewpoint, view_text)} The video is {int(frames / fps):.1f} seconds long "
        f"and is of {fps} FPS. This video is of {height}x{width} resolution."
    )


def framing(viewpoint: str, view_text: str) -> str:
    """The viewpoint's sentence, and the layout's after one space."""
    if viewpoint not in VIEWPOINTS:
        raise RequestError(f"no viewpoint {viewpoint!r}", expected=", ".join(VIEWPOINTS))
    return f"{VIEWPOINTS[viewpoint]} {view_text.rstrip()}" if view_text else VIEWPOINTS[viewpoint]


def sentence(text: str) -> str:
    """Stripped, and ended by a full stop unless it ends in . ! or ?"""
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def aspect_ratio(height: int, width: int) -> str:
    """The tier table's name of this frame, otherwise the reduced fraction."""
    for sizes in TIERS.values():
        for name, size in sizes.items():
            if size == (width, height):
                return name
    divisor = gcd(width, height)
    return f"{width // divisor},{height // divisor}"


def _minutes(seconds: int) -> str:
    return f"{seconds // 60}:{seconds % 60:02d}"
