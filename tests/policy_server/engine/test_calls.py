"""Graphs are captured once per shape and replayed for every other prompt, picture, noise and scale.

CUDA graphs need a GPU. What is tested here is all that surrounds them: the recorder below stands for the
capture, and replays the program over the static buffers it was recorded with, as a graph does.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from wamserve.embodiments.canvas import Fit
from wamserve.policy_server.engine.engine import Engine
from wamserve.policy_server.engine.key import bucket_of
from wamserve.policy_server.engine.options import EngineOptions
from wamserve.policy_server.load import random_policy
from wamserve.policy_server.runner import Plain
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.noise import draw_noise
from wamserve.policy_server.sampling.schedule import flow_schedule
from wamserve.policy_server.sampling.start import Start

from .conftest import NoVAE, make_network, make_plan, read

EXACT = 3e-5


def recorder(run):
    """Records nothing on a CPU, but like a graph it knows only the buffers, and nobody's progress."""
    return lambda: run()


def test_buckets_are_powers_of_two_from_64():
    assert [bucket_of(n) for n in (1, 64, 65, 128, 129, 500)] == [64, 64, 128, 128, 256, 512]


def test_a_prompt_of_the_same_bucket_is_never_captured_again(nano, compare):
    _, _, engine = compare(nano, lengths=(70,), capture=recorder)
    assert engine.report()["attention"] == "merged", "a graph cannot slice at a length"
    for seed, length in enumerate((65, 100, 128, 70)):
        plain, got, _ = compare(nano, lengths=(length,), seed=seed, engine=engine)
        assert (plain.actions - got.actions).abs().max() < EXACT
    report = engine.report()
    assert (report["captures"], report["replays"], report["eager"]) == (1, 5, 0)
    compare(nano, lengths=(129,), engine=engine)
    assert engine.report()["captures"] == 2, "another bucket is another shape"


def test_scale_and_noise_levels_are_data_of_a_graph_and_guided_steps_are_not(nano, compare):
    _, _, engine = compare(nano, capture=recorder)
    plain, got, _ = compare(nano, guidance=Guidance(1.5), engine=engine)
    assert (plain.actions - got.actions).abs().max() < EXACT and engine.report()["captures"] == 1
    compare(nano, guidance=Guidance(3.0, (960.0, 1001.0)), engine=engine)
    assert engine.report()["captures"] == 2


def test_past_the_bound_calls_run_eagerly_and_say_so(nano, compare, caplog):
    _, _, engine = compare(nano, steps=1, capture=recorder, max_calls=2)
    compare(nano, steps=2, engine=engine)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            plain, got, _ = compare(nano, steps=3, engine=engine)
            assert (plain.actions - got.actions).abs().max() < EXACT
    assert [r.getMessage() for r in caplog.records] == [
        "more than 2 shapes: the next ones run without graph or kept buffers"
    ]
    report = engine.report()
    assert (report["shapes"], report["captures"], report["past_bound"], report["eager"]) == (2, 2, 2, 2)
    compare(nano, steps=1, engine=engine)
    assert engine.report()["past_bound"] == 2, "the first shapes keep their place"


def test_the_prompt_is_written_into_the_buffers_once(nano):
    engine = Engine(nano, NoVAE(), EngineOptions())
    plans = [make_plan()]
    prompt, empty = read(nano, 30), read(nano, 10)
    for seed in range(2):
        noise = draw_noise("torch", [seed], plans[0].shape(5, 6))
        start = Start(torch.zeros_like(noise[0]), torch.zeros_like(noise[1]), *noise)
        engine.sample(nano, plans, start, flow_schedule(), Guidance(3.0), prompt, empty)
        if seed == 0:
            (kept,) = engine.calls._kept.values()
            kept.call.rows.keys[:, :, :, : kept.call.rows.bucket] = float("nan")  # seen only if not rewritten
    assert kept.call.rows.keys[:, 0, :, kept.call.rows.bucket - 30 : kept.call.rows.bucket].isnan().all()


@pytest.fixture(scope="module")
def pusht():
    return random_policy("tiny-nano", "pusht")


def test_a_staged_picture_is_encoded_inside_the_call(pusht):
    """What `encode` returns holds no picture; the program that `sample` replays encodes it."""
    network, vae = pusht.network, pusht.vae
    engine = Engine(network, vae, capture=recorder)
    plain = Plain(vae, torch.device("cpu"))
    plan, fit = make_plan(), Fit(128, 160, 120, 150)
    arguments = (flow_schedule(), Guidance(3.0), read(network, 30), read(network, 10))
    for seed in range(3):
        frames = np.random.default_rng(seed).integers(0, 256, (1, 128, 160, 3), np.uint8)
        noise = draw_noise("torch", [seed], plan.shape(7, 9))
        answers = []
        for runner in (plain, engine):
            latents = runner.encode(frames, fit, len(plan.video_clean))
            start = Start(latents, torch.zeros(1, 9, 64), *noise)
            answers.append(runner.sample(network, [plan], start, *arguments))
        assert not latents.any(), "a place-holder"
        assert (answers[0].actions - answers[1].actions).abs().max() < EXACT
        assert (answers[0].latents - answers[1].latents).abs().max() < EXACT
    assert engine.report()["captures"] == 1 and engine.report()["replays"] == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_cuda_graph_equals_the_eager_run():
    network = make_network("tiny-nano").cuda()
    plans = [make_plan()]
    noise = draw_noise("torch", [0], plans[0].shape(5, 6), device="cuda")
    start = Start(torch.zeros_like(noise[0]), torch.zeros_like(noise[1]), *noise)
    answers = []
    for options in (EngineOptions(graphs=False), EngineOptions()):
        engine = Engine(network, NoVAE(), options)
        for length in (20, 50):
            prompts = [network.prefill(torch.arange(n, device="cuda")[None]) for n in (length, 10)]
            answers.append(engine.sample(network, plans, start, flow_schedule(), Guidance(3.0), *prompts))
    assert engine.report()["captures"] == 1 and engine.report()["replays"] == 2
    for eager, graph in zip(answers[:2], answers[2:], strict=True):
        torch.testing.assert_close(eager.actions, graph.actions, rtol=0, atol=1e-3)
