"""`--rounding` tells two computations of one value apart, and one computation run twice not."""

import torch

from tests.rounding import OtherRounding


def test_other_shapes_round_otherwise_and_equal_shapes_alike():
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(12, 8, generator=generator), torch.randn(8, 5, generator=generator)
    plain = rows @ weight
    differ = False
    for seed in range(1, 4):
        with OtherRounding(seed):
            whole, again = rows @ weight, rows @ weight
            parts = torch.cat([rows[:size] @ weight for size in range(1, 13)])
        assert torch.equal(whole, again)
        torch.testing.assert_close(whole, plain, rtol=2e-7, atol=0)
        expected = torch.cat([whole[:size] for size in range(1, 13)])
        torch.testing.assert_close(parts, expected, rtol=1e-6, atol=0)
        differ |= not torch.equal(parts, expected)
    assert differ and torch.equal(rows @ weight, plain)
