"""Quantized projections: what they lose is measured per action dimension, and refused past a limit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wamserve.action_codec.errors import CheckpointError, RequestError
from wamserve.policy_server.engine.engine import Engine
from wamserve.policy_server.engine.gate import action_error, check_quantized
from wamserve.policy_server.engine.options import EngineOptions
from wamserve.policy_server.engine.quantize import Int8Linear, release_plain_weights
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.schedule import flow_schedule

from .conftest import NoVAE, make_network, make_plan, make_start, read


def test_an_int8_projection_rounds_each_channel_to_127_levels():
    torch.manual_seed(0)
    weight = torch.randn(12, 40) * torch.logspace(-3, 3, 12)[:, None]
    linear, x, bias = Int8Linear(weight, None), torch.randn(5, 40), torch.randn(12)
    assert linear.weight.dtype == torch.int8 and linear.weight.abs().amax() == 127
    step = weight.abs().amax(dim=1) / 127
    restored = linear.weight.float() * linear.scale[:, None]
    assert ((restored - weight).abs() <= 0.5001 * step[:, None]).all(), "half a level of its own channel"
    torch.testing.assert_close(linear(x), F.linear(x, restored), rtol=1e-5, atol=1e-4)
    with_bias = Int8Linear(weight, bias)
    torch.testing.assert_close(with_bias(x), linear(x) + bias)


def test_an_int8_tower_stays_near_the_plain_one_and_holds_a_quarter_of_the_bytes(network, compare):
    plain, got, engine = compare(network, quantize="int8")
    found = action_error([plain.actions[0, 1:, :8].numpy()], [got.actions[0, 1:, :8].numpy()])
    print("\n".join(found.lines()))
    assert 0 < found.mean.max() < 0.05 * found.spread.mean()
    quantized = sum(layer.qkv.weight.nbytes + layer.down.weight.nbytes for layer in engine.tower.layers)
    original = sum(
        4 * (layer.qkv.weight.numel() + layer.down.weight.numel()) for layer in engine.tower.layers
    )
    assert quantized * 4 == original
    assert engine.report()["quantized"] == "int8"


def test_the_plain_weights_can_go_once_the_quantized_ones_have_passed(compare):
    network = make_network("tiny-nano")
    _, before, engine = compare(network, quantize="int8")
    freed = release_plain_weights(engine.tower)
    assert freed > 100_000

    plans = [make_plan()]
    prompts = read(network, 90), read(network, 10)
    after = engine.sample(network, plans, make_start(plans), flow_schedule(), Guidance(3.0), *prompts)
    assert torch.equal(after.actions, before.actions)


def test_the_gate_names_the_dimension_that_fails():
    reference = [np.zeros((4, 3)), np.ones((4, 3))]
    moved = [rows + np.array([0.001, 0.2, 0.0]) for rows in reference]
    found = action_error(reference, moved)
    np.testing.assert_allclose(found.mean, [0.001, 0.2, 0.0])
    assert found.calls == 2 and np.allclose(found.spread, 0.5)
    check_quantized(found, 0.21, "INT8")
    with pytest.raises(CheckpointError, match=r"INT8 changes the actions .* dimension 1 over 2 calls"):
        check_quantized(found, 0.1, "INT8")


def test_the_gate_refuses_numbers_that_are_none():
    found = action_error([np.zeros((2, 2))], [np.array([[0, np.nan], [0, 0]])])
    with pytest.raises(CheckpointError, match="dimension 1"):
        check_quantized(found, 1e9, "FP8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_fp8_is_refused_where_there_is_no_fp8_arithmetic():
    with pytest.raises(RequestError, match="no FP8 arithmetic here"):
        Engine(make_network("tiny-nano"), NoVAE(), EngineOptions(quantize="fp8"))
