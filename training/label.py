"""What an oracle would do, asked at many moments: pictures with plans, no demonstration played out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wamserve.action_codec.actions import RawActions
from wamserve.action_codec.errors import WamError
from wamserve.clients.policy import Observation, Policy, Request
from wamserve.embodiments.adapters import encode_chunk
from wamserve.embodiments.canvas import Fit, Frame, frame
from wamserve.embodiments.contract import Embodiment, load
from wamserve.embodiments.units import chunk_normalizer
from wamserve.policy_server.world_model.vae import VideoVAE, crop_content
from wamserve.sim_eval.oracles.policy import PRIVILEGED, oracle_for
from wamserve.sim_eval.render import Profile
from wamserve.sim_eval.seeds import derive
from wamserve.sim_eval.task import Task
from wamserve.training.columns import columns_from_rows
from wamserve.training.crew import crew
from wamserve.training.demonstrate import disturbance_for
from wamserve.training.language import paraphrase
from wamserve.training.prepare import load_vae
from wamserve.training.prepared import HOLD_OUT, Meta, Window, latents_file, write_windows

AT_ONCE = 16  # scenes a process does before it hands in; pictures encoded together


@dataclass(frozen=True, eq=False)
class Moment:
    """What a robot saw, and the chunk the oracle would have answered with."""

    frame: Frame
    states: dict[str, np.ndarray]  # state name -> [D]
    plan: np.ndarray  # [chunk, A] raw units of the contract's reply
    instruction: str
    scene: int


@dataclass(frozen=True)
class Visits:
    """Where moments are taken from."""

    seed: int
    moments: int = 3  # of one scene
    every: int = 8  # control steps between them, as many as a policy will play of a chunk
    askew: float | None = None  # deviation of the rows where the oracle leads; None: that of a recorded push

    def __post_init__(self) -> None:
        for name in ("moments", "every"):
            if getattr(self, name) < 1:
                raise WamError(f"{name} must be 1 or more", seen=getattr(self, name), fix=f"--{name}")
        if self.askew is not None and self.askew < 0:
            raise WamError("askew is a deviation", seen=self.askew, expected=">= 0", fix="--askew")


def moments(
    task: Task, oracle: Policy, contract: Embodiment, scene: int, visits: Visits, leader: Policy | None
) -> Iterator[Moment]:
    """Moments of one scene, the first at its beginning.

    Between them `leader` acts: a policy in training shows the states that its own mistakes lead to. Without
    one the oracle acts, each time with an offset that carries the arm off its path.
    """
    spec = task.spec
    rng = np.random.default_rng(derive(visits.seed, spec.name, scene, "label"))
    instruction = paraphrase(spec.instruction, visits.seed, scene)
    task.reset(scene, derive(visits.seed, spec.name, scene))
    askew = disturbance_for(contract).size if visits.askew is None else visits.askew
    grippers = [gripper.index for gripper in contract.wire.reply.grippers]
    for number in range(visits.moments):
        images, states = task.render(), task.state()
        known = {PRIVILEGED + name: value for name, value in task.privileged().items()}
        seed = int(rng.integers(2**31))
        plan = _rows(oracle, Observation({}, {**states, **known}, instruction), seed)
        yield Moment(frame(contract.model.canvas, images), states, plan, instruction, scene)
        if number + 1 == visits.moments:
            break
        if leader is not None:
            rows = _rows(leader, Observation(images, states, instruction), seed)
        else:
            offset = rng.normal(0.0, askew, plan.shape[1:])
            offset[grippers] = 0.0
            rows = plan + offset
        for row in rows[: visits.every]:
            task.step(row)


def _rows(policy: Policy, seen: Observation, seed: int) -> np.ndarray:
    """[chunk, A] raw units of the reply."""
    chunk = policy.infer(Request(seen, seed=seed)).chunk
    if chunk is None:
        raise AssertionError("a policy answers with actions")
    return np.asarray(chunk.actions)


@dataclass(frozen=True)
class Scene:
    """Where one process finds a task, its oracle and whoever leads."""

    task: str
    contract: str
    profile: Profile
    vae: Path
    leader: Path | None  # checkpoint


def label(
    scenes: Sequence[Scene],
    count: int,
    folder: Path,
    visits: Visits,
    workers: int = 0,
    log: Callable[[str], None] = print,
) -> Meta:
    """Moments of `count` scenes of each task as a prepared folder of first frames.

    The tasks share one contract, VAE and render profile. The result is the same for any number of workers,
    which have one thread each; `workers=0` has this process's.
    """
    contract = load(scenes[0].contract)
    if count * len(scenes) < HOLD_OUT:
        raise WamError(
            "too few scenes: some are held out", seen=count * len(scenes), expected=f">= {HOLD_OUT}",
            fix="--scenes",
        )  # fmt: skip
    if workers < 0:
        raise WamError("workers are counted", seen=workers, expected=">= 0", fix="--workers")
    if visits.every > contract.wire.chunk:
        raise WamError(
            "nobody plays more than a chunk", seen=visits.every, expected=f"<= {contract.wire.chunk}",
            fix="--every",
        )  # fmt: skip
    for scene in scenes:
        oracle_for(scene.task, contract)
    normalizer = chunk_normalizer(contract.model)
    windows: list[Window] = []
    shape: tuple[int, ...] = ()
    fit: Fit | None = None
    jobs = [
        (number * count, scene, range(first, min(first + AT_ONCE, count)), visits)
        for number, scene in enumerate(scenes)
        for first in range(0, count, AT_ONCE)
    ]
    with latents_file(folder) as out, _pool(workers) as run:
        for (offset, scene, _, _), (found, latents) in zip(jobs, run(_labelled, jobs), strict=True):
            out.write(latents.tobytes())
            shape, fit = latents.shape[1:], found[0].frame.fit
            for each in found:
                rows = _chunk(contract, each)
                windows.append(
                    Window(normalizer.to_model(rows).values, offset + each.scene, each.instruction)
                )
            log(f"{scene.task}: {len(windows)} moments so far")
    assert fit is not None  # jobs is not empty
    return write_windows(folder, windows, Meta.of(contract, scenes[0].vae, shape, fit, scenes[0].profile))


def _chunk(contract: Embodiment, moment: Moment) -> RawActions:
    length = len(moment.plan)
    states = {name: np.repeat(value[None], length, axis=0) for name, value in moment.states.items()}
    return encode_chunk(contract, columns_from_rows(contract, moment.plan, states), 0)


@contextmanager
def _pool(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    if not workers:
        yield map
        return
    with crew(workers) as pool:
        yield pool.map


def _labelled(job: tuple[int, Scene, range, Visits]) -> tuple[list[Moment], np.ndarray]:
    """The moments of some scenes, and their first frames' latents float16 [N, C, 1, h, w]."""
    _, scene, numbers, visits = job
    task, oracle, contract, vae, leader = _opened(scene)
    found = [
        moment for number in numbers for moment in moments(task, oracle, contract, number, visits, leader)
    ]
    pixels = torch.from_numpy(np.stack([moment.frame.pixels for moment in found]))
    pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents = torch.cat([vae.encode_first_frame(part) for part in pixels.split(AT_ONCE)])
    fit = found[0].frame.fit
    latents = crop_content(latents, (fit.content_height, fit.content_width))
    return found, latents.float().numpy().astype(np.float16)


@lru_cache(maxsize=1)
def _opened(scene: Scene) -> tuple[Task, Policy, Embodiment, VideoVAE, Policy | None]:
    from wamserve.policy_server.load import load_policy
    from wamserve.sim_eval import catalog

    contract = load(scene.contract)
    leader = load_policy(scene.leader, embodiment=scene.contract) if scene.leader is not None else None
    task = catalog.make(scene.task, contract, scene.profile)
    return task, oracle_for(scene.task, contract), contract, load_vae(scene.vae), leader
