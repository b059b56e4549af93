import itertools

import numpy as np
import pytest

from tfquant.numerics import QuantSpec, choose_params
from tfquant.observers import (
    OBSERVERS,
    Entropy,
    MeanSquaredError,
    MinMax,
    MovingAverage,
    Percentile,
    Summary,
    get,
)
from tfquant.observers.base import scattered

INT8 = QuantSpec(8)
INT4 = QuantSpec(4)
ORDERLESS = sorted(OBSERVERS.keys() - {"moving_average"})
SAMPLING = (Percentile, MeanSquaredError, Entropy)


def observe(observer, *batches):
    for batch in batches:
        batch = np.asarray(batch, np.float32)
        observer.update(Summary(float(batch.min()), float(batch.max()), batch.ravel()))
    return observer


def squared_error(x, low, high, spec):
    """Mean squared error of rounding every value, in plain numpy."""
    params = choose_params(low, high, spec)
    scale = np.float64(params.scale)
    q = np.clip(np.rint(x / scale) + params.zero_point, spec.qmin, spec.qmax)
    return np.mean((x - (q - params.zero_point) * scale) ** 2)


def divergence(x, low, high, spec, bins_per_level):
    """Kullback-Leibler divergence beyond chance, as `Entropy` defines it, one bin at a time."""
    params = choose_params(low, high, spec)
    num_bins = (spec.qmax - spec.qmin + 1) * bins_per_level
    first = (spec.qmin - 0.5 - params.zero_point) * float(params.scale)
    x = x[x != 0]
    raw = np.floor((x - first) / (params.scale / bins_per_level)).astype(int)
    inside = raw[(raw >= 0) & (raw < num_bins)]
    p = np.bincount(np.clip(raw, 0, num_bins - 1), minlength=num_bins) / x.size
    q, chance = np.zeros(num_bins), 0.0
    for start in range(0, num_bins, bins_per_level):
        level = slice(start, start + bins_per_level)
        filled = p[level] > 0
        count = ((inside >= start) & (inside < start + bins_per_level)).sum()
        q[level][filled] = count / inside.size / max(filled.sum(), 1)
        chance += max(filled.sum() - 1, 0) / (2 * x.size)
    q = np.maximum(q, 0.01 / x.size)
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0) - chance


@pytest.fixture
def laplace_with_outliers(rng):
    x = rng.laplace(size=65_536).astype(np.float32)
    x[:4] = [30, -25, 40, -35]
    return x


@pytest.mark.parametrize("alias", OBSERVERS)
class TestEveryObserver:
    def test_asking_before_any_batch_is_an_error(self, alias):
        with pytest.raises(ValueError, match="nothing was observed"):
            get(alias).range(INT8)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_values_that_are_not_finite_are_an_error(self, alias, bad):
        with pytest.raises(ValueError, match="finite"):
            observe(get(alias), [0.0, bad, 1.0])

    @pytest.mark.parametrize("value", [3.0, -3.0, 0.0, 1e-30, 3e38])
    def test_a_constant_tensor_keeps_its_value(self, alias, value):
        low, high = observe(get(alias), np.full(1000, value)).range(INT8)
        np.testing.assert_allclose([low, high], np.float32(value))

    def test_a_wide_grid_gets_the_exact_range(self, alias, laplace_with_outliers):
        x = laplace_with_outliers
        observer = observe(get(alias), *np.split(x, 8))
        assert observer.range(QuantSpec(16)) == (x.min(), x.max())

    @pytest.mark.parametrize("spec", [INT8, INT4, QuantSpec(2)])
    def test_a_range_on_one_side_of_zero_stays_there(self, alias, spec, rng):
        x = np.maximum(rng.normal(size=65_536), 0)
        low, high = observe(get(alias), x).range(spec)
        assert low == 0 < high
        low, high = observe(get(alias), -x).range(spec)
        assert low < 0 == high

    @pytest.mark.parametrize("spec", [INT8, INT4])
    def test_the_range_never_leaves_what_was_seen(self, alias, spec, laplace_with_outliers):
        x = laplace_with_outliers
        low, high = observe(get(alias), *np.split(x, 8)).range(spec)
        assert x.min() <= low < high <= x.max()

    def test_a_single_value_is_enough(self, alias):
        low, high = observe(get(alias), [0.7]).range(INT8)
        assert min(low, 0) == 0 and high == np.float32(0.7)

    def test_a_summary_without_a_sample_gives_its_extremes(self, alias):
        observer = get(alias)
        observer.update(Summary(-1.0, 2.0, np.empty(0, np.float32)))
        params = choose_params(*observer.range(INT8), INT8)
        assert params == choose_params(-1.0, 2.0, INT8)

    def test_few_signals_among_zeros_are_not_outliers(self, alias, rng):
        x = np.zeros(65_536)
        x[rng.choice(x.size, 3, replace=False)] = [1.0, 0.5, -0.5]
        low, high = observe(get(alias), x).range(INT8)
        assert low == pytest.approx(-0.5, rel=0.01) and high == pytest.approx(1.0, rel=0.01)

    def test_summarize_feeds_update(self, alias, rng):
        x = rng.normal(size=(3, 5, 7)).astype(np.float32)
        observer = get(alias)
        summary = observer.summarize(x)
        assert (summary.low, summary.high) == (x.min(), x.max())
        observer.update(summary)
        low, high = observer.range(INT8)
        assert low < 0 < high

    @pytest.mark.parametrize("spec", [INT8, INT4, QuantSpec(8, symmetric=True, narrow_range=True)])
    def test_answers_repeat(self, alias, spec, laplace_with_outliers):
        batches = np.split(laplace_with_outliers, 8)
        one, two = observe(get(alias), *batches), observe(get(alias), *batches)
        assert one.range(spec) == one.range(spec) == two.range(spec)


