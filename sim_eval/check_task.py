"""`wam check task NAME`: is the task what it says, can it be solved, and does a broken convention show?

Every check runs real episodes. A convention that can be broken without a drop in success is one that a
score would not protect, so that is a failure of the task, not of the policy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wamserve.action_codec.errors import ContractError, TaskError, WamError
from wamserve.clients.policy import Policy, Prediction, Request
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval import catalog, policies, seeds
from wamserve.sim_eval.check_fit import check_fit
from wamserve.sim_eval.mistakes import Broken, Images, action_mistakes, image_mistakes
from wamserve.sim_eval.oracles.pick_place import OSC_RADIANS
from wamserve.sim_eval.oracles.policy import oracle_for
from wamserve.sim_eval.oracles.seeing import SeeingPolicy, find
from wamserve.sim_eval.rollout import Loop
from wamserve.sim_eval.task import Episode, WorkItem
from wamserve.sim_eval.worker import MakeTask
from wamserve.sim_eval.workers import Crew, Here

SEEING = ("robosuite/Lift", "two_cubes/red", "two_cubes/green")
# The oracle's least success rate where it does not always succeed.
LEAST = {"libero_spatial": 0.5, "libero_object": 0.5}
COLLAPSED = 0.25  # a broken convention may still succeed this often, by luck
LOOKED_AT = 40  # initial states from which the most telling ones are taken
TURN = 0.25  # rad that an episode must turn the hand for a mistake in rotations to show


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    name: str
    passed: bool | None  # None: does not apply
    detail: str


def check_task(
    name: str, contract_name: str | None = None, episodes: int = 4, seed: int = 0
) -> Iterator[Finding]:
    """The findings of one task, as they are made."""
    (name,) = catalog.task_names(name)
    contract = catalog.contract_of(name, contract_name)
    if contract is None:
        raise TaskError(f"{name} has no contract to check", fix="--contract NAME")
    make = MakeTask(contract_name, "fast")
    with contextlib.closing(Here(make)) as here:
        try:
            ((spec, wire),) = here.describe([name], True)
            yield Finding("delivers what it declares", True, f"{len(spec.views)} views, {spec.simulator}")
        except WamError as error:
            yield Finding("delivers what it declares", False, str(error))
            return
        noop = policies.NoopPolicy(contract)
        yield _refuses_another_rate(spec, wire, contract)
        items = [_item(name, init, seed) for init in range(episodes)]
        yield _deterministic(here, make, contract, items[:2])
        rate = _rate(here, noop, Loop(contract.wire.chunk, images=False), items)
        yield Finding("doing nothing fails", rate == 0, f"{rate:.0%} of {episodes}")
        yield from _oracle(here, name, contract, items)
        yield from _pictures(here, name, contract, items)


def _item(name: str, init: int, seed: int) -> WorkItem:
    return WorkItem(name, init, 0, seeds.episode_seed(seed, name, init, 0), seeds.init_seed(seed, name, init))


def _rate(here: Here, policy: Policy, loop: Loop, items: Sequence[WorkItem]) -> float:
    return _share(list(here.run(policy, loop, items)))


def _share(episodes: Sequence[Episode]) -> float:
    return float(np.mean([episode.success for episode in episodes]))


def _refuses_another_rate(spec: Any, wire: Any, contract: Embodiment) -> Finding:
    """A policy that declares another control rate must not get as far as the first step."""
    other = replace(contract, wire=replace(contract.wire, rate_hz=contract.wire.rate_hz * 2))
    declared = policies.Facts(contract.name, other.wire_hash, other.model_hash)
    try:
        check_fit(spec, wire, declared)
    except ContractError as error:
        return Finding("refuses a policy of another rate", True, str(error)[:90])
    return Finding("refuses a policy of another rate", False, "it was let in")


class _Random:
    """Seeded random rows around holding still."""

    def __init__(self, contract: Embodiment) -> None:
        self._noop = policies.NoopPolicy(contract)
        self._scale = {"position_targets": 60.0, "joint_targets": 0.1}.get(contract.wire.reply.form, 0.5)

    def infer(self, request: Request) -> Prediction:
        said = self._noop.infer(request)
        assert said.chunk is not None
        rows = said.chunk.actions
        rng = np.random.default_rng(request.seed)
        return replace(said, chunk=replace(said.chunk, actions=rows + rng.normal(0, self._scale, rows.shape)))

    def reset(self, session: str = "") -> None: ...


def _deterministic(here: Here, make: MakeTask, contract: Embodiment, items: list[WorkItem]) -> Finding:
    """The first episode again after another one, and once more in another process: bit for bit."""
    name = "reset, step and pictures repeat, here and in another process"
    policy, loop = _Random(contract), Loop(contract.wire.chunk)
    first, again = items[0], [items[-1], items[0]]
    runs = {"here": next(iter(here.run(policy, loop, [first])))}
    runs["after another episode"] = list(here.run(policy, loop, again))[-1]
    with contextlib.closing(Crew(make, 1)) as crew:
        runs["in another process"] = next(iter(crew.run(policy, loop, [first])))
    for label, episode in runs.items():
        different = _differs(runs["here"], episode)
        if different:
            return Finding(name, False, f"{different} differs {label}")
    return Finding(name, True, f"{runs['here'].steps} steps")


def _differs(a: Episode, b: Episode) -> str:
    names = [
        key for key in a.recording if not np.array_equal(a.recording[key], b.recording[key], equal_nan=True)
    ]
    return ", ".join(names)


def _oracle(here: Here, name: str, contract: Embodiment, items: list[WorkItem]) -> Iterator[Finding]:
    try:
        oracle = oracle_for(name, contract)
        if not _knows(here, name):
            raise TaskError(f"no oracle knows {name}")
    except TaskError as error:
        yield Finding("the oracle succeeds", None, str(error))
        return
    horizon = min(8, contract.wire.chunk)
    loop = Loop(horizon, privileged=True, images=False)
    episodes = list(here.run(oracle, loop, items))
    rate, least = _share(episodes), LEAST.get(name, LEAST.get(name.partition("/")[0], 1.0))
    yield Finding("the oracle succeeds", rate >= least, f"{rate:.0%} of {len(items)}")
    if rate < least:
        return
    task = here.task(name)
    full = task.spec
    for mistake, rows in action_mistakes(contract).items():
        if mistake.startswith("rotation") and (turn := _least_turn(episodes)) < TURN:
            # A round object is taken as the hand comes: rotations that are hardly used cannot be wrong.
            detail = f"an episode here turns the hand by only {turn:.2f} rad; choose a task that turns it"
            yield Finding(f"{mistake}: collapses", None, detail)
            continue
        policy = Broken(oracle, rows=rows)
        if mistake.startswith("rate"):
            # Slowness shows in time: whole chunks, and no more than twice the steps the episode really needs.
            slow, shares = replace(loop, horizon=contract.wire.chunk), []
            for item, episode in zip(items, episodes, strict=True):
                task.spec = replace(full, max_steps=min(2 * episode.steps, full.max_steps))
                shares.append(_rate(here, policy, slow, [item]))
            task.spec = full
            broken = float(np.mean(shares))
        else:
            broken = _rate(here, policy, loop, items)
        yield Finding(f"{mistake}: collapses", broken <= COLLAPSED * rate, f"{broken:.0%} against {rate:.0%}")


def _least_turn(episodes: Sequence[Episode]) -> float:
    """rad: the whole way the hand is told to turn, in the successful episode that turns it least."""
    return min(
        OSC_RADIANS * float(np.abs(episode.recording["actions"][:, 3:6]).sum())
        for episode in episodes
        if episode.success
    )


def _knows(here: Here, name: str) -> bool:
    task = here.task(name)
    task.reset(0, 0)
    return bool(task.privileged())


def _pictures(here: Here, name: str, contract: Embodiment, items: list[WorkItem]) -> Iterator[Finding]:
    if name == "pusht/PushT":
        yield from _finger_is_where_it_says(here, name, items)
        return
    if name not in SEEING:
        yield Finding("image conventions", None, "no policy that sees is scripted for this task")
        return
    loop, items = Loop(8), _telling(here, name, len(items))
    rate = _rate(here, SeeingPolicy(contract), loop, items)
    yield Finding("a policy that sees succeeds", rate == 1.0, f"{rate:.0%} of {len(items)}")
    for mistake, images in image_mistakes().items():
        if "BGR" in mistake and "green" in name:
            yield Finding(f"{mistake}: collapses", None, "green stays green when red and blue are swapped")
            continue
        broken = _rate(here, Broken(SeeingPolicy(contract), images=images), loop, items)
        yield Finding(f"{mistake}: collapses", broken <= COLLAPSED * rate, f"{broken:.0%} against {rate:.0%}")


def _telling(here: Here, name: str, count: int, seed: int = 0) -> list[WorkItem]:
    """The initial states whose cube lies farthest off both axes of the picture: turned, it is elsewhere."""
    task, color = here.task(name), "green" if "green" in name else "red"
    off: dict[WorkItem, float] = {}
    for item in (_item(name, init, seed) for init in range(max(LOOKED_AT, count))):
        task.reset(item.init, item.init_seed)
        image = task.render()["agentview"]
        pixel = find(image, color)
        if pixel is not None:
            off[item] = float(np.abs(pixel / image.shape[:2] - 0.5).min())
    return sorted(off, key=lambda item: off[item], reverse=True)[:count]


def _finger_is_where_it_says(here: Here, name: str, items: list[WorkItem]) -> Iterator[Finding]:
    """PushT's blue finger in the picture against its position in the state, and against broken pictures."""
    task = here.task(name)

    def error_px(edit: Images | None) -> float:
        worst = 0.0
        for item in items:
            task.reset(item.init, item.init_seed)
            images = task.render()
            image = next(iter((edit(images) if edit else images).values()))
            blue = image[..., 2].astype(int) - image[..., 0]  # RoyalBlue against the grey block
            rows, columns = np.nonzero(blue > 100)
            if not len(rows):
                return float("inf")
            at = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) * 512 / image.shape[0]
            worst = max(worst, float(np.linalg.norm(at - task.state()["agent_pos"])))
        return worst

    right = error_px(None)
    yield Finding("the finger is seen where the state says", right < 8, f"{right:.1f} px of 512 off")
    for mistake, images in image_mistakes().items():
        if mistake == "cameras swapped":  # there is one
            continue
        wrong = error_px(images)
        yield Finding(
            f"{mistake}: shows", wrong > 40, f"{wrong:.0f} px off" if np.isfinite(wrong) else "not seen"
        )
