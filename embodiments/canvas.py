"""Camera views to the one uint8 frame a model sees: composed by the contract, then fitted to a tier.

Pixel-exact with the training pipeline: views are resized as torch does with bilinear, align_corners=False,
no antialias and a truncating cast; the canvas shrinks as torchvision does on uint8 (bicubic, antialias,
rounded).
All functions take [..., H, W, 3], so a video is composed like a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wamserve.action_codec.errors import RequestError
from wamserve.embodiments.contract import Canvas

Pixels = NDArray[np.uint8]
Float = NDArray[np.float32]

# tier -> aspect name "w,h" as prompts spell it -> (width, height), in the order ties are broken.
# 64 and 128 are our own, for small models; the others are the published checkpoints'.
TIERS: dict[str, dict[str, tuple[int, int]]] = {
    "64": {"1,1": (64, 64)},
    "128": {"1,1": (128, 128), "4,3": (160, 128), "3,4": (128, 160), "2,1": (192, 96), "16,9": (160, 96)},
    "256": {"1,1": (256, 256), "4,3": (320, 256), "3,4": (256, 320), "16,9": (320, 192), "9,16": (192, 320)},
    "480": {
        "1,1": (640, 640),
        "4,3": (736, 544),
        "3,4": (544, 736),
        "16,9": (832, 480),
        "9,16": (480, 832),
        "2,3": (512, 768),
    },
    "704": {
        "1,1": (960, 960),
        "4,3": (1088, 832),
        "3,4": (832, 1088),
        "16,9": (1280, 704),
        "9,16": (704, 1280),
    },
    "720": {
        "1,1": (960, 960),
        "4,3": (1104, 832),
        "3,4": (832, 1104),
        "16,9": (1280, 720),
        "9,16": (720, 1280),
    },
}


_LINES = 60  # of a halved picture at once: what is between stays in the processor's cache


@dataclass(frozen=True)
class Fit:
    """Where a canvas lands in its tier. Content sits at the top left; the rest is padding."""

    height: int  # padded frame, what the model and the prompt are told
    width: int
    content_height: int  # picture inside it
    content_width: int


@dataclass(frozen=True, eq=False)
class Frame:
    """A canvas fitted to its tier."""

    pixels: Pixels  # [..., fit.height, fit.width, 3]
    fit: Fit


def frame(canvas: Canvas, images: Mapping[str, Pixels]) -> Frame:
    """Views by name, each uint8 RGB [..., H, W, 3] -> the padded frame the model sees.

    A single image called "canvas" is one already composed. RequestError names what does not fit.
    """
    return fit_frame(compose(canvas, images), canvas.tier)


def compose(
    canvas: Canvas, images: Mapping[str, Pixels], room: Callable[[tuple[int, ...]], Pixels] | None = None
) -> Pixels:
    """Views by name -> uint8 [..., canvas.height, canvas.width, 3].

    room: makes the array that views are put together in; by default a new one of numpy's.
    """
    if set(images) == {"canvas"}:
        whole = _checked("canvas", images["canvas"])
    else:
        missing = [name for name in canvas.views if name not in images]
        if missing:
            raise RequestError(
                f"camera {missing[0]!r} is missing from the observation",
                seen=", ".join(images) or "no images",
                expected=", ".join(canvas.views),
            )
        views = [_checked(name, images[name]) for name in canvas.views]
        if len({view.shape[:-3] for view in views}) > 1:
            raise RequestError(
                "views differ in frames", seen=", ".join(str(list(view.shape)) for view in views)
            )
        whole = _LAYOUTS[canvas.layout](canvas, views, room or _room)
    height, width = whole.shape[-3:-1]
    if (height, width) == (canvas.height, canvas.width):
        return whole
    if abs(height * canvas.width / (width * canvas.height) - 1.0) > 0.01:
        raise RequestError(
            "the composed views have another shape than the canvas, and are not stretched",
            seen=f"{height} x {width} (height x width)",
            expected=f"{canvas.height} x {canvas.width} or the same aspect",
        )
    return resize_bilinear(whole, canvas.height, canvas.width)


def fit_size(height: int, width: int, tier: str) -> Fit:
    """The tier's frame nearest in aspect, and a picture's size in it: shrunk to fit, never enlarged."""
    ratio = height / width
    frame_width, frame_height = min(TIERS[tier].values(), key=lambda size: abs(ratio - size[1] / size[0]))
    scale = min(frame_width / width, frame_height / height, 1.0)
    return Fit(frame_height, frame_width, int(scale * height + 0.5), int(scale * width + 0.5))


def canvas_fit(canvas: Canvas) -> Fit:
    """Where a contract's canvas lands, without any pixels."""
    return fit_size(canvas.height, canvas.width, canvas.tier)


