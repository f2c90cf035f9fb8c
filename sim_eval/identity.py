"""The model that knows nothing: it copies the frame it is given and says that nobody moved."""

from __future__ import annotations

import numpy as np

from wamserve.action_codec.errors import RequestError
from wamserve.clients.policy import ActionChunk, Prediction, Request
from wamserve.embodiments.canvas import compose
from wamserve.embodiments.contract import Embodiment
from wamserve.embodiments.units import chunk_normalizer
from wamserve.sim_eval import kinematics


class IdentityModel:
    """A Policy for fd and id. Absolute numbers that no motion implies are the middle of the normalizer."""

    def __init__(self, contract: Embodiment) -> None:
        self.contract = contract

    def infer(self, request: Request) -> Prediction:
        model = self.contract.model
        if request.mode == "fd":
            frame = compose(model.canvas, request.observation.images)
            return Prediction(video=np.repeat(frame[None], model.chunk + 1, axis=0), seed=request.seed or 0)
        if request.mode == "id":
            middle = chunk_normalizer(model).actions.raw_from_model(np.zeros((1, model.width)))[0]
            rows = kinematics.zero_motion(self.contract, middle, model.chunk)
            return Prediction(ActionChunk(rows, 0.0, 1.0 / model.rate_hz), seed=request.seed or 0)
        raise RequestError("the identity model has no policy", seen=request.mode, expected="fd, id")

    def reset(self, session: str = "") -> None: ...