@pytest.mark.parametrize("alias", ORDERLESS)
def test_the_order_of_batches_does_not_matter(alias, laplace_with_outliers):
    batches = np.split(laplace_with_outliers, 8)
    forward, backward = observe(get(alias), *batches), observe(get(alias), *batches[::-1])
    assert forward.range(INT8) == backward.range(INT8)


@pytest.mark.parametrize("observer", SAMPLING)
def test_memory_stays_bounded(observer, rng):
    observer = observer()
    for _ in range(12):
        observe(observer, rng.normal(size=40_000))
    held = [v for v in vars(observer._reservoir).values() if isinstance(v, np.ndarray)]
    assert sum(v.size for v in held) == 2**18


@pytest.mark.parametrize("observer", SAMPLING)
def test_early_and_late_batches_weigh_the_same_past_the_bound(observer):
    observer = observer()
    for batch in range(20):
        observe(observer, np.full(20_000, batch + 1.0))
    values, counts = np.unique(observer._reservoir.values(), return_counts=True)
    np.testing.assert_array_equal(values, np.arange(1, 21))
    # 6553 expected of each; the standard deviation of a count is 65.
    np.testing.assert_allclose(counts, 2**17 / 20, atol=5 * 65)


def test_min_max_is_exact_over_all_batches(rng):
    batches = rng.normal(size=(10, 100)).astype(np.float32)
    assert observe(MinMax(), *batches).range(INT8) == (batches.min(), batches.max())


def test_moving_average_follows_its_recurrence():
    observer = observe(MovingAverage(momentum=0.75), [-1.0, 4.0], [-3.0, 8.0], [-5.0, 0.0])
    low = 0.75 * (0.75 * -1 + 0.25 * -3) + 0.25 * -5
    high = 0.75 * (0.75 * 4 + 0.25 * 8) + 0.25 * 0
    np.testing.assert_allclose(observer.range(INT8), (low, high))


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 2.0, np.nan])
def test_moving_average_rejects_a_momentum_that_is_no_share(momentum):
    with pytest.raises(ValueError, match="`momentum` must be at least 0 and below 1"):
        MovingAverage(momentum)


@pytest.mark.parametrize("percentile", [51.0, 90.0, 99.0, 99.9, 99.99, 99.999, 100.0])
@pytest.mark.parametrize("size", [1, 2, 99, 100, 101, 65_536])
def test_percentile_ignores_no_more_than_it_may(percentile, size, rng):
    x = rng.standard_t(df=2, size=size).astype(np.float32)
    low, high = observe(Percentile(percentile), x).range(INT8)
    ignored = np.sum((x < low) | (x > high))
    # 1e-9: the percentages are not exact in binary.
    assert ignored <= (100 - percentile) / 100 * size + 1e-9


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_agrees_with_numpy_quantile(percentile, rng):
    x = rng.laplace(size=65_536).astype(np.float32)
    tail = (100 - percentile) / 200
    expected = np.quantile(x, [tail, 1 - tail])
    got = observe(Percentile(percentile), *np.split(x, 16)).range(INT8)
    # Neighbours in the tail of 65,536 values; numpy interpolates between them.
    np.testing.assert_allclose(got, expected, rtol=0.01)


