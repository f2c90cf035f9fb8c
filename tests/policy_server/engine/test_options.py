"""What cannot be measured or run together is refused in words, before anything is loaded."""

import pytest

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server.engine.cli import bench
from wamserve.policy_server.engine.options import EngineOptions


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"warm_up": -1}, {"diffusers": -2}])
def test_a_bench_of_nothing_is_refused(wrong):
    with pytest.raises(RequestError, match="nothing to measure"):
        bench(None, random_weights=True, preset="tiny-nano", **wrong)


def test_blocked_attention_is_not_for_the_compiler():
    with pytest.raises(RequestError, match="kernels of its own"):
        EngineOptions(attention="blocked", compile=True)
