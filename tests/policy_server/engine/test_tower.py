"""A layer's products through oneDNN are those of torch, whatever is done while they are written."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wamserve.policy_server.engine.tower import OneDNNLinear, fused


@pytest.mark.parametrize("bias", [False, True])
def test_swiglu_inside_the_products_equals_its_formula_in_double(bias):
    torch.manual_seed(0)
    gate, up = nn.Linear(24, 40, bias=bias), nn.Linear(24, 40, bias=bias)
    x = torch.randn(2, 7, 24) * 4
    want = F.silu(gate.double()(x.double())) * up.double()(x.double())
    whole = OneDNNLinear(fused([gate.float(), up.float()]))
    torch.testing.assert_close(whole.swiglu(x).double(), want, rtol=2e-6, atol=2e-6)
