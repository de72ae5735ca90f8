import math

import pytest
import torch

from rankmixer_dist.layers import reference
from rankmixer_dist.layers.numeric import NumericNormalizer

MEAN, STD = (1.0, -20.0, 1e6), (2.0, 0.5, 10.0)
ROWS = [[1.0, -20.0, 1e6], [2.0, math.nan, 1e6 + 5], [math.nan, -19.0, math.nan], [-math.inf, math.inf, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [ROWS, ROWS[2:3]])
def test_matches_reference(rows, dtype):
    x_BN = torch.tensor(rows, dtype=dtype)
    normalised = NumericNormalizer(mean=MEAN, std=STD, bound=3.0)(x_BN)
    assert normalised.dtype == dtype
    # All values are exact in binary.
    assert torch.equal(normalised, reference.normalize_numerics(x_BN, MEAN, STD, 3.0))


def test_missing_is_zero_with_its_own_column_and_outliers_are_clipped():
    z = NumericNormalizer(mean=MEAN, std=STD, bound=3.0)(torch.tensor(ROWS))
    assert z[1].tolist() == [0.5, 0, 0, 1, 0.5, 0]
    assert z[3].tolist() == [-3, 0, 3, 0, -3, 0]


def test_missing_values_leave_gradients_finite():
    x_BN = torch.tensor(ROWS[:3], requires_grad=True)
    (gradient,) = torch.autograd.grad(NumericNormalizer(mean=MEAN, std=STD)(x_BN).sum(), x_BN)
    assert gradient[0].tolist() == pytest.approx([1 / std for std in STD])
    assert gradient.isfinite().all()
    assert (gradient[x_BN.isnan()] == 0).all()


def test_statistics_stay_fp32_in_a_bf16_model():
    model = torch.nn.Sequential(NumericNormalizer(mean=[1_000_001.0], std=[1.0])).bfloat16()
    assert model(torch.tensor([[1_000_002.0]])).tolist() == [[1.0, 0.0]]


def test_a_constant_feature_is_only_centred():
    z = NumericNormalizer(mean=[4.0], std=[0.0])(torch.tensor([[4.0], [5.0], [400.0]]))
    assert z[:, 0].tolist() == [0, 1, 5]


def test_no_numerics_give_no_columns():
    assert NumericNormalizer(mean=[], std=[])(torch.zeros(3, 0)).shape == (3, 0)


@pytest.mark.parametrize(
    ("mean", "std", "bound", "message"),
    [
        ([0.0], [1.0, 1.0], 5.0, "1 means but 2 standard deviations"),
        ([0.0, 0.0], [1.0, -1.0], 5.0, "numeric 1: mean 0.0, std -1.0"),
        ([math.nan], [1.0], 5.0, "must be finite"),
        ([0.0], [1.0], 0.0, "bound 0.0 must be above 0"),
    ],
)
def test_impossible_statistics_are_refused(mean, std, bound, message):
    with pytest.raises(ValueError, match=message):
        NumericNormalizer(mean=mean, std=std, bound=bound)
