"""The fast channel norm is diffusers' norm."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm

from wamserve.policy_server.world_model.channel_norm import ChannelNorm, replace_norms
from wamserve.training.vae import VaeRecipe, new_vae


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(2, 24, 5, 6, 7), (1, 24, 9, 4)])
def test_channel_norm_divides_as_the_wan_norm_does(shape, dtype, tolerance):
    norm = WanRMS_norm(24, images=len(shape) == 4)
    torch.nn.init.normal_(norm.gamma)
    x = (torch.randn(shape) * torch.logspace(-3, 3, shape[-1])).to(dtype)
    norm.to(dtype)
    fast = ChannelNorm(norm.gamma, len(shape) - 2)
    torch.testing.assert_close(fast(x), norm(x), rtol=tolerance, atol=tolerance)


def test_a_black_channel_vector_stays_zero():
    assert not ChannelNorm(torch.ones(8), 3)(torch.zeros(1, 8, 2, 2, 2)).any()


def test_a_vae_keeps_its_weights_names_and_clips():
    vae = new_vae(VaeRecipe(base_dim=4)).eval()
    clip = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    names = set(vae.state_dict())
    with torch.no_grad():
        before = vae.decode(vae.encode(clip).latent_dist.mode()).sample
        replace_norms(vae)
        after = vae.decode(vae.encode(clip).latent_dist.mode()).sample
    assert not any(isinstance(module, WanRMS_norm) for module in vae.modules())
    assert set(vae.state_dict()) == names
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