def tier_of(height: int, width: int) -> str:
    """The tier that the reference picks when none is declared: by the shorter side."""
    short = min(height, width)
    for tier, longest in (("256", 256), ("480", 640), ("720", 960)):
        if short <= longest:
            return tier
    raise RequestError(
        "no tier holds this picture", seen=f"{height} x {width}", expected="shorter side <= 960"
    )


def fit_frame(pixels: Pixels, tier: str) -> Frame:
    """uint8 [..., H, W, 3] -> the tier's frame, padded right and bottom.

    Padding reflects, unless it is as large as the picture: then the edge is repeated.
    """
    pixels = _checked("canvas", pixels)
    height, width = pixels.shape[-3:-1]
    fit = fit_size(height, width, tier)
    if (fit.content_height, fit.content_width) != (height, width):
        pixels = resize_bicubic(pixels, fit.content_height, fit.content_width)
    return Frame(_padded(pixels, fit), fit)


def crop_frame(pixels: Pixels, fit: Fit) -> Pixels:
    """The picture inside a padded frame [..., H, W, 3]."""
    return pixels[..., : fit.content_height, : fit.content_width, :]


def resize_bilinear(pixels: Pixels, height: int, width: int, out: Pixels | None = None) -> Pixels:
    """torch's bilinear, align_corners=False, no antialias, then truncated: uint8 [..., H, W, 3].

    out: where to, a part of a larger picture for example.
    """
    tall, wide = pixels.shape[-3:-1]
    if out is None:
        out = np.empty((*pixels.shape[:-3], height, width, 3), np.uint8)
    if (tall, wide) == (2 * height, 2 * width):
        _halve(pixels, out)
        return out
    values = _resample(pixels.astype(np.float32), _bilinear_taps(wide, width), -2)
    out[...] = _resample(values, _bilinear_taps(tall, height), -3).astype(np.uint8)
    return out


def _halve(pixels: Pixels, out: Pixels) -> None:
    """Each pixel the mean of four, an exact integer sum: the case of every DROID request.

    numpy is fast along whole rows, not along three colours: all neighbours are added, half of them used.
    """
    height, width = out.shape[-3:-1]
    for top in range(0, height, _LINES):
        lines = pixels[..., 2 * top : 2 * (top + _LINES), :, :]
        rows = np.add(lines[..., 0::2, :, :], lines[..., 1::2, :, :], dtype=np.uint16)
        rows = rows.reshape(*rows.shape[:-2], 6 * width)
        sums = rows[..., :-3] + rows[..., 3:]
        sums >>= 2
        for colour in range(3):
            out[..., top : top + _LINES, :, colour] = sums[..., colour::6]


def resize_bicubic(pixels: Pixels, height: int, width: int) -> Pixels:
    """torchvision's resize of uint8 with bicubic and antialias: float32, clamped, rounded half to even."""
    tall, wide = pixels.shape[-3:-1]
    out = pixels.astype(np.float32)
    if wide != width:
        out = _resample(out, _bicubic_taps(wide, width), -2)
    if tall != height:
        out = _resample(out, _bicubic_taps(tall, height), -3)
    return np.rint(np.clip(out, 0.0, 255.0)).astype(np.uint8)


def _room(shape: tuple[int, ...]) -> Pixels:
    return np.empty(shape, np.uint8)


def _over_pair(canvas: Canvas, views: list[Pixels], room: Callable[[tuple[int, ...]], Pixels]) -> Pixels:
    top, *pair = views
    height, width = top.shape[-3:-1]
    if width % 2:
        raise RequestError(
            f"image {canvas.views[0]!r} cannot be halved", seen=f"width {width}", expected="an even width"
        )
    half = height // 2, width // 2
    whole = room((*top.shape[:-3], height + half[0], 2 * half[1], 3))
    whole[..., :height, :, :] = top
    for i, view in enumerate(pair):
        place = whole[..., height:, i * half[1] : (i + 1) * half[1], :]
        if view.shape[-3:-1] == half:
            place[...] = view
        else:
            resize_bilinear(view, *half, out=place)
    return whole


def _side_by_side(canvas: Canvas, views: list[Pixels], room: Callable[[tuple[int, ...]], Pixels]) -> Pixels:
    heights = {view.shape[-3] for view in views}
    if len(heights) != 1:
        raise RequestError(
            "views side by side need one height",
            seen=", ".join(f"{n} {v.shape[-3]}" for n, v in zip(canvas.views, views, strict=True)),
            expected=canvas.height,
        )
    return np.concatenate(views, axis=-2)


