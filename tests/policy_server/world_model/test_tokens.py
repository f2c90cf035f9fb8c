"""Tokens, masks and positions, checked by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server.world_model.config import PRESETS
from wamserve.policy_server.world_model.layout import TokenLayout
from wamserve.policy_server.world_model.rope import action_positions, rotary_tables, video_positions
from wamserve.policy_server.world_model.tokens import (
    LatentShape,
    clean_mask,
    latent_size,
    patchify,
    plan_request,
    unpatchify,
)

NANO = PRESETS["nano"]


def droid(**changes):
    values = dict(mode="policy", chunk=32, domain=8, raw_action_dim=8, rate_hz=15, state_row=True) | changes
    return plan_request(values.pop("mode"), **values)


def test_droid_has_3060_video_and_33_action_tokens():
    shape = droid().shape(*latent_size((544, 736), (540, 640)))
    assert shape == LatentShape(frames=9, height=33, width=40, actions=33)
    assert shape.grid(2) == (9, 17, 20) and shape.video_tokens(2) == 3060


def test_patches_run_time_row_column_with_channels_fastest():
    latents = torch.arange(2 * 2 * 3 * 4.0).view(1, 2, 2, 3, 4)  # C 2, T 2, h 3, w 4
    tokens = patchify(latents, 2)
    assert tokens.shape == (1, 2 * 2 * 2, 8)
    at = lambda c, t, y, x: latents[0, c, t, y, x].item()  # noqa: E731
    second = tokens[0, 1].tolist()  # frame 0, patch row 0, patch column 1
    assert second == [at(c, 0, y, x) for y in (0, 1) for x in (2, 3) for c in (0, 1)]
    below = tokens[0, 2].tolist()  # patch row 1: its second row lies outside and is zero
    assert below == [at(0, 0, 2, 0), at(1, 0, 2, 0), at(0, 0, 2, 1), at(1, 0, 2, 1), 0, 0, 0, 0]
    assert torch.equal(unpatchify(tokens, LatentShape(2, 3, 4, 0), 2), latents)


@given(
    frames=st.integers(1, 3), height=st.integers(1, 7), width=st.integers(1, 7), channels=st.integers(1, 4)
)
@settings(max_examples=30, deadline=None)
def test_unpatchify_undoes_patchify_for_any_size(frames, height, width, channels):
    latents = torch.randn(2, channels, frames, height, width)
    shape = LatentShape(frames, height, width, 0)
    tokens = patchify(latents, 2)
    assert tokens.shape == (2, shape.video_tokens(2), 4 * channels)
    assert torch.equal(unpatchify(tokens, shape, 2), latents)


def test_plans_mark_what_is_given():
    policy = droid(chunk=4, history=2, frozen=1)
    assert policy.video_clean == (True, False)
    assert policy.action_clean == (True, True, True, True, False, False, False)  # 2 history, state, prefix
    assert (policy.lead, policy.chunk, policy.action_start) == (3, 4, -2)
    fd = droid(mode="fd", chunk=4, state_row=False)
    assert fd.video_clean == (True, False) and all(fd.action_clean) and fd.action_start == 1
    backward = droid(mode="id", chunk=4, state_row=False)
    assert all(backward.video_clean) and not any(backward.action_clean)
    assert clean_mask([fd, backward], 3).tolist() == [
        [True] * 3 + [False] * 3 + [True] * 4,
        [True] * 6 + [False] * 4,
    ]


@pytest.mark.parametrize("start", [1, 0, -2])
def test_a_latent_frame_and_four_actions_advance_time_alike(start):
    """At 15 fps: 1.6 per latent frame, 0.4 per action; action k ends at pixel frame k + start."""
    video = video_positions(NANO, (3, 2, 2), 15.0, 15137)
    assert video.shape == (3, 12)
    torch.testing.assert_close(video[0].view(3, 4)[:, 0], torch.tensor([15137.0, 15138.6, 15140.2]))
    assert video[1:, :4].tolist() == [[0, 0, 1, 1], [0, 1, 0, 1]]
    action = action_positions(NANO, 12, start, 15.0, 15137)
    torch.testing.assert_close(action[0], 15137 + (torch.arange(12) + start) * 0.4)
    assert not action[1:].any()
    assert action[0, 8 - start] == video[0, 8]  # pixel frame 8 is latent frame 2


def test_frequencies_are_interleaved_over_time_height_and_width():
    positions = torch.tensor([[3.0], [5.0], [7.0]])
    cos, sin = rotary_tables(NANO, positions, torch.float32)
    assert cos.shape == (1, 128) and torch.equal(cos[:, :64], cos[:, 64:])
    for i in (0, 1, 2, 3, 58, 59, 60, 61, 63):
        position = {1: 5.0, 2: 7.0}.get(i % 3, 3.0) if i < 60 else 3.0
        angle = torch.tensor(position * 5e6 ** (-2 * i / 128))
        torch.testing.assert_close(cos[0, i], angle.cos(), rtol=0, atol=1e-6)
        torch.testing.assert_close(sin[0, i], angle.sin(), rtol=0, atol=1e-6)


def test_positions_follow_the_prompt_and_stay_fp32_until_the_end():
    plan, config = droid(chunk=4), PRESETS["tiny-nano"]
    layout = TokenLayout.build(config, plan.shape(4, 4), [plan] * 2, [137, 10], dtype=torch.bfloat16)
    alone = TokenLayout.build(config, plan.shape(4, 4), [plan], [10])
    assert torch.equal(layout.cos[1:], alone.cos.bfloat16())
    assert not torch.equal(layout.cos[0], layout.cos[1])
    assert layout.actions_from == 2 * 4 and layout.batch == 2
    joined = TokenLayout.concat([alone, alone])
    assert joined.prompt_lengths == (10, 10) and joined.cos.shape[0] == 2


def test_padded_channels_and_given_rows_have_no_velocity():
    plan = droid(chunk=4, raw_action_dim=3)
    layout = TokenLayout.build(PRESETS["tiny-nano"], plan.shape(4, 4), [plan], [5])
    assert layout.action_noisy[0].sum(1).tolist() == [0, 3, 3, 3, 3]
    assert layout.video_noisy.flatten().tolist() == [0, 1]
    assert layout.noisy.flatten().tolist() == [0] * 4 + [1] * 4 + [0] + [1] * 4


@pytest.mark.parametrize(
    ("canvas", "content", "words"),
    [
        ((540, 640), (540, 640), r"odd canvas; seen: \(540, 640\)"),
        ((544, 736), (560, 640), "does not fit its canvas"),
        ((544, 736), (8, 640), "does not fit its canvas"),
    ],
)
def test_an_odd_canvas_is_refused(canvas, content, words):
    with pytest.raises(RequestError, match=words):
        latent_size(canvas, content)


@pytest.mark.parametrize(
    "change", [dict(chunk=0), dict(history=-1), dict(frozen=33), dict(rate_hz=0), dict(mode="wam")]
)
def test_impossible_plans_are_refused(change):
    with pytest.raises(RequestError):
        droid(**change)


def test_requests_of_unlike_shape_do_not_share_a_batch():
    with pytest.raises(RequestError, match="one shape; seen: 3 latent frames, 9 action rows"):
        TokenLayout.build(NANO, droid().shape(4, 4), [droid(), droid(chunk=8)], [5, 5])
    parts = [
        TokenLayout.build(PRESETS["tiny-nano"], p.shape(4, 4), [p], [5]) for p in (droid(), droid(chunk=8))
    ]
    with pytest.raises(RequestError, match="one shape"):
        TokenLayout.concat(parts)
