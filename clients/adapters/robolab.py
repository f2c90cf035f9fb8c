"""RoboLab's InferenceClient over our own client, the contract checked before the first step.

In a RoboLab policy folder, run.py after the AppLauncher:

    from wamserve.clients.adapters.robolab import make_client
    run_evaluation(args, policy="wamserve", client_factory=lambda args: make_client(args.remote_uri))

RoboLab itself is imported when the class is made: it needs Isaac Sim, this module does not.
"""

from __future__ import annotations

import time
import uuid
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from wamserve.action_codec.errors import PolicyError
from wamserve.clients.client import PolicyClient
from wamserve.clients.policy import Observation, Prediction, Request
from wamserve.embodiments import contract

# view of the droid_lerobot contract -> RoboLab camera, uint8 [N, 720, 1280, 3]
CAMERAS = {
    "wrist": "wrist_cam",
    "exterior_1": "over_shoulder_left_camera",
    "exterior_2": "over_shoulder_right_camera",
}
VIEW_HEIGHT, VIEW_WIDTH = 360, 640
GRIPPER_CLOSES_ABOVE = 0.5  # RoboLab's own threshold; it knows only open and closed


def make_client(uri: str, *, horizon: int | None = None, **options: Any) -> Any:
    """A connected RoboLab InferenceClient. `horizon`: rows played open loop (default: the whole chunk).

    `options` are the fields of Endpoint (token, timeouts, ...).
    """
    return client_class()(uri, horizon=horizon, **options)


@cache
def client_class() -> type:
    """The InferenceClient subclass. ImportError where RoboLab is not installed."""
    base: type = import_module("robolab.eval").InferenceClient
    resize_with_pad = import_module("robolab.core.utils.image_utils").resize_with_pad

    class WamRoboLabClient(base):
        """Asks a wam.v1 server for joint targets of the DROID station that RoboLab simulates."""

        def __init__(self, uri: str, *, horizon: int | None = None, **options: Any) -> None:
            super().__init__()
            droid = contract.load("droid_lerobot")
            self.client = PolicyClient(uri, **{"contract": droid, **options})
            self.client.connect()
            chunk = droid.wire.chunk
            if horizon is not None and not 0 < horizon <= chunk:
                raise PolicyError("the horizon is not within a chunk", seen=horizon, expected=f"1 .. {chunk}")
            self.open_loop_horizon = horizon or chunk
            # RoboLab makes a client per task and counts episodes from 0 in each.
            self._name = f"robolab-{uuid.uuid4().hex[:12]}"

        def _extract_observation(self, raw_obs: dict[str, Any], *, env_id: int = 0) -> dict[str, Any]:
            images, proprio = raw_obs["image_obs"], raw_obs["proprio_obs"]
            views = {
                view: resize_with_pad(_numpy(images[camera][env_id]), VIEW_HEIGHT, VIEW_WIDTH)
                for view, camera in CAMERAS.items()
            }
            episode = getattr(self, "_eval_episode_idx", 0)
            return {
                "views": views,
                "joint_position": _numpy(proprio["arm_joint_pos"][env_id]),
                "gripper_position": _numpy(proprio["gripper_pos"][env_id]),
                "session": f"{self._name}-episode-{episode}-env-{env_id}",
            }

        def _pack_request(self, extracted_obs: dict[str, Any], instruction: str) -> Request:
            state = {
                name: np.asarray(extracted_obs[name], np.float32)
                for name in ("joint_position", "gripper_position")
            }
            observation = Observation(extracted_obs["views"], state, instruction, time.monotonic())
            return Request(observation, session=extracted_obs["session"])

        def _query_server(self, request: Request) -> Prediction:
            return self.client.infer(request)

        def _unpack_response(self, response: Prediction) -> np.ndarray:
            if response.chunk is None:
                raise PolicyError("the policy answered without actions")
            return response.chunk.actions

        def _postprocess_chunk(self, chunk: np.ndarray) -> np.ndarray:
            chunk = chunk.copy()  # what came over the wire is read-only
            chunk[..., -1] = chunk[..., -1] > GRIPPER_CLOSES_ABOVE
            return chunk

        def _build_visualization(self, extracted_obs: dict[str, Any]) -> np.ndarray:
            views = extracted_obs["views"]
            return np.concatenate([views["exterior_1"], views["wrist"], views["exterior_2"]], axis=1)

        def close(self) -> None:
            self.client.close()

    return WamRoboLabClient


def _numpy(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.cpu().numpy())
