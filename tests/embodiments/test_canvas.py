"""Views become the frame a model saw in training, pixel by pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wamserve.action_codec.errors import RequestError
from wamserve.embodiments.canvas import (
    TIERS,
    canvas_fit,
    compose,
    crop_frame,
    fit_frame,
    fit_size,
    frame,
    resize_bicubic,
    resize_bilinear,
    tier_of,
)
from wamserve.embodiments.contract import load, names

torch = pytest.importorskip("torch")


def picture(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def smooth(height, width):
    """Gradients and edges, like a camera's picture."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 127 * np.sin(x / 31 + y / 17), 255 * (x // 40 % 2), 255.0 * y / height]
    return np.stack(planes, -1).astype(np.uint8)


def interpolated(pixels, height, width, mode, **options):
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    out = torch.nn.functional.interpolate(
        image, size=(height, width), mode=mode, align_corners=False, **options
    )
    return out[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("source", "target"),
    [((360, 640), (180, 320)), ((224, 224), (112, 112)), ((480, 640), (360, 640)), ((480, 640), (240, 320))],
)
def test_side_views_shrink_as_torch_bilinear_does_bit_for_bit(source, target):
    for pixels in (picture(*source), smooth(*source)):
        expected = interpolated(pixels, *target, "bilinear").astype(np.uint8)
        np.testing.assert_array_equal(resize_bilinear(pixels, *target), expected)


