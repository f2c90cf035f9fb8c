"""The engine behind `load_policy`: admitted by the card when quantized, warm before the first request."""

import pytest

from wamserve.action_codec.errors import CheckpointError, RequestError
from wamserve.policy_server.blank import blank_request
from wamserve.policy_server.card import shipped_cards, write_card
from wamserve.policy_server.load import random_policy


def test_a_quantized_policy_is_admitted_by_its_card_and_serves_without_the_plain_weights():
    policy = random_policy("tiny-nano", "pusht", engine={"quantize": "int8"})
    plain = random_policy("tiny-nano", "pusht")
    request = blank_request(policy.contract, seed=1)
    got, want = (one.infer(request).chunk.actions for one in (policy, plain))
    scale = plain.codec.normalizer.actions.half_width
    assert 0 < abs((got - want) / scale).mean() < 0.05
    assert policy.network.layers[0].self_attn.add_q_proj.weight.is_meta


@pytest.mark.parametrize(
    ("limit", "words"),
    [(1e-9, "changes the actions .* more than its card allows"), (None, "does not say how far")],
)
def test_a_card_decides_how_far_quantization_may_go(tmp_path, limit, words):
    from dataclasses import replace

    card = shipped_cards()["random-weights"]
    strict = replace(card, bounds=replace(card.bounds, quantized_error=limit))
    file = write_card(strict, tmp_path / "card.toml")
    with pytest.raises(CheckpointError, match=words):
        random_policy("tiny-nano", "pusht", card=str(file), engine={"quantize": "int8"})


def test_prompts_of_a_file_are_read_before_the_first_request(tmp_path):
    file = tmp_path / "instructions.txt"
    file.write_text("# today\nPush the T onto its goal.\n\nStop.\nStop.\n")
    policy = random_policy("tiny-nano", "pusht", engine={}, warm_prompts=file)
    assert policy.prompts.misses == 3, "two sentences and the empty prompt"
    from dataclasses import replace

    request = blank_request(policy.contract, seed=1)
    policy.infer(replace(request, observation=replace(request.observation, instruction="Stop.")))
    assert policy.prompts.misses == 3
    listed = random_policy("tiny-nano", "pusht", engine={}, warm_prompts=["Stop.", "Push."])
    assert listed.prompts.misses == 3
    with pytest.raises(RequestError, match="no instructions can be read"):
        random_policy("tiny-nano", "pusht", warm_prompts=tmp_path / "none.txt")
    with pytest.raises(RequestError, match="cache is too small"):
        random_policy("tiny-nano", "pusht", warm_prompts=file, prompt_cache_bytes=1000)
