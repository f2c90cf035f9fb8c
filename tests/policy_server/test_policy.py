"""A loaded policy answers requests: end to end against the reference, and its promises one by one."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from wamserve.action_codec.errors import CheckpointError, RequestError
from wamserve.clients.policy import BatchPolicy, Observation, Request
from wamserve.embodiments.contract import load
from wamserve.policy_server.blank import blank_request
from wamserve.policy_server.card import shipped_cards
from wamserve.policy_server.load import load_network, load_policy, load_vae, random_policy
from wamserve.policy_server.policy import WorldActionPolicy
from wamserve.policy_server.prompt_cache import PromptCache
from wamserve.policy_server.runner import Plain
from wamserve.policy_server.serving.served import Served
from wamserve.policy_server.world_model.checkpoint import open_checkpoint
from wamserve.policy_server.world_model.random_weights import write_random_checkpoint
from wamserve.policy_server.world_model.text import load_tokenizer


@pytest.fixture(autouse=True, scope="module")
def one_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAMSERVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def shared_policy():
    """PushT on a tiny network: one 128-pixel view, 16 rows, a state row."""
    return random_policy("tiny-nano", "pusht")


@pytest.fixture
def policy(shared_policy):
    shared_policy.deterministic = False
    shared_policy.prompts = PromptCache(shared_policy.network, shared_policy.prompts.tokenizer)
    shared_policy.runner = Plain(shared_policy.vae, shared_policy.network.device)
    return shared_policy


def ask(picture=0, instruction="Push the T onto its goal.", x=200.0, mode="policy", **options):
    """Two steps unless said otherwise; the seed is the picture's unless said otherwise."""
    rng = np.random.default_rng(picture)
    image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    seen = Observation({"top": image}, {"agent_pos": np.array([x, 300], np.float32)}, instruction, 12.5)
    if mode == "fd":
        options.setdefault("actions", rng.uniform(100, 400, (16, 2)))
    if mode == "id":
        frames = rng.integers(0, 256, (17, 8, 8, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
        options.setdefault("video", frames)
    return Request(seen, mode, **{"seed": picture, "steps": 2, **options})


def test_a_request_through_the_whole_policy_equals_the_nvidia_server(shared):
    """Three camera views, state row, guidance, framework noise, the gripper turned twice."""
    files = sorted((shared / "golden/model").glob("*_policy_state.npz"))
    assert files
    for file in files:
        golden = np.load(file)
        policy = served_droid(shared / "golden/model" / f"tiny-{file.stem.split('_')[0]}", golden)
        views = {"wrist": "wrist", "exterior_1": "ext1", "exterior_2": "ext2"}
        state = {
            "joint_position": golden["joint_position"],
            "gripper_position": golden["gripper_position"].reshape(1),
        }
        task = json.loads(str(golden["cond_prompt_json"]))["actions"][0]["description"]
        seen = Observation({name: golden[key] for name, key in views.items()}, state, task.removesuffix("."))
        request = Request(seen, seed=int(golden["seed"]))
        job = policy.prepare(request)
        assert job.prompt == str(golden["cond_prompt_json"])
        prediction = policy.infer(request)
        guided = sum(bool(golden[f"step{k}/used_cfg"]) for k in range(4))
        assert prediction.seed == int(golden["seed"]) and prediction.ledger.forwards == 4 + guided
        worst = np.abs(prediction.chunk.actions - golden["final_action"]).max()
        print(f"max |difference| {worst:.1e} of {np.abs(golden['final_action']).max():.1f}")
        assert worst < 2e-5


def served_droid(folder, golden):
    """The DROID policy at the size and chunk of a recorded server call."""
    droid, chunk = load("droid_lerobot"), int(golden["chunk_size"])
    (height, width), view = golden["canvas"].shape[:2], golden["wrist"].shape
    canvas = replace(droid.model.canvas, height=height, width=width, tier="256")
    images = tuple(replace(image, height=view[0], width=view[1]) for image in droid.wire.images)
    contract = replace(
        droid,
        model=replace(droid.model, chunk=chunk, canvas=canvas),
        wire=replace(droid.wire, chunk=chunk, images=images),
    )
    card, bounds = shipped_cards()["random-weights"], golden["guidance_interval"]
    interval = None if np.isnan(bounds).any() else tuple(map(float, bounds))
    card = replace(card, policy=replace(card.policy, guidance=float(golden["guidance"]), interval=interval))
    opened, cpu = open_checkpoint(folder), torch.device("cpu")
    return WorldActionPolicy(
        load_network(opened, cpu, torch.float32, lambda *_: None),
        load_vae(opened, cpu, torch.float32),
        load_tokenizer(opened.tokenizer_folder, opened.config.vocab_size),
        contract,
        card,
    )


def test_it_is_a_batch_policy_and_says_what_it_is(policy):
    assert isinstance(policy, BatchPolicy)
    served = Served.from_plain(policy.describe())
    assert served.embodiment == "pusht" and served.chunk_rows == 16 and served.period == pytest.approx(0.1)
    assert served.wire_sha256 == load("pusht").wire_hash and served.modes == ("policy", "fd", "id")
    assert served.weights_sha256 == policy.weights_sha256 and len(served.weights_sha256) == 64
    assert "4 steps, shift 5" in served.line()


def test_the_chunk_starts_when_the_picture_was_taken(policy):
    chunk = policy.infer(ask(delay=3)).chunk
    assert chunk.actions.shape == (16, 2) and chunk.start == 12.5 and chunk.period == 0.1 and chunk.delay == 3


def test_batched_equals_single_for_different_prompts_pictures_and_seeds(policy):
    requests = [ask(seed, f"Push the T {'far ' * seed}away.", x=50.0 * seed) for seed in range(4)]
    together = policy.infer_batch(requests)
    assert {p.ledger.batch for p in together} == {4}
    scale = policy.codec.normalizer.actions.half_width
    for request, batched in zip(requests, together, strict=True):
        alone = policy.infer(request)
        assert np.abs((alone.chunk.actions - batched.chunk.actions) / scale).max() < 1e-5


def test_unlike_requests_of_one_batch_come_back_in_order(policy):
    requests = [ask(1), ask(2, mode="id"), ask(3, steps=1), ask(4, mode="fd"), ask(5)]
    answers = policy.infer_batch(requests)
    assert [answer.seed for answer in answers] == [1, 2, 3, 4, 5]
    assert [answer.video is not None for answer in answers] == [False, False, False, True, False]
    assert [answer.chunk is not None for answer in answers] == [True, True, True, False, True]
    assert [answer.ledger.batch for answer in answers] == [2, 1, 1, 1, 2]


def test_deterministic_replies_are_bitwise_equal_whatever_the_neighbours_and_the_history(policy):
    policy.deterministic = True
    alone = policy.infer(ask(7)).chunk.actions
    neighbours = [ask(seed, f"Neighbour number {seed}.") for seed in (20, 21)]
    crowd = policy.infer_batch([neighbours[0], ask(7), *neighbours[1:]])[1].chunk.actions
    later = policy.infer(ask(7)).chunk.actions
    assert alone.tobytes() == crowd.tobytes() == later.tobytes()


def test_seeds_decide_and_are_echoed(policy):
    first, again, other = (policy.infer(ask(0, seed=seed)) for seed in (5, 5, 6))
    assert np.array_equal(first.chunk.actions, again.chunk.actions)
    assert not np.allclose(first.chunk.actions, other.chunk.actions)
    drawn = [policy.infer(ask(seed=None)).seed for _ in range(2)]
    assert drawn[0] != drawn[1]
    sessions = [policy.infer(ask(seed=None, session="a", step=s)).seed for s in (0, 8, 0)]
    assert sessions[0] == sessions[2] != sessions[1]


def test_overrides_are_obeyed_inside_the_cards_bounds(policy):
    assert policy.infer(ask(steps=None)).ledger.forwards == 8  # 4 steps, both branches
    assert policy.infer(ask(steps=2, guidance=1.0)).ledger.forwards == 2
    with pytest.raises(RequestError, match="steps 500 is outside"):
        policy.infer(ask(steps=500))


def test_edge_guides_its_first_step_only(policy):
    card = policy.card
    try:
        policy.card = replace(card, policy=replace(card.policy, interval=(960.0, 1001.0)))
        assert policy.infer(ask(steps=None)).ledger.forwards == 5
    finally:
        policy.card = card


def test_a_prompt_is_read_once(policy):
    policy.infer_batch([ask(0), ask(1), ask(2)])
    assert (policy.prompts.misses, policy.prompts.hits) == (2, 2)  # the sentence and the empty prompt
    policy.infer(ask(3))
    assert policy.prompts.misses == 2


def test_the_prompt_cache_forgets_what_was_used_longest_ago(policy):
    cache = policy.prompts
    cache.max_bytes = 2 * cache.one("aaaa").nbytes
    cache.one("bbbb")
    cache.one("aaaa")
    cache.one("cccc")
    assert len(cache) == 2 and cache.nbytes <= cache.max_bytes
    before = cache.misses
    cache.one("aaaa")
    assert cache.misses == before, "the one used last was kept"
    cache.one("bbbb")
    assert cache.misses == before + 1


def test_committed_rows_come_back_and_steer_the_rest(policy):
    free = policy.infer(ask()).chunk.actions
    prefix = np.linspace(100, 400, 10).reshape(5, 2)
    held = policy.infer(ask(prefix=prefix)).chunk.actions
    np.testing.assert_allclose(held[:5], prefix, atol=1e-3)
    assert np.abs(held[5:] - free[5:]).max() > 0.1


def test_requests_with_and_without_committed_rows_share_a_batch(policy):
    answers = policy.infer_batch([ask(1), ask(2, prefix=np.full((3, 2), 250.0))])
    assert {answer.ledger.batch for answer in answers} == {2}
    np.testing.assert_allclose(answers[1].chunk.actions[:3], 250.0, atol=1e-3)


def test_picture_words_and_state_all_reach_the_actions(policy):
    base = policy.infer(ask(1)).chunk.actions
    for other in (ask(2, seed=1), ask(1, instruction="Do something else."), ask(1, x=450.0)):
        assert np.abs(policy.infer(other).chunk.actions - base).max() > 1e-2


def test_forward_dynamics_with_shuffled_actions_is_another_video(policy):
    request = ask(3, mode="fd")
    video = policy.infer(request).video
    assert video.shape == (17, 128, 128, 3) and video.dtype == np.uint8
    shuffled = policy.infer(replace(request, actions=request.actions[::-1].copy())).video
    assert not np.array_equal(video, shuffled)


def test_inverse_dynamics_answers_in_raw_rows_and_reads_every_frame(policy):
    request = ask(4, mode="id")
    answer = policy.infer(request)
    assert answer.video is None and answer.chunk.actions.shape == (16, 2)
    video = request.video.copy()
    video[9:] = 255 - video[9:]
    assert (
        np.abs(policy.infer(replace(request, video=video)).chunk.actions - answer.chunk.actions).max() > 1e-2
    )


def test_an_imagined_video_can_be_asked_what_was_done_in_it(policy):
    imagined = policy.infer(ask(5, want_video=True)).video
    assert policy.infer(ask(5, mode="id", video=imagined)).chunk.actions.shape == (16, 2)


def test_the_ledger_accounts_for_the_time_of_a_call(policy):
    import time

    begin = time.perf_counter()
    ledger = policy.infer(ask(1, want_video=True)).ledger
    whole = 1e3 * (time.perf_counter() - begin)
    assert min(ledger.preprocess_ms, ledger.encode_ms, ledger.denoise_ms, ledger.postprocess_ms) > 0
    assert 0.9 * whole < ledger.infer_ms <= whole


def test_progress_is_told_step_by_step(policy):
    seen = []
    policy.on_step = lambda *step: seen.append(step)
    policy.infer(ask(steps=3))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_bad_request_is_refused_before_any_forward(policy):
    policy.runner = None  # whoever touches it fails in another way than expected
    bad = [
        ask(x=np.nan),
        ask(instruction=""),
        ask(guidance=99.0),
        replace(ask(), mode="fd"),
        replace(ask(), mode="id", video=np.zeros((17, 128, 100, 3), np.uint8)),
    ]
    for request in bad:
        with pytest.raises(RequestError):
            policy.infer(request)


def test_the_engine_answers_like_the_plain_path(policy):
    fast = random_policy("tiny-nano", "pusht", engine={})
    assert type(fast.runner).__name__ == "Engine"
    scale = policy.codec.normalizer.actions.half_width
    for request in (ask(1), ask(2, mode="id"), ask(3, prefix=np.full((4, 2), 200.0))):
        plain, quick = policy.infer(request).chunk.actions, fast.infer(request).chunk.actions
        assert np.abs((plain - quick) / scale).max() < 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("weights") / "tiny", "tiny-edge")


def test_a_checkpoint_without_a_card_is_not_served_on_a_guess(folder):
    with pytest.raises(CheckpointError, match=r"has no policy_card\.toml"):
        load_policy(folder, "pusht")


def test_a_base_checkpoint_serves_dynamics_and_refuses_to_be_a_policy(folder):
    with pytest.raises(CheckpointError, match="never trained for droid_lerobot as a policy"):
        load_policy(folder, "droid_lerobot", card="nvidia/Cosmos3-Nano")
    with pytest.raises(CheckpointError, match="never trained for bridge_orig_lerobot as a policy"):
        load_policy(folder, "bridge_orig_lerobot", card="nvidia/Cosmos3-Nano", mode="policy")
    served = load_policy(folder, "bridge_orig_lerobot", card="nvidia/Cosmos3-Nano")
    assert served.describe()["modes"] == ["fd", "id"]
    with pytest.raises(CheckpointError, match="never trained for bridge_orig_lerobot as a policy"):
        served.infer(blank_request(served.contract))


def test_a_head_left_as_initialised_is_refused_whatever_the_card_says(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = write_random_checkpoint(tmp_path / "untrained", "tiny-edge")
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for head in ("action_proj_in", "action_proj_out"):
        weights[f"{head}.bias.weight"][4] = 0.0
    save_file(weights, file)
    with pytest.raises(CheckpointError, match="never trained for pusht: the action head of domain 4"):
        load_policy(copy, "pusht", card="random-weights")
    load_policy(copy, "droid_lerobot", card="random-weights")


def test_a_damaged_vae_or_tokenizer_is_refused_before_the_first_forward(tmp_path):
    from safetensors.torch import load_file, save_file

    copy = write_random_checkpoint(tmp_path / "damaged", "tiny-edge")
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"no VAE can be read from .*vae"):
        load_policy(copy, "pusht", card="random-weights")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"no VAE can be read from .*vae"):
        load_policy(copy, "pusht", card="random-weights")
    file.write_bytes(whole)
    weights = load_file(file)
    weights.pop("decoder.conv_out.weight")
    save_file(weights, file)
    with pytest.raises(CheckpointError, match=r"1 weights missing, e\.g\. decoder\.conv_out\.weight"):
        load_policy(copy, "pusht", card="random-weights")
    (copy / "text_tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no text_tokenizer/tokenizer_config\.json"):
        load_policy(copy, "pusht", card="random-weights")


