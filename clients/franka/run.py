"""`wam run franka`: a policy drives a Franka. A dry run unless told otherwise, and nothing moves unasked."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from wamserve.action_codec.errors import ContractError, WamError
from wamserve.clients.player import Strategy

# DROID's reset pose, rad.
HOME = (0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0)
HOME_SPEED = 0.3  # rad/s


@dataclass(frozen=True)
class FrankaOptions:
    """A run, as asked for. Fields are the flags of `wam run franka`."""

    policy: str  # ws://HOST:8000
    instruction: str  # what the policy is to do
    robot_ip: str = ""  # the arm's address; a dry run needs none, and starts at DROID's reset pose
    dry_run: bool = True  # nothing is connected or moved; --no-dry-run drives the arm
    backend: Literal["position", "impedance"] = "position"
    embodiment: str = "droid_lerobot"
    arm: Literal["portable", "panda", "fr3"] = "portable"  # whose limits; portable fits both
    gripper: str = "dry-run"  # franka, robotiq:/dev/ttyUSB0 or dry-run
    cameras: tuple[str, ...] = ()  # VIEW=SPEC: v4l2:/dev/video0, realsense:SERIAL, file:CLIP, grey
    gains: Literal["droid", "stiff"] = "droid"  # of the impedance backend
    strategy: Strategy = "switch"  # how a newer chunk takes over
    replan_rows: int = 8  # control steps between questions
    seconds: float | None = None  # length of the run; none: until it is stopped
    home: bool = False  # go to DROID's reset pose first
    velocity: float = 1.0  # rad/s, any joint; 0.3 for first runs
    tcp_speed: float = 0.25  # m/s
    workspace_low: tuple[float, float, float] = (0.25, -0.45, 0.02)  # m, in the arm's base frame
    workspace_high: tuple[float, float, float] = (0.75, 0.45, 0.90)
    tool: float = 0.1034  # m from the flange to the fingertips; 0.1745 for a Robotiq 2F-85
    realtime: bool = True  # --no-realtime accepts a kernel without PREEMPT_RT: for simulators
    record: Path | None = None  # folder of the run's record; none: runs/franka-DATE-TIME
    token: str = ""  # bearer token of the server


def run_franka(options: tyro.conf.OmitArgPrefixes[FrankaOptions]) -> int:
    """Drive a Franka by a policy across the network; without --no-dry-run, on paper only."""
    return run(options)


def run(options: FrankaOptions, confirm: Callable[[str, str], None] | None = None) -> int:
    """0 where the run ended as asked (time over, stopped by the operator), 1 where something stopped it."""
    from wamserve.clients.franka import operator
    from wamserve.clients.franka.gripper import DryRunHand, GripperWorker, hand_named
    from wamserve.clients.franka.pilot import Pilot
    from wamserve.clients.franka.priority import ordinary, punctual
    from wamserve.clients.franka.record import Recorder
    from wamserve.clients.franka.report import text
    from wamserve.clients.franka.session import ArmSession
    from wamserve.embodiments.contract import load

    confirm = confirm or operator.confirm
    contract = load(options.embodiment)
    limits = limits_of(options)
    arm = arm_of(options, limits)
    where = "dry run" if options.dry_run else options.robot_ip
    print(f"{where}, {options.backend} backend, policy {options.policy}")
    network, pipe = start_network(options)  # before our priority, which it must not inherit
    if not options.dry_run and (why := punctual()):
        print(f"wam run franka: {why}")
    try:
        state = arm.connect()
        if trouble := arm.needs_recovery():
            confirm(f"The arm reports {trouble}. Look at it, clear its surroundings.", "recover")
            arm.recover()
        pilot = Pilot(contract, limits, arm.drive, clock=time.monotonic, strategy=options.strategy)
        if not options.dry_run:
            confirm(preview(options, state.q, pilot.governor.tool_at), "move")
        if options.home:
            arm.go_to(np.array(HOME), HOME_SPEED)
        (reply_gripper,) = contract.wire.reply.grippers
        hand = DryRunHand() if options.dry_run else hand_named(options.gripper, options.robot_ip)
        worker = GripperWorker(hand, reply_gripper.meaning)
        folder = options.record or Path("runs") / f"franka-{datetime.now():%Y%m%d-%H%M%S}"
        recorder = Recorder(folder)
        recorder.event("run", options=vars(options), limits=limits, wire=contract.wire_hash)
        status = operator.StatusLine()
        session = ArmSession(pilot, arm, worker, pipe, recorder, show=status.show)
        found: dict[str, Any] = {}
        try:
            with operator.StopKeys(session.stop):
                found = session.run(options.seconds)
        finally:
            status.close()
            worker.close()
            recorder.close(found)
    finally:
        arm.close()
        ordinary()
        stop_network(network, pipe)
    print(text(found))
    print(f"recorded in {folder}{export(options, recorder.steps(), folder)}")
    return 0 if found["stopped_by"].startswith("operator") else 1


def export(options: FrankaOptions, steps: dict[str, np.ndarray], folder: Path) -> str:
    """Writes FOLDER/lerobot where pyarrow is installed; what there is to say about it."""
    from wamserve.clients.franka.lerobot import columns_of, write_lerobot
    from wamserve.embodiments.contract import load

    contract = load(options.embodiment)
    try:
        columns = columns_of(steps, contract)
        write_lerobot(
            folder / "lerobot", columns, contract.wire.rate_hz, contract.wire.robot, options.instruction
        )
    except ModuleNotFoundError:
        return " (no LeRobot data set: pip install pyarrow)"
    except WamError as error:
        return f" (no LeRobot data set: {error})"
    return ", and as a LeRobot data set in its folder lerobot"


def limits_of(options: FrankaOptions) -> Any:
    """The run's SafetyLimits. ContractError for looser ones than the arm's."""
    from wamserve.clients.franka.backends import limits_for
    from wamserve.clients.franka.limits import ARMS, Box

    return limits_for(
        options.backend,
        arm=ARMS[options.arm],
        velocity=options.velocity,
        tcp_speed=options.tcp_speed,
        workspace=Box(options.workspace_low, options.workspace_high),
        tool=options.tool,
    )


def arm_of(options: FrankaOptions, limits: Any) -> Any:
    """The ArmBackend asked for, not connected yet."""
    from wamserve.clients.franka.arm import IMPEDANCE, POSITION, DryRunArm
    from wamserve.clients.franka.backends import GAINS, ImpedanceArm, PositionArm

    if options.dry_run:
        drive = {"position": POSITION, "impedance": IMPEDANCE}[options.backend]
        return DryRunArm(drive, np.array(HOME), lag=0.05)
    if not options.robot_ip:
        raise ContractError("an arm has an address", fix="--robot-ip 172.16.0.2, or --dry-run")
    if options.backend == "position":
        return PositionArm(options.robot_ip, limits, realtime=options.realtime)
    return ImpedanceArm(options.robot_ip, limits, gains=GAINS[options.gains], realtime=options.realtime)


def cameras_of(options: FrankaOptions) -> dict[str, str]:
    """View name -> camera; a dry run without cameras looks at grey."""
    from wamserve.embodiments.contract import load

    named = {}
    for item in options.cameras:
        view, equals, spec = item.partition("=")
        if not equals:
            raise WamError("a camera is VIEW=SPEC", seen=item, fix="--cameras wrist=v4l2:/dev/video0")
        named[view] = spec
    if options.dry_run and not named:
        named = {image.name: "grey" for image in load(options.embodiment).wire.images}
    return named


def start_network(options: FrankaOptions) -> tuple[Any, Any]:
    """The network process and our end of its pipe."""
    from wamserve.clients.franka.network import NetworkPlan, run_network

    plan = NetworkPlan(
        uri=options.policy,
        embodiment=options.embodiment,
        instruction=options.instruction,
        cameras=cameras_of(options),
        replan_rows=options.replan_rows,
        options={"token": options.token} if options.token else {},
    )
    spawn = multiprocessing.get_context("spawn")  # a fork would share the arm's sockets
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=run_network, args=(plan, theirs), name="wam-network", daemon=True)
    process.start()
    theirs.close()
    return process, ours


def stop_network(process: Any, pipe: Any) -> None:
    """Ends the network process, kindly for two seconds."""
    with suppress(OSError):
        pipe.send(None)
    process.join(2.0)
    if process.is_alive():
        process.terminate()
        process.join(2.0)
    pipe.close()


def preview(options: FrankaOptions, q: np.ndarray, tool_at: Callable[[np.ndarray], np.ndarray]) -> str:
    """What is about to move, for the person who says yes. MotionRefused where the way home is too low."""
    from wamserve.clients.franka.governor import MotionRefused

    lines = [f"The arm at {options.robot_ip} stands at joints {np.round(q, 2).tolist()} rad."]
    if options.home:
        path = q + np.linspace(0.0, 1.0, 50)[:, None] * (np.array(HOME) - q)
        lowest = float(tool_at(path)[:, 2].min())
        if lowest < options.workspace_low[2]:
            raise MotionRefused(
                "the straight way home leads below the table's height",
                seen=f"{lowest:.3f} m",
                expected=f"{options.workspace_low[2]} m",
                fix="raise the arm by hand first",
            )
        turn = float(np.abs(np.array(HOME) - q).max())
        before, after = (np.round(tool_at(pose), 2).tolist() for pose in (q, np.array(HOME)))
        lines += [
            f"It will go to {np.round(HOME, 2).tolist()} first,",
            f"up to {turn:.2f} rad in {turn / HOME_SPEED:.0f} s,",
            f"tool from {before} to {after} m, lowest {lowest:.2f} m.",
        ]
    lines.append(
        f"Then the policy moves it: {options.instruction!r}, up to {options.velocity:g} rad/s and "
        f"{options.tcp_speed:g} m/s, inside {options.workspace_low} .. {options.workspace_high} m."
    )
    still = " and does not move; name one with --gripper" if options.gripper == "dry-run" else ""
    lines.append(f"The gripper is {options.gripper}{still}.")
    lines.append("Space, Enter, q or Ctrl-C stop it. Keep the emergency stop in your hand.")
    return "\n".join(lines)
