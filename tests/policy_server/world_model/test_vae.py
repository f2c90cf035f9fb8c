"""The VAE wrapper equals the reference's encode and decode, and one frame costs one frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wamserve.action_codec.errors import CheckpointError, RequestError
from wamserve.policy_server.world_model.vae import (
    VideoVAE,
    crop_content,
    pixels_from_uint8,
    uint8_from_pixels,
)

diffusers = pytest.importorskip("diffusers")
FOLDED = 1e-5  # first frame in 2-D against the reference's clip


def wan_vae(seed=0, **changes):
    """Wan 2.2 in miniature, every weight random and every block of the real encoder present."""
    torch.manual_seed(seed)
    values = dict(
        base_dim=8, decoder_base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2,
        temperal_downsample=[False, True, True], latents_mean=[0.1 * i for i in range(16)],
        latents_std=[1 + 0.1 * i for i in range(16)], is_residual=True, in_channels=12, out_channels=12,
        patch_size=2, scale_factor_temporal=4, scale_factor_spatial=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(**(values | changes)).eval()
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if name.endswith("gamma"):
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return VideoVAE(vae)


@pytest.fixture(scope="module")
def reference_vae(shared):
    def load(flavour):
        return VideoVAE(
            diffusers.AutoencoderKLWan.from_pretrained(
                shared / "golden" / "model" / f"tiny-{flavour}" / "vae"
            )
        )

    return load


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (48, 80), (112, 16)])
def test_the_first_frame_in_two_dimensions_equals_any_clip_that_begins_with_it(height, width):
    vae = wan_vae(seed=height)
    clip = torch.rand(2, 3, 9, height, width, generator=torch.Generator().manual_seed(width)) * 2 - 1
    whole = vae.encode_video(clip)
    first = vae.encode_first_frame(clip[:, :, 0])
    assert first.shape == (2, 16, 1, height // 16, width // 16) and first.abs().max() > 0.1
    assert (first - whole[:, :, :1]).abs().max() <= FOLDED


@pytest.mark.parametrize("flavour", ["nano", "edge"])
def test_encode_crop_and_decode_equal_the_recorded_ones(flavour, reference_vae, golden, close):
    vae, want = reference_vae(flavour), golden(f"{flavour}_policy")
    canvas = want["canvas_frame0"]
    first = vae.encode_first_frame(canvas[:, :, 0])
    close(first, want["x0_latent_full_frame0"], FOLDED)
    content = tuple(int(side) for side in want["image_size"][2:])
    close(crop_content(first, content), want["x0_latent_cropped"][:, :, :1], FOLDED)
    pixels = vae.decode(want["final_latents"])
    shown = (pixels[0].permute(1, 0, 2, 3) / 2 + 0.5).clamp(0, 1)
    assert tuple(shown.shape) == tuple(want["final_video_shape"].tolist())
    close(shown[[0, 8]], want["final_video_frames_0_8"])


def test_normalisation_constants_are_rounded_to_the_vaes_dtype():
    vae = wan_vae().vae.to(torch.bfloat16)
    half = VideoVAE(vae)
    assert half.mean.dtype == half.inv_std.dtype == torch.bfloat16
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    assert half.encode_first_frame(pixels).dtype == torch.float32
    wide = wan_vae().encode_first_frame(pixels)
    assert (half.encode_first_frame(pixels) - wide).abs().max() < 0.05 * wide.abs().max()


def test_one_frame_costs_a_seventieth_of_the_padded_clip():
    from torch.utils.flop_counter import FlopCounterMode

    vae = wan_vae(z_dim=48, latents_mean=[0.0] * 48, latents_std=[1.0] * 48)
    clip = torch.zeros(1, 3, 33, 64, 64)
    counts = []
    for encode, pixels in ((vae.encode_video, clip), (vae.encode_first_frame, clip[:, :, 0])):
        with FlopCounterMode(display=False) as counter:
            encode(pixels)
        counts.append(counter.get_total_flops())
    assert counts[0] / counts[1] > 60


def test_uint8_frames_survive_the_trip():
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 32, 3), dtype=np.uint8)
    pixels = pixels_from_uint8(frames)
    assert pixels.shape == (1, 3, 5, 16, 32) and pixels.min() >= -1 and pixels.max() <= 1
    assert np.array_equal(uint8_from_pixels(pixels)[0], frames)


def test_pixels_the_vae_cannot_take_are_refused():
    vae = wan_vae()
    with pytest.raises(RequestError, match="odd canvas"):
        vae.encode_first_frame(torch.zeros(1, 3, 40, 32))
    with pytest.raises(RequestError, match=r"expected: float \[B, 3, F, H, W\]"):
        vae.encode_video(torch.zeros(1, 3, 5, 32, 32, dtype=torch.uint8))
    with pytest.raises(RequestError, match=r"expected: uint8 \[F, H, W, 3\]"):
        pixels_from_uint8(np.zeros((5, 32, 32, 3), np.float32))


def test_another_vae_is_refused():
    with pytest.raises(CheckpointError, match="not the one the network was trained with"):
        wan_vae(scale_factor_spatial=8)
    with pytest.raises(CheckpointError, match="encoder is not that of Wan"):
        wan_vae(is_residual=False)
