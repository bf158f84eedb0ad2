import numpy as np, pytest, torch
from ks_cases import CASES, DTYPES, make_pair, expected
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 2, 63, 64, 576, 1027, 4096])
@pytest.mark.parametrize("case", CASES)
def test_x(cuda, case, d, dtype):
    x, y = make_pair(case, np.random.default_rng(d), 3, d, d, (dtype, dtype))
    want = expected(x, y)
    h = np.maximum(want.plus, want.minus)
    got, flags = cuda.ks_statistics(x, y)
    np.testing.assert_array_equal(got.numpy(), h)
    np.testing.assert_array_equal(flags.numpy(), want.flags)
    for got, w in zip(cuda.ks_rows(x, y), want):
        np.testing.assert_array_equal(got.numpy(), w)
