"""What cannot be true of a contract: the first contradiction in it is refused, by field."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from wamserve.action_codec.errors import CodecError, ContractError
from wamserve.action_codec.layout import Layout
from wamserve.action_codec.rotations import require_rotation, rotation_form
from wamserve.action_codec.se3 import require_pose
from wamserve.embodiments.model_half import Block, Canvas, ModelHalf, PoseTrack, column_range
from wamserve.embodiments.registry import check_domain
from wamserve.embodiments.wire_half import Image, WireHalf

Contradiction = tuple[str, object, object]  # what, seen, expected
VIEWS = {"single": 1, "over_pair": 3}  # views a canvas layout needs; side_by_side takes any number


def require_consistent(name: str, model: ModelHalf, wire: WireHalf) -> None:
    """ContractError naming the first field of either half that contradicts another one, or itself."""
    check_domain(model.registry, model.domain, model.domain_id, name)
    try:
        layout = model.layout
        found = chain(  # lazy: what comes later may rely on what came before
            _numbers(model, wire),
            _tracks(model),
            _blocks(model, layout),
            _grippers(model, wire),
            _canvas(model.canvas, wire),
            _wire(wire),
            _measured(model, wire),
        )
        for what, seen, expected in found:
            raise ContractError(f"{name}: {what}", seen=seen, expected=expected)
    except CodecError as error:  # gaps, overlaps, unknown kinds, wrong widths, what is no rotation
        raise ContractError(f"{name}: {error}") from None


def _numbers(model: ModelHalf, wire: WireHalf) -> Iterator[Contradiction]:
    positive: dict[str, float] = {
        "rate_hz": model.rate_hz,
        "native_rate_hz": model.native_rate_hz,
        "stride": model.stride,
        "chunk": model.chunk,
        "translation_scale": model.translation_scale,
        "canvas height": model.canvas.height,
        "canvas width": model.canvas.width,
    }
    for image in wire.images:
        positive |= {f"image {image.name!r} height": image.height, f"image {image.name!r} width": image.width}
    for what, value in positive.items():
        if value <= 0:
            yield f"{what} is not positive", value, "> 0"
    if model.history < 0:
        yield "history is negative", model.history, ">= 0"
    if model.native_rate_hz != model.rate_hz * model.stride:
        what = "the stride does not lead from the native rate to the control rate"
        yield what, f"{model.native_rate_hz} Hz / {model.stride}", f"{model.rate_hz} Hz"
    if wire.rate_hz != model.rate_hz:
        yield "wire and model rates differ", wire.rate_hz, model.rate_hz
    if wire.chunk != model.chunk:
        yield "wire and model chunks differ", wire.chunk, model.chunk
    method = model.normalizer.method
    if method != "scale" and model.translation_scale != 1.0:
        yield "translation scale needs normalizer scale", method, "scale"
    if method not in ("none", "scale") and not model.normalizer.stats:
        yield f"normalizer {method} reads statistics", "no stats", "stats = a file, sha256 = its sha256"


def _tracks(model: ModelHalf) -> Iterator[Contradiction]:
    known: list[str] = []
    for track in model.tracks:
        if track.parent and track.parent not in known:
            yield "parent comes later", track.parent, known
        if track.name in known:
            yield "track names repeat", track.name, "one track of that name"
        known.append(track.name)
        require_rotation(track.frame_transform, f"frame_transform of track {track.name!r}", 1e-6)
        require_pose(track.tool_offset, f"tool_offset of track {track.name!r}")
        for what, spec, width in _track_columns(track):
            start, stop = column_range(spec)[1:]
            if stop is not None and stop - start != width:
                yield f"{what} of track {track.name!r} has the wrong width", spec, f"{width} numbers"


def _track_columns(track: PoseTrack) -> Iterator[tuple[str, str, int]]:
    if track.rotation_format == "matrix":
        yield "rotation", track.rotation, 16
        return
    yield "position", track.position, 3
    yield "rotation", track.rotation, rotation_form(track.rotation_format).width


def _blocks(model: ModelHalf, layout: Layout) -> Iterator[Contradiction]:
    known = [track.name for track in model.tracks]
    for block in model.blocks:
        where, of = f"block {block.name!r}", layout[block.name]
        if block.time_offset < 0:
            yield f"{where} reads the past", f"time_offset {block.time_offset}", ">= 0"
        if of.of_kind.blend == "pose" and not block.track:
            yield f"{where} follows no track", block.track, known
        for used in filter(None, (block.track, block.given_in)):
            if used not in known:
                yield f"{where} follows an unknown track", used, known
        given = block.gripper is not None and block.gripper_source is not None
        if (block.kind == "gripper") != given:
            yield f"{where} gripper and source", given, not given
        if not (block.track or given or block.column):
            yield f"{where} is read from nowhere", "no column", 'column = "name", "name[i]" or "name[i:j]"'
        for spec in filter(None, _block_columns(block)):
            column_range(spec)
        if block.keypoints:
            if block.frame not in known:
                yield f"{where} frame is no track", block.frame, known
            if of.width != 3 * len(block.keypoints):
                yield f"{where} width", of.width, 3 * len(block.keypoints)


def _block_columns(block: Block) -> tuple[str, ...]:
    sources = (block.gripper_source, block.state_gripper_source)
    return (block.column, block.state_column, *(source.column for source in sources if source))


def _grippers(model: ModelHalf, wire: WireHalf) -> Iterator[Contradiction]:
    """Reading `meaning` refuses an empty range."""
    blocks = [block for block in model.blocks if block.kind == "gripper"]
    for block in blocks:
        for value in (block.gripper, block.gripper_source, block.state_gripper_source):
            assert value is None or value.meaning
    for state in wire.states:
        assert state.gripper is None or state.gripper.meaning
    reply = wire.reply
    if len(reply.grippers) != len(blocks):
        yield "reply grippers", len(reply.grippers), len(blocks)
    for gripper in reply.grippers:
        assert gripper.meaning
        if not 0 <= gripper.index < reply.width:
            yield "reply gripper lies outside the row", gripper.index, f"0 .. {reply.width - 1}"


def _canvas(canvas: Canvas, wire: WireHalf) -> Iterator[Contradiction]:
    views = {image.name: image for image in wire.images}
    if len(canvas.videos) != len(canvas.views):
        yield "videos and views", canvas.videos, canvas.views
    if set(canvas.views) != set(views):
        yield "canvas views are not the wire's", canvas.views, set(views)
    needed = VIEWS.get(canvas.layout, len(canvas.views))
    if len(canvas.views) != needed:
        yield f"canvas layout {canvas.layout} has another number of views", len(canvas.views), needed
    height, width = _composed(canvas, [views[name] for name in canvas.views])
    if abs(height * canvas.width / (width * canvas.height) - 1.0) > 0.01:
        yield (
            "the wire's images compose to another shape than the canvas",
            f"{height} x {width} (height x width)",
            f"{canvas.height} x {canvas.width} or the same aspect",
        )


def _composed(canvas: Canvas, images: list[Image]) -> tuple[int, int]:
    """Height and width of the views laid out, before any resize of the whole."""
    first = images[0]
    if canvas.layout == "over_pair":
        return first.height + first.height // 2, first.width
    return first.height, sum(image.width for image in images)


def _wire(wire: WireHalf) -> Iterator[Contradiction]:
    if len(wire.reply.fields) != wire.reply.width:
        yield "reply fields", len(wire.reply.fields), wire.reply.width
    for state in wire.states:
        if not len(state.low) == len(state.high) == state.dim:
            yield f"{state.name} limits", state.low, state.dim
        if not all(low < high for low, high in zip(state.low, state.high, strict=True)):
            yield f"{state.name} limits are upside down", state.low, f"below {state.high}"
    if (limits := wire.joints) is not None:
        if not len(limits.low) == len(limits.high) == len(limits.velocity):
            yield "joint limits differ in length", limits.low, limits.high
        ordered = zip(limits.low, limits.high, limits.velocity, strict=True)
        if not all(low < high and speed > 0.0 for low, high, speed in ordered):
            yield "joint limits are upside down", limits.low, f"below {limits.high}, velocities > 0"
    if (links := wire.kinematics) is not None and not len(links.a) == len(links.d) == len(links.alpha):
        yield (
            "kinematics differ in length",
            f"a {len(links.a)}, d {len(links.d)}",
            f"alpha {len(links.alpha)}",
        )


def _measured(model: ModelHalf, wire: WireHalf) -> Iterator[Contradiction]:
    """Pose targets start at the measured pose, whether or not the model is told it."""
    measured = [state.measures for state in wire.states]
    for block in model.blocks:
        wanted = [f"{block.track}.position", f"{block.track}.rotation"] if block.track else [block.name]
        needed = model.state_row or (wire.reply.form == "pose_targets" and bool(block.track))
        if needed and not all(name in measured for name in wanted):
            yield f"block {block.name!r} is not measured by any state", measured, wanted
        stored: Any = block.track or block.state_column or block.state_gripper_source
        if model.state_row and not stored:
            yield f"block {block.name!r} has no measured column for the state row", "none", "state_column"
