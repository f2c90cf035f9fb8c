"""One episode: the task on one side, the policy on the other, a virtual clock between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from wamserve.action_codec.errors import PolicyError
from wamserve.clients.player import ChunkPlayer, DelayTracker, StateOfRow, Strategy
from wamserve.clients.policy import Observation, Prediction, Request
from wamserve.clients.reply_layout import reply_layout
from wamserve.embodiments.contract import WireHalf
from wamserve.sim_eval import seeds
from wamserve.sim_eval.clock import Latency, VirtualClock, steps_of
from wamserve.sim_eval.oracles.policy import PRIVILEGED
from wamserve.sim_eval.task import ChunkRow, Episode, Task, WorkItem

# A question -> its answer and the milliseconds the policy took.
Ask = Callable[[Request], tuple[Prediction, float]]


@dataclass(frozen=True)
class Loop:
    """How the policy is asked."""

    horizon: int  # control steps between two questions
    strategy: Strategy = "switch"
    latency: Latency = field(default_factory=lambda: Latency(0.0))
    max_prefix_rows: int = 0  # committed rows the policy can freeze at a chunk's head
    privileged: bool = False  # send what only a simulator knows
    images: bool = True  # render and send the cameras
    keep_images: bool = True  # put them into the recording
    video: bool = False  # ask for the imagined video as well


def observe(task: Task, loop: Loop, now: float) -> Observation:
    """What the policy is shown at `now` seconds."""
    state = {name: np.asarray(value, np.float32) for name, value in task.state().items()}
    if loop.privileged:
        state |= {
            PRIVILEGED + name: np.atleast_1d(np.asarray(value, np.float64))
            for name, value in task.privileged().items()
        }
    return Observation(task.render() if loop.images else {}, state, task.spec.instruction, now)


def chunk_player(wire: WireHalf, loop: Loop, clock: VirtualClock) -> ChunkPlayer:
    """The robot's own player, on virtual time; a fixed latency is known to it from the start."""
    first = steps_of(loop.latency.fixed_ms or 0.0, wire.rate_hz) * clock.period
    return ChunkPlayer(
        reply_layout(wire),
        clock.period,
        strategy=loop.strategy,
        max_prefix_rows=loop.max_prefix_rows,
        state_of_row=state_of_row(wire),
        delay=DelayTracker(first=first),
        clock=clock,
    )


def state_of_row(wire: WireHalf) -> StateOfRow | None:
    """Which states an executed row of absolute targets leads to; None where rows are relative."""
    names = {state.name for state in wire.states}
    grippers = [gripper.index for gripper in wire.reply.grippers]
    where = {"joint_targets": "joint_position", "position_targets": "agent_pos"}.get(wire.reply.form)
    if where not in names:
        return None
    moving = [i for i in range(wire.reply.width) if i not in grippers]
    return lambda row: {where: row[moving]}


def rollout(task: Task, ask: Ask, item: WorkItem, loop: Loop) -> Episode:
    """Runs one episode to success or to the task's last step."""
    spec, wall = task.spec, time.perf_counter()
    sim_s = render_s = policy_s = 0.0
    session = f"{item.task}/{item.init}/{item.repeat}"
    trace = _Trace(task)
    mark = time.perf_counter()
    task.reset(item.init, item.init_seed)
    sim_s += time.perf_counter() - mark
    trace.see()
    clock = VirtualClock(spec.rate_hz)
    player = chunk_player(task.wire, loop, clock)
    arriving: tuple[int, Prediction] | None = None  # the answer on its way, and its place in the trace
    playable: list[int] = []  # chunks the player accepted, by their place in the trace
    next_ask, done = 0, task.success()

    def arrive() -> None:
        nonlocal arriving
        if arriving is not None and clock.step >= trace.rows[arriving[0]].ready:
            index, said = arriving
            assert said.chunk is not None
            if player.push(said.chunk):
                playable.append(index)
            arriving = None

    while clock.step < spec.max_steps and not done:
        arrive()  # before asking: an answer in hand lets the next question go out at this step
        if arriving is None and clock.step >= next_ask:
            mark = time.perf_counter()
            observation = observe(task, loop, clock())
            render_s += time.perf_counter() - mark
            request = player.request(
                observation,
                seed=seeds.request_seed(item.seed, clock.step),
                session=session,
                step=clock.step,
                want_video=loop.video,
            )
            mark = time.perf_counter()
            prediction, took_ms = ask(request)
            policy_s += time.perf_counter() - mark
            charged = loop.latency.charged_ms(took_ms)
            ready = clock.step + steps_of(charged, spec.rate_hz)
            arriving = (
                trace.answer(request, prediction, ready, charged, took_ms, loop.keep_images),
                prediction,
            )
            next_ask = clock.step + loop.horizon
        arrive()
        due = player.due()
        row = task.hold() if due.action is None else due.action
        mark = time.perf_counter()
        task.step(row)
        sim_s += time.perf_counter() - mark
        clock.tick()
        trace.did(row, playable[due.chunk - 1] if due.status == "playing" else -1)
        done = task.success()
    progress = [p for p in trace.progress if not np.isnan(p)]
    return Episode(
        item=item,
        instruction=spec.instruction,
        success=bool(done),
        steps=clock.step,
        final_progress=progress[-1] if progress else None,
        max_progress=max(progress) if progress else None,
        wall_s=time.perf_counter() - wall,
        sim_s=sim_s,
        render_s=render_s,
        policy_s=policy_s,
        chunks=trace.chunk_rows(),
        recording=trace.arrays(),
    )