def test_percentile_of_one_side_may_ignore_its_whole_share_there(rng):
    x = rng.exponential(size=65_536).astype(np.float32)
    low, high = observe(Percentile(99.0), x).range(INT8)
    assert low == x.min()
    np.testing.assert_allclose(high, np.quantile(x, 0.99), rtol=0.001)


def test_percentile_of_a_long_stream_is_that_of_the_whole(rng):
    batches = rng.normal(size=(50, 65_536)).astype(np.float32)
    low, high = observe(Percentile(99.0), *batches).range(INT8)
    # 655 of 131,072 values in each tail: 4% of a tail is 0.013 in the quantile, three of them.
    np.testing.assert_allclose((low, high), np.quantile(batches, [0.005, 0.995]), atol=0.04)


@pytest.mark.parametrize("percentile", [50.0, 0.9999, 100.1, np.nan])
def test_percentile_rejects_what_is_no_percentage(percentile):
    with pytest.raises(ValueError, match="`percentile` must be above 50 and at most 100"):
        Percentile(percentile)


@pytest.mark.parametrize(
    "spec",
    [INT8, INT4, QuantSpec(2), QuantSpec(4, symmetric=True), QuantSpec(4, signed=False)],
    ids=["int8", "int4", "int2", "symmetric", "unsigned"],
)
@pytest.mark.parametrize("shape", ["normal", "laplace", "skewed", "swish", "outlier"])
def test_mean_squared_error_is_as_low_as_brute_force_finds(spec, shape, rng):
    x = rng.normal(size=4096)
    x = {
        "normal": x,
        "laplace": rng.laplace(size=4096),
        "skewed": np.exp(x) - 0.5,
        "swish": 4 * x / (1 + np.exp(-4 * x)),
        "outlier": np.append(x, 200.0),
    }[shape].astype(np.float32)
    low, high = observe(MeanSquaredError(), x).range(spec)
    shares = np.append(np.geomspace(0.01, 0.9, 30), np.linspace(0.91, 1, 10))
    brute = min(
        squared_error(x, x.min() * a, x.max() * b, spec)
        for a, b in itertools.product(shares, shares)
    )
    # The error is bumpy at the scale of single values; 3% is far below the gain of clipping.
    assert squared_error(x, low, high, spec) <= 1.03 * brute
    assert squared_error(x, low, high, spec) <= squared_error(x, x.min(), x.max(), spec)


def test_mean_squared_error_keeps_a_far_outlier_on_a_fine_grid_only_if_it_pays(rng):
    x = rng.normal(size=65_536).astype(np.float32)
    near, far = np.append(x, 8.0), np.append(x, 500.0)
    assert observe(MeanSquaredError(), near).range(INT4)[1] < 4.0
    # Clipping 500 would cost 500**2 / 65,537 = 3.8, more than losing the rest altogether.
    assert observe(MeanSquaredError(), far).range(INT4)[1] > 400.0


def test_mean_squared_error_counts_an_extreme_that_the_sample_missed(rng):
    x = rng.normal(size=65_536).astype(np.float32)
    missed = MeanSquaredError()
    missed.update(Summary(float(x.min()), 500.0, x))
    assert missed.range(INT8) == observe(MeanSquaredError(), np.append(x, 500.0)).range(INT8)


