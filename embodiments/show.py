"""A contract printed as a person wants to read it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from wamserve.embodiments.canvas import canvas_fit
from wamserve.embodiments.contract import Block, Embodiment, ModelHalf, PoseTrack

EYE = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def show(e: Embodiment, console: Console) -> None:
    """Everything a contract says, for a person."""
    model, wire = e.model, e.wire
    console.rule(f"[bold]{e.name}[/bold]  {e.title}", align="left", characters="─")
    console.print(f"from {e.source}\n", soft_wrap=True)

    console.print(f"[bold]Model half[/bold]  {e.model_hash}")
    facts = Table.grid(padding=(0, 2))
    seconds = model.chunk / model.rate_hz
    state = "then " if model.history else ""
    lead = f"{model.history} rows of history, " if model.history else ""
    lead += f"{state}1 row of measured state, " if model.state_row else ""
    rows = [
        (
            "domain",
            f"{model.domain} = {model.domain_id} in the {model.registry} registry, {model.action_space}",
        ),
        (
            "chunk",
            f"{lead}{model.chunk} rows of {model.width} at {model.rate_hz} Hz, {seconds:.3g} s",
        ),
        ("data", f"{model.native_rate_hz} Hz, every {_nth(model.stride)}row"),
        ("normalizer", _normalizer_text(model)),
        ("canvas", _canvas_text(e)),
        (
            "prompt",
            f"{model.prompt_format}, {model.viewpoint}"
            + (f': "{model.view_text}"' if model.view_text else ""),
        ),
        ("modes", ", ".join(model.modes)),
    ]
    if model.instruction:
        rows.insert(-1, ("instruction", f'always "{model.instruction}"'))
    for key, value in rows:
        facts.add_row(key, value)
    console.print(facts)
    _table(
        console,
        ("columns", "block", "is", "unit", "in", "read from"),
        ((f"{b.start}:{b.stop}", b.name, _kind(b), b.unit, b.frame, _source(b)) for b in model.blocks),
    )
    if model.tracks:
        _table(
            console, ("track", "read from", "told in", "then"), (_track_row(track) for track in model.tracks)
        )

    console.print(f"\n[bold]Wire half[/bold]  {e.wire_hash}")
    console.print(f"{wire.robot}: {wire.chunk} rows at {wire.rate_hz} Hz")
    _table(
        console,
        ("sends", "as", "unit", "meaning", "range"),
        [
            *(
                (
                    i.name,
                    f"uint8 [{i.height}, {i.width}, 3]",
                    "RGB",
                    i.orientation.replace("_", " "),
                    "0 .. 255",
                )
                for i in wire.images
            ),
            *(
                (s.name, f"{s.dtype} [{s.dim}]", s.unit, s.order, f"{min(s.low):g} .. {max(s.high):g}")
                for s in wire.states
            ),
        ],
    )
    grippers = "; ".join(
        f"column {g.index} {g.low:g} .. {g.high:g} {g.unit}, {g.polarity.replace('_', ' ')}"
        for g in wire.reply.grippers
    )
    reply = wire.reply
    console.print(
        f"executes {reply.form.replace('_', ' ')} [{reply.width}] in {reply.unit}, {reply.frame}"
        + (f"; rotation {reply.rotation_format}" if reply.rotation_format != "none" else "")
        + (f"; gripper {grippers}" if grippers else ""),
        soft_wrap=True,
    )
    if wire.joints is not None:
        joints = zip(wire.joints.low, wire.joints.high, wire.joints.velocity, strict=True)
        _table(
            console,
            ("joint", "low rad", "high rad", "rad/s"),
            (
                (str(i + 1), f"{low:g}", f"{high:g}", f"{speed:g}")
                for i, (low, high, speed) in enumerate(joints)
            ),
        )
    console.print()


def _kind(block: Block) -> str:
    when = {0: "at t", 1: "at t + 1"}.get(block.time_offset, f"at t + {block.time_offset}")
    if block.gripper is not None:
        return f"gripper, {block.gripper.polarity.replace('_', ' ')}, {when}"
    words = {
        "pose9_rel": "pose delta t -> t + 1",
        "joint_abs": f"joint targets, {when}",
        "position_abs": f"positions, {when}",
        "osc_position": f"OSC command, {when}",
        "osc_rot6d": f"OSC rotation command, {when}",
    }
    return words.get(block.kind, f"{block.kind}, {when}")


def _source(block: Block) -> str:
    if block.track:
        return f"track {block.track}"
    if block.gripper_source is not None:
        g = block.gripper_source
        return f"{g.column}, {g.low:g} .. {g.high:g} {g.unit}, {g.polarity.replace('_', ' ')}"
    tips = f", points {', '.join(map(str, block.keypoints))} in {block.given_in}" if block.keypoints else ""
    return f"{block.column}{f' ({block.column_rotation})' if block.column_rotation else ''}{tips}"


def _track_row(track: PoseTrack) -> tuple[str, str, str, str]:
    read = f"{track.position} + {track.rotation}" if track.position else track.rotation
    steps = []
    if track.inverse:
        steps.append("inverted")
    if track.from_start:
        steps.append("from the first row")
    if track.parent:
        steps.append(f"on {track.parent}")
    offset = [list(row) for row in track.tool_offset]
    if [row[:3] for row in offset[:3]] != EYE or any(row[3] for row in offset[:3]):
        moved = ", ".join(f"{1000 * row[3]:.1f}" for row in offset[:3])
        turned = "" if [row[:3] for row in offset[:3]] == EYE else ", turned"
        steps.append(f"tool offset [{moved}] mm{turned}")
    if [list(row) for row in track.frame_transform] != EYE:
        axes = "; ".join(" ".join(f"{value:g}" for value in row) for row in track.frame_transform)
        steps.append(f"axes C = [{axes}]")
    return track.name, f"{read} ({track.rotation_format})", track.frame, ", ".join(steps) or "as it is"


def _normalizer_text(model: ModelHalf) -> str:
    n = model.normalizer
    if n.method == "none":
        return "none: raw units"
    if n.method == "scale":
        return f"metres x {model.translation_scale:g}"
    columns = f", columns {n.columns[0]}:{n.columns[1]}" if n.columns else ""
    key = f", block {n.key}" if n.key else ""
    clamp = ", clamped to -1 .. 1" if n.clamp else ""
    return f"{n.method} of {n.stats}{key}{columns}{clamp} (sha256 {n.sha256[:12]})"


def _canvas_text(e: Embodiment) -> str:
    canvas = e.model.canvas
    fit = canvas_fit(canvas)
    views = {
        "single": "{}",
        "over_pair": "{} over {} | {}, each halved",
        "side_by_side": " | ".join(["{}"] * len(canvas.views)),
    }[canvas.layout].format(*canvas.views)
    return (
        f"{views} = {canvas.height} x {canvas.width}; "
        f"tier {canvas.tier}: {fit.content_height} x {fit.content_width} in {fit.height} x {fit.width}"
    )


def _table(console: Console, heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(*heads, box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        console.print()
        console.print(table)


def _nth(stride: int) -> str:
    return {1: "", 2: "2nd ", 3: "3rd "}.get(stride, f"{stride}th ")