@pytest.mark.parametrize(("source", "target"), [((432, 512), (540, 640)), ((1080, 1280), (540, 641))])
def test_other_bilinear_sizes_differ_from_torch_by_one_level_in_under_a_thousandth(source, target):
    pixels = picture(*source)
    expected = interpolated(pixels, *target, "bilinear").astype(np.uint8)
    difference = np.abs(resize_bilinear(pixels, *target).astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


@pytest.mark.parametrize(("source", "target"), [((720, 640), (640, 569)), ((1080, 1280), (544, 645))])
def test_tier_shrinks_as_antialiased_bicubic_on_uint8_does(source, target):
    for pixels in (picture(*source), smooth(*source)):
        exact = interpolated(pixels, *target, "bicubic", antialias=True)
        expected = exact.clip(0, 255).round().astype(np.uint8)
        difference = np.abs(resize_bicubic(pixels, *target).astype(int) - expected)
        # Values within 1e-3 of a half may round the other way; nothing else may differ.
        assert difference.max() <= 1
        assert (np.abs(exact % 1.0 - 0.5)[difference > 0] < 1e-3).all()
        assert (difference > 0).mean() < 1e-3


def test_bicubic_overshoot_is_clamped_not_wrapped():
    edge = np.zeros((64, 64, 3), np.uint8)
    edge[:, 32:] = 255
    shrunk = resize_bicubic(edge, 64, 48)
    assert set(np.unique(shrunk[:, :20])) == {0} and set(np.unique(shrunk[:, 28:])) == {255}


def test_droid_canvas_is_wrist_over_left_and_right():
    views = {
        name: np.full((360, 640, 3), level, np.uint8)
        for name, level in (("wrist", 10), ("exterior_1", 20), ("exterior_2", 30))
    }
    whole = compose(load("droid_lerobot").model.canvas, views)
    assert whole.shape == (540, 640, 3)
    assert (whole[:360] == 10).all() and (whole[360:, :320] == 20).all() and (whole[360:, 320:] == 30).all()


def test_swapped_exteriors_are_another_canvas():
    canvas = load("droid_lerobot").model.canvas
    views = {name: picture(360, 640, seed=i) for i, name in enumerate(canvas.views)}
    swapped = {**views, "exterior_1": views["exterior_2"], "exterior_2": views["exterior_1"]}
    assert (compose(canvas, views) != compose(canvas, swapped)).any()


def test_robomind_side_views_are_squeezed_to_half_the_top_view():
    canvas = load("robomind-franka").model.canvas
    views = {"top": picture(720, 1280), "left": picture(480, 640, seed=1), "right": picture(480, 640, seed=2)}
    whole = compose(canvas, views)
    assert whole.shape == (1080, 1280, 3)
    expected = interpolated(views["left"], 360, 640, "bilinear").astype(np.uint8)
    np.testing.assert_array_equal(whole[720:, :640], expected)


def test_libero_views_stand_side_by_side():
    views = {"agentview": picture(256, 256), "wrist": picture(256, 256, seed=1)}
    whole = compose(load("libero").model.canvas, views)
    np.testing.assert_array_equal(whole, np.concatenate([views["agentview"], views["wrist"]], axis=1))
    fitted = fit_frame(whole, "256")
    assert fitted.pixels.shape == (192, 320, 3) and fitted.fit.content_height == 160


def test_a_video_composes_like_its_frames():
    canvas = load("droid_lerobot").model.canvas
    views = {name: picture(3, 360, 640, seed=i) for i, name in enumerate(canvas.views)}
    video = frame(canvas, views).pixels
    for i in range(3):
        alone = frame(canvas, {name: view[i] for name, view in views.items()}).pixels
        np.testing.assert_array_equal(video[i], alone)


def test_every_published_canvas_lands_where_the_reference_puts_it(shared):
    stored = json.loads((shared / "golden" / "actions" / "README.json").read_text())["codec_unit"]["meta"][
        "canvas"
    ]
    assert len(stored) == 13
    for name, sizes in stored.items():
        size, tier = name.split()[-2:]
        height, width = map(int, size.split("x"))
        fit = fit_size(height, width, tier.lstrip("@"))
        assert [fit.height, fit.width] == sizes["target_hw"], name
        assert [fit.content_height, fit.content_width] == sizes["content_hw"], name
        assert fit.width - fit.content_width == sizes["pad_right"], name
        assert fit.height - fit.content_height == sizes["pad_bottom"], name


LANDS = {  # contract -> padded frame and content, height x width
    "droid_lerobot": (544, 736, 540, 640),
    "bridge_orig_lerobot": (544, 736, 480, 640),
    "fractal": (544, 736, 256, 320),
    "umi": (640, 640, 224, 224),
    "agibotworld": (640, 640, 640, 569),
    "robomind-franka": (544, 736, 544, 645),
    "robomind-ur": (544, 736, 480, 640),
    "hand_pose": (480, 832, 480, 832),
    "hand_pose_escale": (544, 736, 480, 640),
    "av": (480, 832, 480, 832),
    "libero": (192, 320, 160, 320),
    "panda_joint": (96, 192, 96, 192),
    "panda_osc": (192, 320, 160, 320),
    "pusht": (128, 128, 128, 128),
    "pusht_64": (64, 64, 64, 64),
    "pusht_block": (128, 128, 128, 128),
}


@pytest.mark.parametrize("name", LANDS)
def test_contract_canvas_lands_in_its_tier(name):
    fit = canvas_fit(load(name).model.canvas)
    assert (fit.height, fit.width, fit.content_height, fit.content_width) == LANDS[name]


@pytest.mark.parametrize("name", names())
def test_wire_images_of_every_contract_compose_without_a_stretch(name):
    embodiment = load(name)
    views = {image.name: picture(image.height, image.width) for image in embodiment.wire.images}
    canvas = embodiment.model.canvas
    assert compose(canvas, views).shape == (canvas.height, canvas.width, 3)


def test_small_pictures_are_never_enlarged():
    small = picture(256, 320)
    fitted = fit_frame(small, "480")
    np.testing.assert_array_equal(crop_frame(fitted.pixels, fitted.fit), small)


def test_padding_reflects_below_the_pictures_size_and_repeats_the_edge_from_it_on():
    droid = picture(540, 640)
    padded = fit_frame(droid, "480").pixels
    np.testing.assert_array_equal(padded[:540, 640:], droid[:, 638:542:-1])
    np.testing.assert_array_equal(padded[540:, :640], droid[538:534:-1])
    small = picture(256, 320)
    padded = fit_frame(small, "480").pixels
    np.testing.assert_array_equal(padded[:256, 320:], np.repeat(small[:, -1:], 416, axis=1))
    np.testing.assert_array_equal(padded[256:, :320], np.repeat(small[-1:], 288, axis=0))


def test_padding_equals_torch_reflection():
    image = torch.from_numpy(picture(540, 640)).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.pad(image, (0, 96, 0, 4), mode="reflect")[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(fit_frame(picture(540, 640), "480").pixels, expected.astype(np.uint8))


def test_every_tier_is_a_multiple_of_the_patch():
    for sizes in TIERS.values():
        for width, height in sizes.values():
            assert width % 16 == height % 16 == 0


def test_undeclared_tier_follows_the_shorter_side():
    assert [tier_of(*size) for size in ((256, 512), (540, 640), (720, 1280))] == ["256", "480", "720"]


def test_composed_canvas_passes_through():
    whole = picture(540, 640)
    assert compose(load("droid_lerobot").model.canvas, {"canvas": whole}) is whole


BAD = [
    ({"wrist": (360, 640), "exterior_2": (360, 640)}, "camera 'exterior_1' is missing from the observation"),
    (
        {"wrist": (224, 224), "exterior_1": (224, 224), "exterior_2": (224, 224)},
        "are not stretched; seen: 336 x 224",
    ),
]


@pytest.mark.parametrize(("sizes", "message"), BAD)
def test_views_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(RequestError) as error:
        compose(load("droid_lerobot").model.canvas, {name: picture(*size) for name, size in sizes.items()})
    assert message in str(error.value)


def test_float_and_channel_first_images_are_refused():
    canvas = load("bridge_orig_lerobot").model.canvas
    with pytest.raises(RequestError, match="is not uint8; seen: float32"):
        compose(canvas, {"exterior_1": picture(480, 640).astype(np.float32) / 255})
    odd = {"wrist": picture(360, 641), "exterior_1": picture(360, 640), "exterior_2": picture(360, 640)}
    with pytest.raises(RequestError, match="image 'wrist' cannot be halved; seen: width 641"):
        compose(load("droid_lerobot").model.canvas, odd)
    with pytest.raises(RequestError, match="is not height x width x 3"):
        compose(canvas, {"exterior_1": np.zeros((3, 480, 640), np.uint8)})