def _single(canvas: Canvas, views: list[Pixels], room: Callable[[tuple[int, ...]], Pixels]) -> Pixels:
    return views[0]


def _padded(pixels: Pixels, fit: Fit) -> Pixels:
    """The picture at the top left of a new frame; missing lines mirror it or repeat its last."""
    height, width = fit.content_height, fit.content_width
    right, bottom = fit.width - width, fit.height - height
    if not right and not bottom:
        return pixels
    padded = np.empty((*pixels.shape[:-3], fit.height, fit.width, 3), np.uint8)
    padded[..., :height, :width, :] = pixels
    if right >= width or bottom >= height:
        padded[..., :height, width:, :] = pixels[..., -1:, :]
        padded[..., height:, :, :] = padded[..., height - 1 : height, :, :]
    else:  # the last line itself is not repeated
        for colour in range(3):  # as in resize_bilinear
            padded[..., :height, width:, colour] = pixels[..., ::-1, colour][..., 1 : right + 1]
        padded[..., height:, :, :] = padded[..., :height, :, :][..., ::-1, :, :][..., 1 : bottom + 1, :, :]
    return padded


_LAYOUTS = {"single": _single, "over_pair": _over_pair, "side_by_side": _side_by_side}


def _checked(name: str, pixels: Pixels) -> Pixels:
    shape = getattr(pixels, "shape", None)
    if getattr(pixels, "dtype", None) != np.uint8:
        raise RequestError(
            f"image {name!r} is not uint8",
            seen=getattr(pixels, "dtype", type(pixels).__name__),
            expected="uint8 RGB, 0 .. 255",
        )
    if shape is None or len(shape) < 3 or shape[-1] != 3 or 0 in shape:
        raise RequestError(
            f"image {name!r} is not height x width x 3", seen=shape, expected="[..., H, W, 3] RGB"
        )
    return pixels


def _resample(values: Float, taps: tuple[NDArray[np.intp], NDArray[Any]], axis: int) -> Float:
    """Weighted sum of a few source lines per output line, along `axis` (-3 rows, -2 columns)."""
    index, weight = taps  # [out, taps] each
    weight = weight[..., None] if axis == -2 else weight[..., None, None]
    out: Float = (np.take(values, index[:, 0], axis) * weight[:, 0]).astype(np.float32)
    for tap in range(1, index.shape[1]):
        out = (np.take(values, index[:, tap], axis) * weight[:, tap] + out).astype(np.float32)
    return out


@cache
def _bilinear_taps(size: int, out: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """float32 weights held as float64, so that each sum rounds once: torch's fused multiply-adds.

    The truncating cast makes the last bit of a weight visible.
    """
    scale = float(np.float32(size) / np.float32(out))
    source = np.maximum(scale * (np.arange(out) + 0.5) - 0.5, 0.0).astype(np.float32)
    low = source.astype(np.intp)
    share = source - low.astype(np.float32)
    weight = np.stack([np.float32(1) - share, share], 1)
    return np.stack([low, np.minimum(low + 1, size - 1)], 1), weight.astype(np.float64)


@cache
def _bicubic_taps(size: int, out: int) -> tuple[NDArray[np.intp], Float]:
    """Keys' cubic (a = -1/2), widened by the scale when shrinking; rounded to float32 where torch does."""
    scale = np.float32(size / out)
    stretch = max(scale, np.float32(1.0))
    support = np.float32(2.0) * stretch
    center = (float(scale) * (np.arange(out) + 0.5)).astype(np.float32)
    first = np.maximum((center - support + 0.5).astype(np.intp), 0)
    last = np.minimum((center + support + 0.5).astype(np.intp), size)
    index = first[:, None] + np.arange(int((last - first).max()))[None]
    offset = (index.astype(np.float32) - center[:, None]).astype(np.float64) + 0.5
    x = np.abs((offset * float(np.float32(1.0) / stretch)).astype(np.float32))
    near = (np.float32(1.5) * x - np.float32(2.5)) * x * x + np.float32(1.0)
    far = np.float32(-0.5) * (((x - np.float32(5.0)) * x + np.float32(8.0)) * x - np.float32(4.0))
    weight = np.where(x < 1.0, near, np.where(x < 2.0, far, np.float32(0.0))) * (index < last[:, None])
    weight = weight.astype(np.float32)
    weight /= weight.sum(axis=1, keepdims=True, dtype=np.float32)
    return np.minimum(index, size - 1), weight
