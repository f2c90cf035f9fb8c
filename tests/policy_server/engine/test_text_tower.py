"""A text tower in host memory reads prompts to the bit as before, and denoising never misses it."""

import torch

from wamserve.policy_server.engine.text_tower import OffloadedTextTower, text_parameters
from wamserve.policy_server.load import random_policy
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.sampler import sample
from wamserve.policy_server.sampling.schedule import flow_schedule

from .conftest import make_network, make_plan, make_start, read


def test_an_offloaded_tower_reads_the_same_keys_and_values_and_leaves_again(network):
    own = make_network("tiny-nano" if network.config.hidden_act == "silu" else "tiny-edge")
    ids = torch.arange(30)[None]
    want = own.prefill(ids)
    held = dict(text_parameters(own))
    size = sum(parameter.nbytes for parameter in held.values())
    tower = OffloadedTextTower(own)
    assert tower.nbytes == size and not any(parameter.numel() for parameter in held.values())
    for count in (1, 2):
        got = tower.prefill(ids)
        assert torch.equal(got.keys, want.keys) and torch.equal(got.values, want.values)
        assert tower.reads == count and not any(parameter.numel() for parameter in held.values())


def test_denoising_needs_nothing_of_it(nano):
    own = make_network("tiny-nano")
    plans = [make_plan()]
    arguments = (plans, make_start(plans), flow_schedule(), Guidance(3.0), read(nano, 20), read(nano, 10))
    want = sample(nano, *arguments)
    OffloadedTextTower(own)
    assert torch.equal(sample(own, *arguments).actions, want.actions)


def test_half_of_a_network_is_text():
    network = make_network("tiny-nano")
    text = sum(p.numel() for name, p in text_parameters(network) if name.startswith("layers."))
    layers = sum(p.numel() for p in network.layers.parameters())
    assert 0.3 < text / layers < 0.5, "less than half: the last layer's text queries and MLP are not built"


def test_a_policy_with_an_offloaded_tower_answers_the_same_and_reads_each_prompt_once():
    from wamserve.policy_server.blank import blank_request

    answers = []
    for engine in ({}, {"offload_text_tower": True}):
        policy = random_policy("tiny-nano", "pusht", engine=engine)
        request = blank_request(policy.contract)
        answers.append([policy.infer(request).chunk.actions for _ in range(2)])
    assert policy.runner.text.reads == 2, "the sentence and the empty prompt"
    assert (answers[0][0] == answers[1][0]).all() and (answers[1][0] == answers[1][1]).all()