class _Trace:
    """What happened, row by row; becomes the recording."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.progress: list[float] = []
        self.rows: list[ChunkRow] = []
        self._chunks: list[np.ndarray] = []
        self._images: list[dict[str, np.ndarray]] = []
        self._videos: list[np.ndarray] = []
        self._states: dict[str, list[np.ndarray]] = {}
        self._sim: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._from: list[int] = []

    def see(self) -> None:
        """Notes the state after a reset or a step."""
        self._sim.append(self._task.sim_state())
        self.progress.append(self._task.progress())
        for name, value in self._task.state().items():
            self._states.setdefault(name, []).append(np.asarray(value, np.float64))

    def did(self, row: np.ndarray, chunk: int) -> None:
        self._actions.append(np.asarray(row, np.float64))
        self._from.append(chunk)
        self.see()

    def answer(
        self, request: Request, said: Prediction, ready: int, charged: float, took: float, keep: bool
    ) -> int:
        if said.chunk is None:
            raise PolicyError("the policy answered without actions", seen=f"step {request.step}")
        rows = np.asarray(said.chunk.actions, np.float64)
        width = self._task.spec.action_width
        if rows.ndim != 2 or rows.shape[1] != width or not np.isfinite(rows).all():
            raise PolicyError(
                "the policy's chunk does not fit", seen=rows.shape, expected=f"finite [H, {width}]"
            )
        ledger = said.ledger
        self._chunks.append(rows)
        if keep and request.observation.images:
            self._images.append(dict(request.observation.images))
        if said.video is not None:
            self._videos.append(said.video)
        self.rows.append(
            ChunkRow(
                step=request.step,
                ready=ready,
                seed=said.seed,
                latency_ms=charged,
                wall_ms=took,
                infer_ms=ledger.infer_ms,
                queue_ms=ledger.queue_ms,
                forwards=ledger.forwards,
                batch=ledger.batch,
                rows_used=0,
            )
        )
        return len(self.rows) - 1

    def chunk_rows(self) -> tuple[ChunkRow, ...]:
        used = np.bincount([c for c in self._from if c >= 0], minlength=len(self.rows))
        return tuple(replace(row, rows_used=int(n)) for row, n in zip(self.rows, used, strict=True))

    def arrays(self) -> dict[str, np.ndarray]:
        """As named in store.py."""
        width = self._task.spec.action_width
        out = {
            "actions": np.array(self._actions).reshape(-1, width),
            "action_chunk": np.array(self._from, np.int64),
            "sim_states": np.array(self._sim),
            "progress": np.array(self.progress),
            "chunk_step": np.array([row.step for row in self.rows], np.int64),
            "chunk_ready": np.array([row.ready for row in self.rows], np.int64),
        }
        out |= {f"state/{name}": np.array(values) for name, values in self._states.items()}
        if self._chunks:
            out["chunk_actions"] = np.stack(self._chunks)
        if self._images:
            for name in self._images[0]:
                out[f"view/{name}"] = np.stack([images[name] for images in self._images])
        if self._videos:
            out["video"] = np.stack(self._videos)
        return out