def test_weights_are_compared_with_the_cards_hash(folder, tmp_path):
    from wamserve.policy_server.card import write_card

    card = replace(shipped_cards()["random-weights"], name="pinned", weights_sha256="0" * 64)
    file = write_card(card, tmp_path / "pinned.toml")
    with pytest.raises(CheckpointError, match="not those of the card pinned"):
        load_policy(folder, "pusht", card=str(file))


def test_devices_and_dtypes_that_are_not_there_are_refused(folder):
    if not torch.cuda.is_available():
        with pytest.raises(CheckpointError, match="no CUDA device here"):
            load_policy(folder, "pusht", card="random-weights", device="cuda")
    with pytest.raises(CheckpointError, match="no dtype 'fp4'"):
        load_policy(folder, "pusht", card="random-weights", dtype="fp4")


def test_bf16_stays_near_fp32(folder):
    full, half = (load_policy(folder, "pusht", card="random-weights", dtype=d) for d in ("fp32", "bf16"))
    a, b = (p.infer(ask(1)).chunk.actions / p.codec.normalizer.actions.half_width for p in (full, half))
    gap = np.abs(a - b)
    print(f"bf16 on CPU: max |difference| {gap.max():.3f}, mean {gap.mean():.4f} model units")
    assert gap.mean() < 0.05
