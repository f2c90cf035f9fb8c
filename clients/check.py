"""Does a request fit its contract? Refused with what was seen, what was expected and what to type.

Pure numpy: a client may ask before it sends, the serving process before it queues, the policy before it runs.
"""

from __future__ import annotations

from math import isfinite

import numpy as np

from wamserve.action_codec.errors import RequestError
from wamserve.clients.policy import Observation, Request
from wamserve.embodiments.canvas import canvas_fit
from wamserve.embodiments.contract import Embodiment, Image, State

ASPECT_SLACK = 0.01  # relative; the canvas resizes other sizes of the same shape
MAX_SEED = 2**31 - 1  # both reference noise streams take these


def check_request(contract: Embodiment, request: Request) -> None:
    """Everything a request of its mode must be. Raises RequestError for the first thing that is not."""
    model, mode = contract.model, request.mode
    if mode not in model.modes:
        raise RequestError(
            f"{contract.name} has no mode {mode!r}", expected=", ".join(model.modes), fix="wam ls embodiments"
        )
    if not isinstance(request.observation.instruction, str):
        raise RequestError(
            "the instruction is not text", seen=type(request.observation.instruction).__name__, expected="str"
        )
    if mode == "policy" and not model.instruction and not request.observation.instruction.strip():
        raise RequestError(
            "the instruction is empty",
            expected="a sentence such as 'Put the banana in the bowl'",
            fix="the key 'prompt' of the request",
        )
    if mode == "id":
        check_video(contract, request.video)
    else:
        check_images(contract, request.observation)
    if mode == "policy" or model.state_row or model.history:
        check_state(contract, request.observation)
    if mode == "policy":
        check_prefix(contract, request)
    if mode == "fd":
        _check_rows(
            contract, "fd actions", request.actions, model.chunk, model.width, "blocks of the contract"
        )
    if request.seed is not None and not (_is_count(request.seed) and request.seed <= MAX_SEED):
        raise RequestError("the seed does not fit", seen=request.seed, expected=f"0 .. {MAX_SEED}")
    if not _is_count(request.delay):
        raise RequestError(
            "the delay is no number of rows", seen=request.delay, expected=f"0 .. {model.chunk}"
        )


def check_images(contract: Embodiment, observation: Observation) -> None:
    """The views of the contract, or the one view "canvas". Raises RequestError."""
    canvas, images = contract.model.canvas, observation.images
    if set(images) == {"canvas"}:
        _check_pixels("canvas", images["canvas"], canvas.height, canvas.width)
        return
    missing = [name for name in canvas.views if name not in images]
    if missing:
        raise RequestError(
            f"camera {', '.join(map(repr, missing))} is missing from the observation",
            seen=", ".join(images) or "no images",
            expected=", ".join(canvas.views),
            fix=f"wam ls embodiment {contract.name}",
        )
    for image in contract.wire.images:
        check_image(image, images[image.name])


def check_image(image: Image, pixels: np.ndarray) -> None:
    """One picture: uint8 RGB, height x width x 3, of the declared shape at any size. Raises RequestError."""
    _check_pixels(image.name, pixels, image.height, image.width)


def check_state(contract: Embodiment, observation: Observation) -> None:
    """Every measured vector: finite floats of the declared width inside the declared range."""
    for state in contract.wire.states:
        if state.name not in observation.state:
            raise RequestError(
                f"state {state.name!r} is missing from the observation",
                seen=", ".join(observation.state) or "no state",
                expected=", ".join(s.name for s in contract.wire.states),
                fix=f"wam ls embodiment {contract.name}",
            )
        _check_vector(state, observation.state[state.name], contract.model.history)


def check_video(contract: Embodiment, video: np.ndarray | None) -> None:
    """The frames of an id request: chunk + 1 canvases, composed, at the canvas's size or its content's."""
    canvas, frames = contract.model.canvas, contract.model.chunk + 1
    if video is None:
        raise RequestError("an id request needs its video", expected=f"uint8 [{frames}, H, W, 3] RGB frames")
    fit = canvas_fit(canvas)
    shape: tuple[int, ...] = getattr(video, "shape", ())
    if len(shape) != 4 or shape[0] != frames:
        raise RequestError("the video does not fit", seen=list(shape), expected=f"[{frames}, H, W, 3]")
    _check_pixels("video", video[0], canvas.height, canvas.width, (fit.content_height, fit.content_width))


