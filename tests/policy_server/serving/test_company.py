"""Whom a batch waits for, checked by hand and in a simulation with a clock of its own."""

from __future__ import annotations

import heapq
import random

import pytest

from wamserve.policy_server.serving.company import Company


def known(times, pauses) -> Company:
    """Everybody answered at second 100; times: batch size -> s. pauses: client -> s, each seen once."""
    company = Company()
    for size, seconds in times.items():
        company.ran(size, 99.0)  # the first run of a size is no measure
        company.ran(size, seconds)
    for client, pause in pauses.items():
        company.arrived(client, 0.0)
        company.answered(client, 1.0)
        company.arrived(client, 1.0 + pause / 1.25)  # the margin: expected after `pause`
        company.answered(client, 100.0)
    return company


def wait(company, size, *, now=100.0, room=7, **rest) -> float:
    """Seconds that a batch of `size` would wait."""
    return pytest.approx(company.wait_until(now, 100.0, size, room, **rest) - now, abs=1e-6)


FLAT = {1: 0.05, 8: 0.05}


def test_one_waits_for_one_while_that_takes_less_than_half_a_run():
    """n = m = 1, t = 50 ms: staying saves m t - (n + m) w = 50 - 2 w ms, so w < 25 ms."""
    assert wait(known(FLAT, {"b": 0.024}), 1) == 0.024
    assert wait(known(FLAT, {"b": 0.026}), 1) == 0


def test_seven_wait_for_the_eighth_no_longer_than_an_eighth_of_a_run():
    assert wait(known(FLAT, {"h": 0.006}), 7, room=1) == 0.006
    assert wait(known(FLAT, {"h": 0.007}), 7, room=1) == 0


def test_the_number_waited_for_is_the_one_that_saves_most():
    """From one: b at 5 ms saves 50 - 10 = 40 ms, c at 10 ms too 100 - 30 = 70, d at 24 ms too 150 - 96."""
    assert wait(known(FLAT, {"b": 0.005, "c": 0.010, "d": 0.024}), 1) == 0.010


def test_a_batch_never_waits_longer_than_half_its_run_since_the_engine_was_free():
    many = {name: 0.030 for name in "bcdefgh"}  # by the sum alone, seven would be worth 43 ms
    assert wait(known(FLAT, many), 1) == 0
    almost = {name: 0.024 for name in "bcdefgh"}
    assert wait(known(FLAT, almost), 1) == 0.024
    assert known(FLAT, almost).wait_until(100.010, 99.990, 1, 7) == 100.010, "ten of its 25 ms are spent"


def test_nobody_waits_where_a_batch_takes_its_requests_time_together():
    for times in ({1: 0.05, 2: 0.10, 4: 0.2, 8: 0.4}, {1: 0.05, 2: 0.10}, {1: 0.05, 8: 0.4}):
        assert wait(known(times, {"b": 0.001, "c": 0.001}), 1) == 0


def test_times_between_and_past_the_known_sizes_lie_on_a_line():
    company = known({2: 0.03, 4: 0.05}, {})
    times = [company.seconds(size) for size in (1, 2, 3, 4, 8)]
    assert times == pytest.approx([0.03, 0.03, 0.04, 0.05, 0.09])


def test_a_full_batch_a_lone_client_and_strangers_wait_for_nobody():
    assert wait(known(FLAT, {"b": 0.001}), 8, room=0) == 0
    assert wait(known(FLAT, {}), 1) == 0
    stranger = known(FLAT, {})
    stranger.arrived("s", 0.0)
    stranger.answered("s", 100.0)
    assert wait(stranger, 1) == 0


def test_nobody_waits_before_a_run_was_timed():
    company = known({}, {"b": 0.001})
    company.ran(1, 30.0)
    assert wait(company, 1) == 0


def test_who_is_late_or_gone_is_waited_for_no_more():
    company = known(FLAT, {"b": 0.010, "c": 0.020})
    assert wait(company, 1, now=100.011) == 0.009
    company.left("c")
    assert wait(company, 1, now=100.012) == 0


def test_a_request_with_a_deadline_leaves_in_time_for_it():
    company = known(FLAT, {"b": 0.020})
    assert wait(company, 1, leave_by=100.0701) == 0.020
    assert wait(company, 1, leave_by=100.0699) == 0


def test_two_long_pauses_among_eight_do_not_change_a_habit():
    company = known(FLAT, {})
    now = 0.0
    for pause in (0.008, 0.008, 0.008, 30.0, 0.008, 20.0, 0.008, 0.008):
        company.arrived("b", now)
        company.answered("b", now)
        now += pause
    company.arrived("b", now)
    company.answered("b", 100.0)
    assert wait(company, 1) == 0.010


def simulate(clients, run_s, pause_s, waits, seconds=20.0, max_batch=8):
    """(requests per second, mean latency in ms) of clients that return after `pause_s(rank, draw)`."""
    draw, company = random.Random(0), Company()
    events = [
        (0.1 * draw.random(), client) for client in range(clients)
    ]  # (when, client; -1: done; -2: look)
    heapq.heapify(events)
    queue, batch, latencies, left, free = [], [], [], 0.0, 0.0
    while events[0][0] < seconds:
        now, what = heapq.heappop(events)
        if what >= 0:
            company.arrived(what, now)
            queue.append((now, what))
        elif what == -1:
            company.ran(len(batch), now - left)
            for rank, (arrived, client) in enumerate(batch):
                latencies.append(now - arrived)
                company.answered(client, now)
                heapq.heappush(events, (now + pause_s(rank, draw), client))
            batch, free = [], now
        if batch or not queue:
            continue
        ready = queue[:max_batch]
        until = company.wait_until(now, max(free, ready[0][0]), len(ready), max_batch - len(ready))
        if until <= now or not waits:
            batch, queue, left = ready, queue[len(ready) :], now
            heapq.heappush(events, (now + run_s(len(ready)), -1))
        else:
            heapq.heappush(events, (until + 1e-9, -2))
    return len(latencies) / seconds, 1e3 * sum(latencies) / len(latencies)


def soon(rank, draw):
    """One process answers eight clients after each other."""
    return 0.004 + 0.0025 * rank + draw.expovariate(500)


def test_eight_clients_that_return_at_once_gain_a_fifth_of_throughput_and_of_latency():
    rate, mean_ms = simulate(8, lambda size: 0.05, soon, waits=True)
    rate_before, mean_ms_before = simulate(8, lambda size: 0.05, soon, waits=False)
    assert rate > 1.2 * rate_before and mean_ms < 0.8 * mean_ms_before


def test_a_lone_clients_latency_is_the_engines():
    assert simulate(1, lambda size: 0.05, soon, waits=True)[1] == pytest.approx(50.0)


@pytest.mark.parametrize("run_s", [lambda size: 0.05, lambda size: 0.05 * size])
@pytest.mark.parametrize("pause_s", [lambda rank, draw: draw.expovariate(10), lambda rank, draw: 0.5])
def test_clients_without_habit_or_far_away_lose_nothing_worth_mentioning(run_s, pause_s):
    rate, mean_ms = simulate(4, run_s, pause_s, waits=True)
    rate_before, mean_ms_before = simulate(4, run_s, pause_s, waits=False)
    assert rate > 0.97 * rate_before and mean_ms < 1.03 * mean_ms_before
