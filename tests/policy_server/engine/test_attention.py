"""Two attentions over disjoint keys, joined by their log-sum-exp, are one attention over all keys."""

import pytest
import torch
import torch.nn.functional as F

from wamserve.policy_server.engine import attention
from wamserve.policy_server.engine.attention import MASKED, attend_blocked, attend_merged, attend_sliced
from wamserve.policy_server.engine.lanes import Lanes


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
def test_merged_and_sliced_equal_attention_over_the_concatenation(heads, groups, monkeypatch):
    monkeypatch.setattr(attention, "SHORT", 0)
    torch.manual_seed(0)
    bucket, own, lengths = 16, 21, (16, 5, 5, 1)
    rows = len(lengths)
    query = torch.randn(rows, heads, 13, 8)
    keys, values = (torch.randn(rows, groups, bucket + own, 8) for _ in range(2))
    keys[1, :, : bucket - 5] = 100.0  # what is left of an earlier prompt must not be seen
    bias = torch.full((rows, 1, 1, bucket), MASKED)
    want = []
    for row, length in enumerate(lengths):
        bias[row, ..., bucket - length :] = 0
        one = slice(row, row + 1)
        span = slice(bucket - length, None)
        want.append(
            F.scaled_dot_product_attention(
                query[one], keys[one, :, span], values[one, :, span], enable_gqa=True
            )
        )
    expected = torch.cat(want)
    merged = attend_merged(query, keys, values, bucket, bias)
    sliced = attend_sliced(query, keys, values, bucket, lengths)
    blocked = attend_blocked(query, keys, values, bucket, lengths, Lanes())
    torch.testing.assert_close(blocked, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(merged, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(sliced, expected, rtol=0, atol=2e-6)


def test_a_prompt_far_stronger_or_weaker_than_generation_survives_the_merge():
    torch.manual_seed(0)
    query, keys, values = torch.ones(1, 1, 3, 8), torch.randn(1, 1, 12, 8), torch.randn(1, 1, 12, 8)
    bias = torch.zeros(1, 1, 1, 4)
    for shift in (-30.0, 30.0):
        moved = keys.clone()
        moved[:, :, :4] += shift
        want = F.scaled_dot_product_attention(query, moved, values)
        got = attend_merged(query, moved, values, 4, bias)
        torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_lane_has_one_thread_the_callers_modes_and_its_errors_reach_the_caller(count):
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        lanes = Lanes()
        seen: set[tuple[int, bool, bool]] = set()

        def look(job: int) -> None:
            seen.add((torch.get_num_threads(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

        with torch.inference_mode():
            lanes.each(look, range(12))
        with torch.no_grad():
            lanes.each(look, range(12))
        assert seen == {(1, True, False), (1, False, False)}
        assert torch.get_num_threads() == count
        with pytest.raises(ZeroDivisionError):
            lanes.each(lambda job: 1 // job, [1, 0, 1])
    finally:
        torch.set_num_threads(threads)