def check_prefix(contract: Embodiment, request: Request) -> None:
    """Rows already committed: fewer than the chunk, in the form of the reply."""
    if request.prefix is not None:
        rows = len(request.prefix) if np.ndim(request.prefix) == 2 else -1
        if not 0 <= rows < contract.wire.chunk:
            raise RequestError(
                "the committed rows do not fit",
                seen=list(np.shape(request.prefix)),
                expected=f"[0 .. {contract.wire.chunk - 1}, {contract.wire.reply.width}]",
            )
        _check_rows(
            contract, "committed rows", request.prefix, rows, contract.wire.reply.width, "reply columns"
        )


def _check_pixels(
    name: str, pixels: np.ndarray, height: int, width: int, other: tuple[int, int] | None = None
) -> None:
    expected = f"uint8 [{height}, {width}, 3] RGB"
    if not isinstance(pixels, np.ndarray):
        raise RequestError(f"image {name!r} is no array", seen=type(pixels).__name__, expected=expected)
    if pixels.ndim == 4 and pixels.shape[0] == 1:
        raise RequestError(
            f"image {name!r} has a leading axis", seen=list(pixels.shape), expected=expected, fix="image[0]"
        )
    if pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.shape[-1] != 3:
        raise RequestError(
            f"image {name!r} has its channels first",
            seen=list(pixels.shape),
            expected=expected,
            fix="image.transpose(1, 2, 0)",
        )
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise RequestError(f"image {name!r} has the wrong shape", seen=list(pixels.shape), expected=expected)
    if pixels.dtype != np.uint8:
        seen = str(pixels.dtype)
        if pixels.dtype.kind == "f" and pixels.size:
            seen += f" between {np.nanmin(pixels):g} and {np.nanmax(pixels):g}"
        raise RequestError(
            f"image {name!r} is not uint8", seen=seen, expected=expected, fix="(image * 255).astype(np.uint8)"
        )
    ratio = pixels.shape[0] / pixels.shape[1]
    wanted = [height / width] + ([other[0] / other[1]] if other else [])
    if all(abs(ratio / one - 1) > ASPECT_SLACK for one in wanted):
        raise RequestError(
            f"image {name!r} has the wrong shape and is not stretched",
            seen=f"{pixels.shape[0]} x {pixels.shape[1]} (height x width)",
            expected=f"{height} x {width} or the same aspect",
            fix="resize with padding before sending",
        )


def _check_vector(state: State, value: np.ndarray, history: int) -> None:
    expected = f"{state.dtype} [{state.dim}]" + (f" or [{history + 1}, {state.dim}]" if history else "")
    value = np.asarray(value)
    if value.dtype.kind != "f":
        raise RequestError(f"state {state.name!r} holds no floats", seen=value.dtype, expected=expected)
    shapes = [(state.dim,), (history + 1, state.dim)] if history else [(state.dim,)]
    if value.shape not in shapes:
        raise RequestError(
            f"state {state.name!r} has the wrong shape",
            seen=list(value.shape),
            expected=f"{expected}: {state.order}",
        )
    bounds = list(zip(state.low, state.high, strict=True))
    # So few numbers are looked at sooner without numpy.
    if all(
        isfinite(x) and low <= x <= high
        for row in value.reshape(-1, state.dim).tolist()
        for x, (low, high) in zip(row, bounds, strict=True)
    ):
        return
    if not np.isfinite(value).all():
        raise RequestError(f"state {state.name!r} is not finite", seen=value.tolist(), expected=state.order)
    outside = (value < np.asarray(state.low)) | (value > np.asarray(state.high))
    if outside.any():
        column = int(np.argwhere(outside)[0][-1])
        degrees = state.unit == "rad" and np.abs(value).max() > 2 * np.pi
        raise RequestError(
            f"state {state.name!r} is out of range in column {column}",
            seen=f"{value[..., column].tolist()}" + (" (degrees?)" if degrees else ""),
            expected=f"{state.low[column]:g} .. {state.high[column]:g} {state.unit}: {state.order}",
            fix="np.radians(state)" if degrees else None,
        )


def _check_rows(
    contract: Embodiment, what: str, rows: np.ndarray | None, count: int, width: int, meaning: str
) -> None:
    expected = f"float [{count}, {width}], the {meaning} of {contract.name}"
    if rows is None:
        raise RequestError(f"{what} are missing", expected=expected)
    value = np.asarray(rows)
    if value.dtype.kind != "f" or value.shape != (count, width):
        raise RequestError(f"{what} do not fit", seen=f"{value.dtype} {list(value.shape)}", expected=expected)
    bad = ~np.isfinite(value).all(axis=1)
    if bad.any():
        raise RequestError(f"{what} are not finite in row {int(np.argmax(bad))}", expected="finite numbers")


def _is_count(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= 0
