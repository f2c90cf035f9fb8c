"""`wam run`: a policy server at work in a terminal, on a recorded episode or in a gymnasium environment.

wam run ws://127.0.0.1:8000 --episode droid_episode --images wrist observation.image.wrist_image_left ...
wam run ws://127.0.0.1:8000 --gym gym_pusht/PushT-v0 --gym-import gym_pusht --images top pixels ...
"""

from __future__ import annotations

import dataclasses
import json as jsonlib
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from wamserve.action_codec.errors import ContractError, PolicyLate, PolicyOverloaded, RequestError
from wamserve.clients.adapters.gym import GymMap, Pace, Step, Turn, drive
from wamserve.clients.background import BackgroundPolicy
from wamserve.clients.client import PolicyClient
from wamserve.clients.live import RunLog, RunReport
from wamserve.clients.plain import DIALECTS
from wamserve.clients.player import ChunkPlayer, StateOfRow, Strategy
from wamserve.clients.recorded import RecordedEnv, RecordedEpisode, RecordedMap, needed
from wamserve.clients.reply_layout import reply_layout
from wamserve.clients.wam_v1 import Hello, Loading
from wamserve.embodiments import contract as contracts
from wamserve.embodiments.contract import Embodiment

DialectName = Literal["", "cosmos", "openpi-droid", "openpi-libero", "roboarena", "vllm-omni"]


def run(
    policy: Annotated[str, tyro.conf.Positional],
    /,
    *,
    episode: Path | None = None,
    index: int | None = None,
    gym: str = "",
    gym_import: tuple[str, ...] = (),
    gym_options: dict[str, str] | None = None,
    embodiment: str = "",
    plain: DialectName = "",
    images: dict[str, str] | None = None,
    states: dict[str, str] | None = None,
    actions: tuple[str, ...] = (),
    instruction: str = "",
    turn: Turn = "as_is",
    replan: int = 8,
    strategy: Strategy = "switch",
    wait: bool = False,
    charge_ms: float = 0.0,
    seed: int = 0,
    steps: int | None = None,
    token_file: Path | None = None,
    jpeg: int | None = None,
    json: Path | None = None,
) -> int:
    """Show a policy server at work: live rate, latency and chunk age, and a report.

    Args:
        policy: the server, ws://HOST:PORT or wss://...
        episode: LeRobot folder whose frames are sent in real time, as a robot would; nothing is moved.
        index: episode of the folder (default: the first).
        gym: id of a gymnasium environment to drive instead; the world waits for the first chunk only.
        gym_import: packages that register the environment.
        gym_options: keyword arguments of gymnasium.make, as KEY VALUE pairs.
        embodiment: contract of the robot; needed on plain wires, otherwise checked against the server's.
        plain: dialect of a server without wam.v1.
        images: VIEW KEY pairs: which video or observation is which view of the contract.
        states: STATE KEY pairs.
        actions: recorded columns that make up a reply row, to compare with what is played.
        instruction: what to do (default: the recorded task).
        turn: what is done to every image of the environment before it is sent.
        replan: rows played before the next question.
        strategy: how a chunk follows the one before.
        wait: let the recording stand still while the server thinks, instead of going on in real time.
        charge_ms: time an answer takes on the clock of a world that waits: an environment, or --wait.
        seed: of the environment and the policy.
        steps: control steps at most.
        token_file: file with the server's token.
        jpeg: quality 1..95: send images as JPEG where the server agrees.
        json: write the report here too.
    """
    if (episode is None) == (not gym):
        raise RequestError("say what to run against", fix="--episode FOLDER, or --gym ID")
    dialect = None
    if plain:
        dialect = dataclasses.replace(DIALECTS[plain], ignore=("seed",))
        print(f"a plain {plain} server: seeds are not carried")
    own = contracts.load(embodiment) if embodiment else None
    token = token_file.read_text().strip() if token_file else ""

    def loading(progress: Loading) -> None:
        print(f"the server is not warm yet: {progress.stage} {100 * progress.fraction:.0f} %", flush=True)

    with PolicyClient(
        policy, plain=dialect, contract=own, token=token, jpeg_quality=jpeg, on_loading=loading
    ) as client:
        print(f"connecting to {policy} ...", flush=True)
        hello = client.connect()
        contract = own or served_contract(hello)
        print(_served(hello, contract), flush=True)
        player_options: dict[str, Any] = {}
        if isinstance(hello, Hello):
            player_options["max_prefix_rows"] = hello.max_prefix_rows
        if strategy == "roll_forward":
            player_options["state_of_row"] = joint_state_of_row(contract)
        views, vectors = images or {}, states or {}
        pace = Pace(replan, charge_ms / 1e3, strategy, player_options)
        period = 1.0 / contract.wire.rate_hz
        if episode is not None:
            recorded = RecordedEpisode(episode, index, RecordedMap(views, vectors, actions), instruction)
        if episode is not None and wait:
            env: Any = RecordedEnv(recorded, stride_of(recorded, contract))
            same = GymMap({v: v for v in views}, {v: v for v in vectors}, recorded.instruction, period)
            most, compare = steps or len(recorded), bool(actions)
            report = in_gym(client, env, same, contract, pace, seed=seed, steps=most, compare=compare)
        elif episode is not None:
            report = replay(
                client,
                recorded,
                contract,
                replan=replan,
                strategy=strategy,
                seed=seed,
                steps=steps,
                **player_options,
            )
        else:
            gymnasium = needed("gymnasium", "environments")
            for name in gym_import:
                needed(name, "environments")
            env = gymnasium.make(gym, **(gym_options or {}))
            mapping = GymMap(views, vectors, instruction, period, turn)
            report = in_gym(client, env, mapping, contract, pace, seed=seed, steps=steps or 10_000)
            env.close()
    print("\n" + "\n".join(report.lines()))
    if json is not None:
        json.write_text(jsonlib.dumps(report.as_json(), indent=2) + "\n")
        print(f"report: {json}")
    return 0


