"""Tiny networks of the reference data and its step-by-step arrays, read without the production loader."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wamserve.policy_server.sampling.sampler import Start
from wamserve.policy_server.world_model.config import WorldModelConfig
from wamserve.policy_server.world_model.names import is_unused
from wamserve.policy_server.world_model.network import WorldModel, init_random_

PARITY = 2e-5  # fp32, absolute, on latents, actions and hidden states


@pytest.fixture(scope="session")
def golden(shared):
    """golden("nano_policy") -> its arrays by name, numeric ones as tensors."""

    def load(name):
        arrays = np.load(shared / "golden" / "model" / f"{name}.npz")
        return {k: torch.from_numpy(arrays[k]) for k in arrays.files if arrays[k].dtype.kind in "fiub"}

    return load


@pytest.fixture(scope="session")
def tiny(shared):
    """tiny("nano") or tiny("edge") -> the network of the reference pipeline."""

    def load(flavour):
        folder = shared / "golden" / "model" / f"tiny-{flavour}" / "transformer"
        config = WorldModelConfig.from_file(folder)
        weights = load_file(folder / "diffusion_pytorch_model.safetensors")
        network = WorldModel(config)
        network.load_state_dict(
            {k: v for k, v in weights.items() if not is_unused(k, config.num_hidden_layers)}
        )
        return network.eval()

    return load


@pytest.fixture(scope="session")
def random_network():
    """random_network(config, seed) -> untrained weights large enough that every token matters."""

    def make(config, seed=0):
        network = init_random_(WorldModel(config), seed).eval()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if parameter.ndim > 1 and "norm" not in name:
                    parameter.mul_(8.0)
        return network

    return make


@pytest.fixture(scope="session")
def random_start():
    """random_start(config, plans, height, width, seed) -> random given values and noise for a batch."""

    def make(config, plans, height, width, seed=0):
        generator = torch.Generator().manual_seed(seed)
        video = (len(plans), config.latent_channel, len(plans[0].video_clean), height, width)
        action = (len(plans), len(plans[0].action_clean), config.action_dim)
        latents, video_noise = (torch.randn(video, generator=generator) for _ in range(2))
        actions, action_noise = (torch.randn(action, generator=generator) for _ in range(2))
        for row, plan in enumerate(plans):
            actions[row, :, plan.raw_action_dim :] = 0
        return Start(latents, actions, video_noise, action_noise)

    return make


@pytest.fixture(scope="session")
def close():
    """close(ours, reference, tolerance) prints the largest difference and fails past the tolerance."""

    def check(ours, reference, tolerance=PARITY):
        assert ours.shape == reference.shape
        worst = (ours.float() - reference.float()).abs().max().item()
        print(f"max |difference| {worst:.2e} of max {reference.abs().max():.2f}")
        assert worst <= tolerance, f"max |difference| {worst:.2e} > {tolerance:.0e}"

    return check
