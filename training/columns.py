"""What a simulated robot was told and measured, as the data set columns that its contract reads."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from wamserve.action_codec.errors import ContractError
from wamserve.action_codec.gripper import gripper_from_gripper
from wamserve.embodiments.contract import Block, Embodiment


def columns_from_rows(
    contract: Embodiment, actions: np.ndarray, states: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Commands and measured states under the column names from which the contract reads them back.

    actions: [T, A] raw units of the contract's reply. states: state name -> [T, D].
    """
    columns: dict[str, np.ndarray] = {}
    grippers = iter(contract.wire.reply.grippers)
    for block in contract.model.blocks:
        command = actions[:, block.start : block.stop]
        if block.gripper_source is not None:
            reply = next(grippers)
            command = gripper_from_gripper(command, reply.meaning, block.gripper_source.meaning)
        elif block.track or block.column_rotation is not None:
            raise ContractError(
                f"{contract.name}: block {block.name!r} cannot be recorded from commands",
                seen=block.kind,
                expected="joints, positions and grippers",
            )
        columns[_column(block, measured=False)] = np.asarray(command, np.float32)
        for state in contract.wire.states:
            if state.measures == block.name and (block.state_column or block.state_gripper_source):
                values = states[state.name]
                if state.gripper is not None and block.state_gripper_source is not None:
                    source = block.state_gripper_source
                    values = gripper_from_gripper(values, state.gripper.meaning, source.meaning)
                columns[_column(block, measured=True)] = np.asarray(values, np.float32)
    return columns


def _column(block: Block, measured: bool) -> str:
    """The data set's column for a block's command or measured state; a slice must start at 0."""
    source = block.state_gripper_source if measured else block.gripper_source
    spec = source.column if source is not None else (block.state_column if measured else block.column)
    match = re.fullmatch(r"([^\[\]]+)(?:\[0:\d+\])?", spec)
    if match is None:
        raise ContractError("a recorded column must begin at 0", seen=spec)
    return match.group(1)
