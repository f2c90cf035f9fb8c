"""The attention that trains on a CPU is the network's attention."""

from __future__ import annotations

import pytest
import torch

from wamserve.policy_server.world_model.attention import joint_attention
from wamserve.training.attention import product_attention


@pytest.mark.parametrize("lengths", [(5, 5, 5), (5, 2, 4), (0, 0, 3)])
def test_matrix_products_attend_as_the_fused_kernel_does(lengths):
    torch.manual_seed(0)
    query = torch.randn(3, 4, 9, 16)
    key, value = torch.randn(2, 3, 2, 9, 16)
    prompt_key, prompt_value = torch.randn(2, 3, 2, 5, 16)
    tensors = [query, key, value, prompt_key, prompt_value]
    wanted, got = [], []
    for attend, grads in ((joint_attention, wanted), (product_attention, got)):
        leaves = [x.clone().requires_grad_() for x in tensors]
        out = attend(*leaves, lengths)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        grads += [out.detach(), *(x.grad for x in leaves)]
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.03)


def test_padding_of_a_short_prompt_gets_no_gradient():
    leaves = [torch.randn(*shape).requires_grad_() for shape in [(2, 2, 3, 8)] * 3 + [(2, 2, 4, 8)] * 2]
    product_attention(*leaves, (4, 1)).sum().backward()
    assert not leaves[3].grad[1, :, 1:].any() and not leaves[4].grad[1, :, 1:].any()
