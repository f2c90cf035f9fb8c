"""The profile counts what a call does, in every thread, and a graph as one launch."""

import pytest
import torch

from wamserve.policy_server.engine import kernels
from wamserve.policy_server.engine.lanes import Lanes


def test_counts_and_times_are_per_forward_and_shares_sum_to_one():
    x = torch.randn(64, 64)

    def call():
        for _ in range(2):  # forwards, of three products each
            x @ x @ x @ x

    table = kernels.kernel_table(x.device, forwards=2, call=call, calls=5)
    by_name = {kernel.name: kernel for kernel in table.kernels}
    assert by_name["aten::mm"].count == 3 and by_name["aten::mm"].ms > 0
    assert table.launches >= 6 and sum(kernel.share for kernel in table.kernels) == pytest.approx(1)
    assert [k.ms for k in table.kernels] == sorted((k.ms for k in table.kernels), reverse=True)


def test_what_lanes_run_is_counted():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        lanes, x = Lanes(), torch.randn(64, 64)
        table = kernels.kernel_table(
            x.device, forwards=1, call=lambda: lanes.each(lambda job: torch.mm(x, x), range(8))
        )
    finally:
        torch.set_num_threads(threads)
    assert next(kernel.count for kernel in table.kernels if kernel.name == "aten::mm") == 8


def test_a_graph_is_one_launch_and_the_tail_of_a_table_one_row():
    spent = {f"gemm{i}": (1000.0 * (i + 1), 16) for i in range(4)}  # 1, 2, 3 and 4 ms over two calls
    host = {"cudaGraphLaunch": 2, "cudaLaunchKernel": 4, "cudaMemcpyAsync": 2, "aten::mm": 99}
    table = kernels._table("cuda", 8, 2, spent, host)
    assert table.launches == 3
    assert table.kernels[0] == kernels.Kernel("gemm3", ms=0.25, count=1.0, share=0.4)
    assert table.lines(most=2)[2:5] == [
        "| gemm3 | 0.250 | 1.0 | 40.0 % |",
        "| gemm2 | 0.188 | 1.0 | 30.0 % |",
        "| 2 others | 0.188 | 2.0 | 30.0 % |",
    ]
    assert table.lines()[-1] == "3 launches a call of 8 forwards"