def replay(
    client: PolicyClient,
    recorded: RecordedEpisode,
    contract: Embodiment,
    *,
    replan: int,
    strategy: Strategy,
    seed: int,
    steps: int | None,
    **player_options: Any,
) -> RunReport:
    """Sends a recorded episode in real time and plays what comes back, against what was done then."""
    stride, period = stride_of(recorded, contract), 1.0 / contract.wire.rate_hz
    clock = time.monotonic
    player = ChunkPlayer(
        reply_layout(contract.wire), period, strategy=strategy, clock=clock, **player_options
    )
    title = f"{recorded.recording.path.name}, episode {recorded.recording.index}: {recorded.instruction}"
    session = f"replay-{seed}-{recorded.recording.index}"
    since, step, begin = replan, 0, 0.0
    with RunLog(title, period, player) as log, BackgroundPolicy(client) as asking:
        for moment in recorded.moments():
            if moment.row % stride:
                continue
            if step == (steps or -1):
                break
            if step == 0:
                begin = clock()  # with the first frame in hand: opening the videos takes a while
            tick = begin + step * period
            if (ahead := tick - clock()) > 0:
                time.sleep(ahead)
            if asking.free and since >= replan:
                now = dataclasses.replace(moment.observation, time=tick)
                asking.ask(player.request(now, session=session, step=step, seed=seed + step))
                since = 0
            try:
                prediction = asking.take()
            except (PolicyLate, PolicyOverloaded) as error:
                log.failure(error)
            else:
                if prediction is not None and prediction.chunk is not None:
                    player.push(prediction.chunk)
                    log.answer(asking.round_trip_ms or 0.0, prediction.ledger)
            due = player.due()
            apart = None
            if due.action is not None and moment.action is not None:
                apart = float(np.abs(due.action - moment.action).mean())
            log.step(due, clock() - tick, apart)
            step, since = step + 1, since + 1
        return log.report()


def stride_of(recorded: RecordedEpisode, contract: Embodiment) -> int:
    """Recorded rows per control step. ContractError where that is no whole number."""
    if recorded.rate_hz % contract.wire.rate_hz:
        raise ContractError(
            "the episode cannot be thinned to the control rate",
            seen=f"{recorded.rate_hz} Hz",
            expected=f"a multiple of {contract.wire.rate_hz} Hz",
        )
    return recorded.rate_hz // contract.wire.rate_hz


def in_gym(
    client: PolicyClient,
    env: Any,
    mapping: GymMap,
    contract: Embodiment,
    pace: Pace,
    *,
    seed: int,
    steps: int,
    compare: bool = False,
) -> RunReport:
    """One episode of an environment, shown live. `compare`: minus the reward is an action error."""
    logs: list[RunLog] = []

    def meet(player: ChunkPlayer) -> None:
        logs.append(RunLog(f"{env}: {mapping.instruction}", mapping.period, player).__enter__())

    def watch(step: Step) -> None:
        if step.round_trip_ms is not None and step.ledger is not None:
            logs[0].answer(step.round_trip_ms, step.ledger)
        logs[0].step(step.due, error=-step.reward if compare else None)

    try:
        episode = drive(
            env,
            client,
            mapping,
            reply_layout(contract.wire),
            pace,
            seed=seed,
            max_steps=steps,
            watch=watch,
            meet=meet,
        )
    finally:
        for log in logs:
            log.__exit__(None, None, None)
    if not compare:
        said = {None: "not told", True: "yes", False: "no"}[episode.success]
        print(f"\nepisode       {episode.ended}, success: {said}, reward {episode.total_reward:.3f}")
    return logs[0].report()


def served_contract(hello: Hello | dict[str, Any]) -> Embodiment:
    """Our contract of the served name. ContractError where it is not the one that is served."""
    if not isinstance(hello, Hello):
        raise ContractError("a plain server does not say which robot it serves", fix="--embodiment NAME")
    contract = contracts.load(hello.embodiment)
    if contract.wire_hash != hello.wire_sha256:
        raise ContractError(
            f"the server's {hello.embodiment} is not ours",
            seen=hello.wire_sha256[:12],
            expected=contract.wire_hash[:12],
        )
    return contract


def joint_state_of_row(contract: Embodiment) -> StateOfRow:
    """Where an executed row of joint targets leaves the measured joints. ContractError for other replies."""
    grippers = {gripper.index for gripper in contract.wire.reply.grippers}
    joints = [column for column in range(contract.wire.reply.width) if column not in grippers]
    known = {state.name: state.dim for state in contract.wire.states}
    if contract.wire.reply.form != "joint_targets" or known.get("joint_position") != len(joints):
        raise ContractError(
            f"rows of {contract.name} do not say which state they lead to",
            seen=contract.wire.reply.form,
            expected="joint_targets and a state joint_position",
            fix="--strategy switch",
        )
    return lambda row: {"joint_position": row[joints]}


def _served(hello: Hello | dict[str, Any], contract: Embodiment) -> str:
    if not isinstance(hello, Hello):
        return f"plain server, {contract.name} taken on your word"
    weights = str(hello.card.get("weights_sha256", ""))[:12] or "not told"
    return (
        f"{hello.server}: {hello.embodiment}, wire {hello.wire_sha256[:12]}, "
        f"model {hello.model_sha256[:12]}, weights {weights}, "
        f"{hello.chunk_rows} rows at {1 / hello.period:g} Hz"
    )
