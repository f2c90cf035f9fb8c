"""The adapters against duck-typed stand-ins of the loops they serve, and a real gymnasium environment."""

import subprocess
import sys
import types
from dataclasses import asdict, replace

import numpy as np
import pytest
import servers
from servers import HELLO, Server

from wamserve.action_codec.errors import ContractError, PolicyError, RequestError
from wamserve.action_codec.layout import Block, Layout
from wamserve.clients.adapters import robolab
from wamserve.clients.adapters.gym import GymMap, Pace, drive
from wamserve.clients.adapters.openpi import ActionChunkBroker, OpenpiPolicy
from wamserve.clients.plain import COSMOS, OPENPI_LIBERO, VLLM_OMNI
from wamserve.clients.policy import ActionChunk, Ledger, Prediction
from wamserve.embodiments import contract

ONE = Layout((Block("x", 0, 1, "position_abs"),))


class Counting:
    """A policy whose k-th chunk holds 100 k + row, for observations as they come."""

    def __init__(self, rows=4, width=1, period=0.1):
        self.rows, self.width, self.period = rows, width, period
        self.requests, self.resets = [], []

    def infer(self, request):
        self.requests.append(request)
        rows = 100.0 * len(self.requests) + np.arange(self.rows)
        actions = np.repeat(rows[:, None], self.width, 1).astype(np.float32)
        chunk = ActionChunk(actions, request.observation.time, self.period)
        return Prediction(chunk, ledger=Ledger(denoise_ms=2.0))

    def reset(self, session=""):
        self.resets.append(session)


# --- openpi ----------------------------------------------------------------------------------------------


def libero_observation():
    image = np.zeros((8, 8, 3), np.uint8)
    return {
        "observation/image": image,
        "observation/wrist_image": image,
        "observation/state": np.zeros(8),
        "prompt": "lift",
    }


def test_broker_hands_out_one_row_per_call_and_asks_again_after_the_horizon():
    policy = Counting(rows=10, width=7)
    broker = ActionChunkBroker(OpenpiPolicy(policy, OPENPI_LIBERO, clock=lambda: 3.0), action_horizon=3)
    rows = [broker.infer(libero_observation()) for _ in range(7)]
    assert [float(row["actions"][0]) for row in rows] == [100, 101, 102, 200, 201, 202, 300]
    assert rows[0]["actions"].shape == (7,)
    assert rows[0]["server_timing"] == {"infer_ms": 2.0}
    observation = policy.requests[0].observation
    assert set(observation.images) == {"agentview", "wrist"} and observation.time == 3.0
    broker.reset()
    assert float(broker.infer(libero_observation())["actions"][0]) == 400
    assert policy.resets == [""]


def test_broker_slices_actions_only():
    class WithExtras:
        def infer(self, obs):
            video = np.zeros((5, 4, 4, 3))
            return {"action": np.arange(6.0).reshape(3, 2), "video": video, "scalar": np.array(1.0)}

        def reset(self):
            pass

    broker = ActionChunkBroker(WithExtras(), action_horizon=3)
    for row in range(3):
        reply = broker.infer({})
        assert reply["action"].tolist() == [2.0 * row, 2.0 * row + 1]
        assert reply["video"].shape == (5, 4, 4, 3) and reply["scalar"] == 1.0


def test_broker_refuses_a_chunk_shorter_than_its_horizon():
    broker = ActionChunkBroker(OpenpiPolicy(Counting(rows=2), OPENPI_LIBERO), action_horizon=3)
    with pytest.raises(PolicyError, match="action_horizon=2"):
        broker.infer(libero_observation())


def test_openpi_policy_refuses_keys_of_another_dialect():
    policy = OpenpiPolicy(Counting(), COSMOS)
    with pytest.raises(RequestError, match="observation/wrist_image"):
        policy.infer(libero_observation())
    with pytest.raises(PolicyError):
        OpenpiPolicy(Counting(), VLLM_OMNI)


# --- gym -------------------------------------------------------------------------------------------------


class Recorder:
    """A gymnasium-style environment that remembers what it was told; ends after `length` steps."""

    def __init__(self, length=100, success_at=None):
        self.length, self.success_at, self.actions = length, success_at, []

    def _observation(self):
        image = np.zeros((4, 6, 3), np.uint8)
        image[0, 0] = 255
        return {"pixels": {"top": image}, "agent_pos": np.array([float(len(self.actions))])}

    def reset(self, *, seed=None):
        self.seed, self.actions = seed, []
        return self._observation(), {}

    def step(self, action):
        self.actions.append(float(np.ravel(action)[0]))
        count = len(self.actions)
        info = {"is_success": count == self.success_at}
        return self._observation(), 0.5, count == self.success_at, count >= self.length, info


MAP = GymMap({"top": "pixels/top"}, {"agent": "agent_pos"}, "push", period=0.1)


