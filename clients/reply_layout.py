"""The layout of a contract's reply rows: what each column is, so that chunks can be mixed."""

from __future__ import annotations

from wamserve.action_codec.errors import ContractError
from wamserve.action_codec.layout import Block, Layout
from wamserve.embodiments.contract import WireHalf

# reply form -> (rotation format -> block kind of a whole arm). Forms told from an unstated pose are absent.
_KINDS: dict[str, dict[str, str]] = {
    "joint_targets": {"none": "joint_abs"},
    "position_targets": {"none": "position_abs"},
    "points": {"none": "position_abs"},
    "pose_targets": {"quat_xyzw": "pose7_xyzw_abs", "rot6d": "pose9_abs"},
    "osc_deltas": {"axis_angle": "osc_delta"},
}


def reply_layout(wire: WireHalf) -> Layout:
    """Blocks of the reply row: the contract's grippers, and one block per run of columns between them."""
    reply = wire.reply
    kind = _KINDS.get(reply.form, {}).get(reply.rotation_format)
    if kind is None:
        raise ContractError(
            f"reply rows of {wire.robot} cannot be played block by block",
            seen=f"{reply.form}, rotations as {reply.rotation_format}",
            expected=", ".join(f"{form} ({' or '.join(kinds)})" for form, kinds in _KINDS.items()),
        )
    grippers = {gripper.index for gripper in reply.grippers}
    blocks: list[Block] = []
    start = 0
    for column in range(reply.width + 1):
        ends = column == reply.width or column in grippers
        if ends and column > start:
            name = f"{reply.form}_{len(blocks)}"
            blocks.append(Block(name, start, column, kind, reply.frame, reply.unit))
        if column in grippers:
            blocks.append(Block(f"gripper_{column}", column, column + 1, "gripper"))
        if ends:
            start = column + 1
    return Layout(tuple(blocks))
