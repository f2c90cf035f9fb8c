"""Makes whole run directories out of a toy task whose every number is known: a square on a grey floor."""

import sys

import numpy as np

from wamserve.embodiments.contract import load
from wamserve.sim_eval.protocol import LoopProtocol, PolicyIdentity, ProtocolCard
from wamserve.sim_eval.store import RunStore
from wamserve.sim_eval.task import ChunkRow, Episode, TaskSpec, WorkItem

SIZE = 128  # pixels of the one view "top", as the pusht contract sends it
SIDE = 32  # pixels of the square
HORIZON = 8  # rows per chunk
RATE_HZ = 10.0


def toy_spec(name="toy/Push", **changes):
    fields = dict(
        name=name,
        instruction=f"push the square in {name}",
        contract="pusht",
        rate_hz=RATE_HZ,
        max_steps=24,
        settle_steps=0,
        views=(("top", SIZE, SIZE),),
        image_orientation="upright",
        states=(("position", 2),),
        action_width=2,
        init_states="seeded",
        init_count=None,
        simulator="toy 1.0",
        progress="coverage",
    )
    return TaskSpec(**{**fields, **changes})


def toy_frame(position, brightness=230):
    """A square at `position` (column, row) on grey, uint8 [SIZE, SIZE, 3]."""
    frame = np.full((SIZE, SIZE, 3), 60, np.uint8)
    x, y = (int(v) for v in np.clip(np.round(position), 0, SIZE - SIDE))
    frame[y : y + SIDE, x : x + SIDE] = (brightness, 90, 40)
    return frame


def toy_card(policy="alpha", tasks=("toy/Push",), inits=10, seed=0, repeats=1, horizon=4, **loop):
    return ProtocolCard(
        suite="toy",
        tasks=tuple(toy_spec(name) for name in tasks),
        init_states=tuple(range(inits)),
        repeats=repeats,
        seed=seed,
        seed_rule="run seed + 1000 * init + repeat",
        contract="pusht",
        contract_model_sha256=load("pusht").model_hash,
        contract_wire_sha256=load("pusht").wire_hash,
        policy=PolicyIdentity(spec=f"toy:{policy}", name=policy, weights_sha256="c" * 64),
        loop=LoopProtocol(replan_horizon=horizon, strategy="replace", latency=loop.get("latency", "0")),
        versions={"toy": "1.0"},
    )


def toy_episode(item, success, imagine=True, horizon=4, latency_ms=80.0, steps=12):
    """An episode whose square moves right by 4 px per step; imagination lags 4 px behind."""
    rng = np.random.default_rng(item.seed)
    start = np.array([2.0, rng.integers(0, SIZE - SIDE)])
    actions = np.tile([4.0, 0.0], (steps, 1))
    positions = start + np.concatenate([[[0.0, 0.0]], np.cumsum(actions, axis=0)])
    final = 0.97 if success else 0.3 + 0.4 * rng.random()
    progress = np.linspace(0, final, steps + 1)
    queries = list(range(0, steps, horizon))
    video = np.stack(
        [
            np.stack([toy_frame(positions[q] + [4.0 * max(k - 1, 0), 0]) for k in range(HORIZON + 1)])
            for q in queries
        ]
    )
    recording = {
        "actions": actions,
        "action_chunk": np.repeat(np.arange(len(queries)), horizon)[:steps],
        "sim_states": positions,
        "progress": progress,
        "state/position": positions,
        "chunk_step": np.array(queries),
        "chunk_ready": np.array(queries),
        "chunk_actions": np.tile([4.0, 0.0], (len(queries), HORIZON, 1)),
        "view/top": np.stack([toy_frame(positions[q]) for q in queries]),
    }
    if imagine:
        recording["video"] = video
    chunks = tuple(
        ChunkRow(
            step=q, ready=q, seed=item.seed, latency_ms=latency_ms, wall_ms=latency_ms + i,
            infer_ms=latency_ms, queue_ms=1.0, forwards=8, batch=2, rows_used=min(horizon, steps - q),
        )
        for i, q in enumerate(queries)
    )  # fmt: skip
    return Episode(
        item=item, instruction=f"push the square in {item.task}", success=success, steps=steps,
        final_progress=float(progress[-1]), max_progress=float(progress.max()), wall_s=1.5, sim_s=0.5,
        render_s=0.25, policy_s=0.6, chunks=chunks, recording=recording,
    )  # fmt: skip


def toy_run(path, outcomes, policy="alpha", imagine=True, finish=True, seed=0, steps=12, **card):
    """A run directory. `outcomes`: task -> success of each initial state."""
    inits = max(len(rows) for rows in outcomes.values())
    protocol = toy_card(policy, tuple(outcomes), inits, seed=seed, **card)
    run = RunStore.create(path, protocol, {"policy": policy}, sum(len(rows) for rows in outcomes.values()))
    for task, rows in outcomes.items():
        for init, success in enumerate(rows):
            item = WorkItem(task, init, 0, seed=seed + 1000 * init)
            run.add(toy_episode(item, bool(success), imagine, protocol.loop.replan_horizon, steps=steps))
    if finish:
        run.finish()
    return run


class ToyTask:
    """The toy world behind the recordings: its state is the square's position."""

    def __init__(self, spec, shift=0.0):
        self.spec, self.shift, self.at, self.closed = spec, shift, None, False

    def restore(self, sim_state):
        self.at = sim_state + [self.shift, 0]

    def render(self):
        return {"top": toy_frame(self.at)}

    def success(self):
        return bool(self.at[0] >= 50.0)

    def close(self):
        self.closed = True


def contents(path):
    """Everything a run says, timings apart."""
    with RunStore.open(path) as run:
        rows = [
            (row.key, row.seed, row.success, row.steps, row.final_progress, row.max_progress)
            for row in run.episodes()
        ]
        arrays = [run.recording(row) for row in run.episodes()]
        asked = [[(c.step, c.ready, c.seed, c.rows_used) for c in run.chunks(r.id)] for r in run.episodes()]
    return rows, arrays, asked


def same(path, other):
    """Asserts that two runs say the same."""
    a, b = contents(path), contents(other)
    assert a[0] == b[0]
    assert a[2] == b[2]
    for left, right in zip(a[1], b[1], strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def command(run, episodes, workers=0):
    """A short evaluation as a person types it."""
    return [
        *(sys.executable, "-m", "wam", "eval", "pusht", "--policy", "noop", "--episodes", str(episodes)),
        *("--workers", str(workers), "--max-steps", "24", "--replan-horizon", "4", "--run", str(run)),
    ]