def test_a_free_answer_is_played_from_the_step_it_was_asked_at():
    env, policy = Recorder(), Counting(rows=4)
    episode = drive(env, policy, MAP, ONE, Pace(replan=3), seed=5, max_steps=7)
    assert env.actions == [100, 101, 102, 200, 201, 202, 300]
    assert (episode.steps, episode.queries, episode.ended, episode.late_rows) == (7, 3, "limit", 0)
    assert episode.total_reward == 3.5 and episode.success is False
    assert env.seed == 5 and policy.resets == ["gym-5"]
    assert [request.step for request in policy.requests] == [0, 3, 6]
    assert [request.observation.state["agent"].tolist() for request in policy.requests] == [[0], [3], [6]]
    assert policy.requests[1].observation.state["agent"].dtype == np.float32


def test_a_charged_answer_arrives_steps_later_and_its_past_rows_are_dropped():
    env, policy = Recorder(), Counting(rows=6)
    episode = drive(env, policy, MAP, ONE, Pace(replan=3, charge=0.2), seed=0, max_steps=8)
    # Asked at step 3, there at step 5: its rows 0 and 1 were due at steps 3 and 4, played by the old chunk.
    assert env.actions == [100, 101, 102, 103, 104, 202, 203, 204]
    assert episode.late_rows == 2
    # From then on the requests say how late they expect to be.
    assert policy.requests[0].delay == 0 and policy.requests[-1].delay == 2


def test_a_chunk_that_runs_out_is_held():
    env, policy = Recorder(), Counting(rows=2)
    drive(env, policy, MAP, ONE, Pace(replan=4), seed=0, max_steps=5)
    assert env.actions == [100, 101, 101, 101, 200]


def test_images_are_turned_as_declared_and_the_end_is_told():
    env, policy = Recorder(success_at=2), Counting()
    watched = []
    turned = replace(MAP, turn="rotated_180", action=lambda row: row * 2)
    episode = drive(env, policy, turned, ONE, Pace(replan=4), seed=0, max_steps=9, watch=watched.append)
    image = policy.requests[0].observation.images["top"]
    assert image[-1, -1].tolist() == [255] * 3 and image[0, 0].tolist() == [0] * 3
    assert env.actions == [200, 202]
    assert (episode.success, episode.ended, episode.steps) == (True, "terminated", 2)
    assert [step.due.row for step in watched] == [0, 1]
    assert watched[0].round_trip_ms is not None and watched[1].round_trip_ms is None


def test_a_wrong_key_is_refused_with_the_keys_there_are():
    wrong = replace(MAP, images={"top": "pixels/front"})
    with pytest.raises(RequestError, match="pixels/top, agent_pos"):
        drive(Recorder(), Counting(), wrong, ONE, Pace(replan=4), seed=0, max_steps=1)


def test_a_real_gymnasium_environment_follows_the_rows():
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("gym_pusht")
    import gym_pusht  # noqa: F401

    env = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos")
    mapping = GymMap({"top": "pixels"}, {"agent": "agent_pos"}, "push the T", period=0.1)
    layout = Layout((Block("xy", 0, 2, "position_abs"),))

    class Corner(Counting):
        def infer(self, request):
            prediction = super().infer(request)
            actions = np.full((8, 2), 60.0, np.float32)  # px: a corner of the 512 px field
            return replace(prediction, chunk=replace(prediction.chunk, actions=actions))

    policy = Corner()
    drive(env, policy, mapping, layout, Pace(replan=8), seed=0, max_steps=24)
    start, end = (request.observation.state["agent"] for request in (policy.requests[0], policy.requests[-1]))
    assert np.linalg.norm(end - 60) < 0.3 * np.linalg.norm(start - 60)
    env.close()


# --- RoboLab ---------------------------------------------------------------------------------------------


class Tensor:
    """As much of a torch tensor as RoboLab's clients use."""

    def __init__(self, array):
        self.array = array

    def __getitem__(self, index):
        return Tensor(self.array[index])

    def cpu(self):
        return self

    def numpy(self):
        return self.array


class InferenceClient:
    """RoboLab's loop as its documentation describes it: hooks, a chunk and a counter per environment."""

    def __init__(self):
        self._chunks, self._counters, self._eval_episode_idx = {}, {}, 0

    def infer(self, raw_obs, instruction, *, env_id=0):
        counter = self._counters.get(env_id, 0)
        extracted = self._extract_observation(raw_obs, env_id=env_id)
        if env_id not in self._chunks or counter >= self.open_loop_horizon:
            response = self._query_server(self._pack_request(extracted, instruction))
            self._chunks[env_id] = self._postprocess_chunk(self._unpack_response(response))
            counter = 0
        self._counters[env_id] = counter + 1
        return {"action": self._chunks[env_id][counter], "viz": self._build_visualization(extracted)}