@pytest.mark.parametrize("spec", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("shape", ["normal", "laplace", "skewed", "relu"])
def test_entropy_is_as_low_as_brute_force_finds(spec, shape, rng):
    x = rng.normal(size=8192)
    x = {
        "normal": x,
        "laplace": rng.laplace(size=8192),
        "skewed": np.exp(x) - 0.5,
        "relu": np.maximum(x, 0),
    }[shape].astype(np.float32)
    low, high = observe(Entropy(), x).range(spec)
    per_level = 2048 >> spec.num_bits
    shares = np.geomspace(0.05, 1, 10)
    brute = min(
        divergence(x, x.min() * a, x.max() * b, spec, per_level)
        for a, b in itertools.product(shares if x.min() < 0 else [1], shares)
    )
    # By chance alone the divergence of 2048 bins and 8192 values scatters by 0.004.
    assert divergence(x, low, high, spec, per_level) <= brute + 0.004


def test_entropy_clips_outliers_and_keeps_the_bulk(laplace_with_outliers):
    low, high = observe(Entropy(), laplace_with_outliers).range(INT8)
    assert -20.0 < low < -4.0 and 4.0 < high < 20.0


def test_entropy_does_not_depend_on_how_many_zeros_a_relu_leaves(rng):
    x = np.abs(rng.normal(size=30_000)).astype(np.float32)
    sparse = np.append(x, np.zeros(30_000, np.float32))
    assert observe(Entropy(), x).range(INT8) == observe(Entropy(), sparse).range(INT8)


class TestScattered:
    """The sample of a large tensor, told by the places it is taken from."""

    @staticmethod
    def places(count):
        # float32 holds whole numbers up to 2**24.
        return scattered(np.arange(count, dtype=np.float32), 65_536)

    @pytest.mark.parametrize("count", [1, 2, 24, 65_535, 65_536])
    def test_a_tensor_that_fits_is_taken_whole(self, count):
        np.testing.assert_array_equal(self.places(count), np.arange(count))

    @pytest.mark.parametrize("count", [65_537, 131_071, 131_072, 131_073, 1_000_000, 2**24])
    def test_each_stretch_of_a_larger_one_gives_one_value(self, count):
        found, i = self.places(count), np.arange(65_536)
        assert (i * count // 65_536 <= found).all()
        assert (found <= -(-(i + 1) * count // 65_536) - 1).all()

    @pytest.mark.parametrize("shape", [(32, 16, 16), (7, 33, 29), (32, 128), (1000,)])
    def test_no_number_of_channels_hides_one(self, shape):
        for channels in range(1, 513):
            count = min(int(np.prod(shape)) * channels, 2**24)
            found = np.bincount(self.places(count).astype(int) % channels, minlength=channels)
            expected = min(count, 65_536) / channels
            # At least 128 are expected of each where the tensor does not fit, 11 the deviation.
            assert found.min() > 0.5 * expected and found.max() < 1.7 * expected, channels

    @pytest.mark.parametrize("count", [3 * 65_536, 24 * 65_536, 196_613, 12_845_056])
    def test_no_period_hides_a_place(self, count):
        """Rows, columns, frames and heads repeat at periods other than the channels."""
        found = self.places(count).astype(np.int64)
        for period in range(1, 513):
            shares = np.bincount(found % period, minlength=period) * (period / 65_536)
            assert shares.min() > 0.5 and shares.max() < 1.7, period


@pytest.mark.parametrize("channels", [24, 40, 48, 96, 144])
@pytest.mark.parametrize("observer", SAMPLING)
def test_channels_larger_than_the_others_are_seen(observer, channels, rng):
    x = rng.normal(size=(32, 16, 16, channels)).astype(np.float32)
    x[..., 1::3] *= 4
    seen = observer()
    seen.update(seen.summarize(x))
    low, high = seen.range(INT8)
    noise = squared_error(x, low, high, INT8)
    # Rounding alone costs a step squared by twelve; clipping a third of the channels, decibels.
    step = (high - low) / 255
    assert noise < 1.5 * step**2 / 12
    assert 10 * np.log10(np.mean(x**2) / noise) > 35


@pytest.mark.parametrize("alias", OBSERVERS)
def test_get_returns_a_new_observer_for_alias_class_and_factory(alias):
    kind = OBSERVERS[alias]
    for identifier in (alias, kind, lambda: kind()):
        assert type(get(identifier)) is kind
        assert get(identifier) is not get(identifier)


def test_get_keeps_the_settings_of_a_factory():
    assert get(lambda: Percentile(99.0)).percentile == 99.0


@pytest.mark.parametrize("identifier", ["minmax", "", None, 3, MinMax(), dict, lambda: None])
def test_get_names_the_aliases_when_it_knows_no_observer(identifier):
    with pytest.raises(ValueError, match="'min_max', 'moving_average', 'percentile'"):
        get(identifier)
