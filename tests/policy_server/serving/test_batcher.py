"""The queue: turns between clients, equal shapes together, the newest observation of a stream, a bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wamserve.action_codec.errors import PolicyOverloaded
from wamserve.clients.policy import Observation, Request
from wamserve.policy_server.serving.batcher import Batcher, Job


def job(client="a", size=8, arrived=0.0, stream=None, **request) -> Job:
    seen = Observation({"wrist": np.zeros((size, size, 3), np.uint8)}, {})
    return Job(Request(seen, **request), client, arrived, arrived, stream)


def queue(*jobs, max_batch=8, max_queue=64) -> Batcher:
    batcher = Batcher(max_batch, max_queue)
    for each in jobs:
        batcher.offer(each)
    return batcher


def test_equal_shapes_of_several_clients_run_together():
    jobs = [job("a"), job("b"), job("c")]
    batcher = queue(*jobs)
    assert batcher.take() == jobs
    assert len(batcher) == 0


@pytest.mark.parametrize(
    "other",
    [
        {"size": 16},
        {"steps": 2},
        {"guidance": 2.0},
        {"mode": "id"},
        {"prefix": np.zeros((2, 8))},
        {"want_video": True},
    ],
)
def test_unequal_shapes_or_steps_do_not_share_a_batch(other):
    first, second = job("a"), job("b", **other)
    batcher = queue(first, second)
    assert batcher.take() == [first]
    assert batcher.take() == [second]


def test_seeds_and_prompts_may_differ_within_a_batch():
    first, second = job("a", seed=1), job("b", seed=2)
    assert queue(first, second).take() == [first, second]


def test_a_flooding_client_does_not_starve_another():
    flood = [job("flood") for _ in range(10)]
    quiet = job("quiet")
    batcher = queue(*flood, quiet, max_batch=2)
    assert quiet in batcher.take()


def test_clients_take_turns_when_only_one_fits():
    batcher = queue(*[job(name, arrived=i) for i, name in enumerate("aaabbc")], max_batch=1)
    assert "".join(batcher.take()[0].client for _ in range(6)) == "abcaba"


def test_jobs_of_one_client_keep_their_order_across_shapes():
    small, large, small_again = job("a"), job("a", size=16), job("a")
    batcher = queue(small, large, small_again)
    assert [batcher.take() for _ in range(3)] == [[small], [large], [small_again]]


def test_the_newest_observation_of_a_stream_replaces_the_one_that_waits():
    old, new = job(stream="s"), job(stream="s")
    batcher = queue(old)
    assert batcher.offer(new) is old
    assert batcher.take() == [new]


def test_streams_do_not_replace_each_other():
    first, second = job(stream="s"), job(stream="t")
    assert queue(first).offer(second) is None


def test_a_full_queue_says_overloaded_but_a_stream_may_still_renew_itself():
    batcher = queue(job(stream="s"), job(), max_queue=2)
    with pytest.raises(PolicyOverloaded, match="2 requests wait"):
        batcher.offer(job())
    assert batcher.offer(job(stream="s")) is not None


def test_a_withdrawn_job_is_not_computed():
    gone, stays = job("a"), job("b")
    batcher = queue(gone, stays)
    assert batcher.withdraw(gone)
    assert not batcher.withdraw(gone)
    assert batcher.take() == [stays]


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([8, 16]), st.booleans()), max_size=40),
    st.integers(1, 5),
)
def test_every_job_leaves_exactly_once_in_batches_of_one_shape(steps, max_batch):
    batcher = Batcher(max_batch, 100)
    offered, left, replaced = [], [], []
    for client, size, stream in steps:
        each = job(client, size, stream=(client, "s") if stream else None)
        offered.append(each)
        if (old := batcher.offer(each)) is not None:
            replaced.append(old)
    while len(batcher):
        batch = batcher.take()
        assert 0 < len(batch) <= max_batch
        assert len({each.key for each in batch}) == 1
        left += batch
    assert sorted(map(id, left + replaced)) == sorted(map(id, offered))
    for client in "abcd":
        mine = [each for each in offered if each.client == client and each.stream is None]
        assert [each for each in left if each in mine] == mine