@pytest.fixture
def isaac_free_robolab(monkeypatch):
    """robolab.eval and its image helper, as modules, for the time of a test."""
    shrink = types.ModuleType("robolab.core.utils.image_utils")
    shrink.resize_with_pad = lambda image, height, width: image[::2, ::2][:height, :width]
    package = types.ModuleType("robolab.eval")
    package.InferenceClient = InferenceClient
    monkeypatch.setitem(sys.modules, "robolab", types.ModuleType("robolab"))
    monkeypatch.setitem(sys.modules, "robolab.eval", package)
    monkeypatch.setitem(sys.modules, "robolab.core", types.ModuleType("robolab.core"))
    monkeypatch.setitem(sys.modules, "robolab.core.utils", types.ModuleType("robolab.core.utils"))
    monkeypatch.setitem(sys.modules, "robolab.core.utils.image_utils", shrink)
    robolab.client_class.cache_clear()
    yield
    robolab.client_class.cache_clear()


def raw_observation(environments=2):
    cameras = {
        name: np.full((environments, 720, 1280, 3), 10 * i, np.uint8)
        for i, name in enumerate(
            ("wrist_cam", "over_shoulder_left_camera", "over_shoulder_right_camera", "head_camera")
        )
    }
    proprio = {
        "arm_joint_pos": np.array([[0, -0.6, 0, -2.5, 0, 1.9, 0.1 * n] for n in range(environments)], "f4"),
        "gripper_pos": np.full((environments, 1), 0.25, np.float32),
    }
    return {
        "image_obs": {name: Tensor(array) for name, array in cameras.items()},
        "proprio_obs": {name: Tensor(array) for name, array in proprio.items()},
    }


def droid_server(requests):
    droid = contract.load("droid_lerobot")

    def behaviour(socket):
        servers.welcome(socket, replace(HELLO, wire=asdict(droid.wire), wire_sha256=droid.wire_hash))
        for message in servers.requests(socket):
            requests.append(message.request)
            actions = np.zeros((32, 8), np.float32)
            actions[:, 0], actions[:, 7] = np.arange(32), np.where(np.arange(32) % 2, 0.7, 0.4)
            chunk = ActionChunk(actions, message.request.observation.time, 1 / 15)
            reply = servers.wam_v1.Reply(message.request_id, 1, Prediction(chunk))
            socket.send(servers.wam_v1.encode_reply(reply))

    return behaviour


def test_robolab_gets_joint_targets_chunk_by_chunk(isaac_free_robolab):
    requests = []
    with Server(droid_server(requests)) as server:
        client = robolab.make_client(server.uri, horizon=8)
        steps = [client.infer(raw_observation(), "lift the cube", env_id=1) for _ in range(9)]
        client.infer(raw_observation(), "lift the cube", env_id=0)
        client.close()
    assert isinstance(client, InferenceClient)
    assert [step["action"][0] for step in steps] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert [step["action"][7] for step in steps[:4]] == [0, 1, 0, 1], "the gripper is open or closed"
    assert steps[0]["viz"].shape == (360, 1920, 3)
    assert len(requests) == 3
    observation = requests[0].observation
    assert {name: image.shape for name, image in observation.images.items()} == {
        "wrist": (360, 640, 3),
        "exterior_1": (360, 640, 3),
        "exterior_2": (360, 640, 3),
    }
    assert [int(observation.images[view][0, 0, 0]) for view in ("wrist", "exterior_1", "exterior_2")] == [
        0,
        10,
        20,
    ]
    np.testing.assert_array_equal(
        observation.state["joint_position"], np.array([0, -0.6, 0, -2.5, 0, 1.9, 0.1], np.float32)
    )
    assert observation.state["gripper_position"].tolist() == [0.25]
    assert requests[0].session.endswith("episode-0-env-1") and requests[2].session.endswith("env-0")


def test_robolab_is_refused_a_server_of_another_contract(isaac_free_robolab):
    with Server(servers.echo) as server, pytest.raises(ContractError, match="reply"):
        robolab.make_client(server.uri)


def test_robolab_horizon_must_lie_within_the_chunk(isaac_free_robolab):
    with Server(droid_server([])) as server, pytest.raises(PolicyError, match=r"1 \.\. 32"):
        robolab.make_client(server.uri, horizon=33)


def test_clients_import_without_torch_gymnasium_pillow_or_robolab():
    code = (
        "import sys, wamserve.clients.client, wamserve.clients.async_client, wamserve.clients.player, "
        "wamserve.clients.adapters.gym, wamserve.clients.adapters.openpi, wamserve.clients.adapters.robolab; "
        "heavy = {'torch', 'gymnasium', 'PIL', 'robolab', 'av', 'pyarrow'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
