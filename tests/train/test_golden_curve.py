"""The loss curve of twenty steps is the one on file."""

import json

import numpy as np
import pytest
from goldens import regenerate

# Processors sum in other orders. That is fp32 rounding for AdamW; Scion's Newton–Schulz rounds to
# bf16 (2⁻⁸), where a last bit of the gradient can turn over.
RTOL = {"adamw": 1e-4, "scion": 2e-3}


@pytest.mark.parametrize("optimizer", regenerate.OPTIMIZERS)
def test_loss_curve_is_that_of_the_golden(optimizer):
    golden = json.loads((regenerate.HERE / "loss_curves.json").read_text())[optimizer]
    assert golden[-1] < golden[0] - 0.1
    np.testing.assert_allclose(regenerate.losses(optimizer), golden, rtol=RTOL[optimizer])
