"""The TensorFlow ops: shapes, gradients, errors, graphs and saved models."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tfquant import lowbit
from tfquant.lowbit import library
from tfquant.lowbit.matmul import fused_function
from tfquant.numerics import packing, reference

FORMATS = [(8, 0), (8, 32), (4, 32), (4, 128), (4, 0), (2, 64), (1, 0)]


@pytest.fixture(autouse=True)
def built(core):
    """Every test here needs the compiled ops."""


def weights(rng, num_bits, group_size, k=70, n=19):
    if num_bits == 1:
        q = rng.choice([-1, 1], (k, n))
    else:
        q = rng.integers(-(2 ** (num_bits - 1)), 2 ** (num_bits - 1), (k, n))
    scale = rng.uniform(0.01, 0.1, (-(-k // group_size) if group_size else 1, n))
    return lowbit.pack(q, scale, num_bits=num_bits, group_size=group_size)


def unpacked(packed):
    layout = {"k": packed.depth, "n": packed.units}
    layout |= {"num_bits": packed.num_bits, "group_size": packed.group_size}
    return packing.unpack_matmul(packed.data, **layout)


@pytest.mark.parametrize(("num_bits", "group_size"), FORMATS)
def test_the_op_is_the_reference(rng, num_bits, group_size):
    packed = weights(rng, num_bits, group_size)
    x = rng.normal(size=(3, 70)).astype(np.float32)
    bias = rng.normal(size=19).astype(np.float32)
    q, scale = unpacked(packed)
    for activations in ("per_row", "static", "float"):
        form = {"activations": activations, "x_scale": 0.03, "zero_point": 5, "bias": bias}
        full = form | {"num_bits": num_bits, "group_size": group_size}
        expected = reference.lowbit_matmul(x, q, scale, **full)
        bound = reference.lowbit_matmul_bound(x, q, scale, **full)
        assert (np.abs(lowbit.matmul(x, packed, **form) - expected) <= bound).all()


def test_an_eager_call_takes_the_fast_way_of_tensorflow(rng, monkeypatch):
    def slow(*args, **settings):
        raise AssertionError(f"the slow way with {settings}")

    monkeypatch.setattr(library.ops(), "tfquant_lowbit_matmul_eager_fallback", slow)
    lowbit.matmul(tf.ones((2, 70)), weights(rng, 4, 32), x_scale=1, activations="static")


@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0,), (2, 0, 3), (4, 1, 2)])
def test_batch_dimensions_are_kept(rng, batch):
    packed = weights(rng, 4, 32)
    x = tf.constant(rng.normal(size=(*batch, 70)), tf.float32)
    y = lowbit.matmul(x, packed)
    assert y.shape == (*batch, 19)
    rows = lowbit.matmul(tf.reshape(x, (-1, 70)), packed)
    np.testing.assert_array_equal(tf.reshape(y, (-1, 19)), rows)


@pytest.mark.parametrize("activations", reference.ACTIVATIONS)
def test_bfloat16_in_is_bfloat16_out(rng, activations):
    packed = weights(rng, 4, 32)
    x = tf.cast(rng.normal(size=(5, 70)), tf.bfloat16)
    form = {"activations": activations, "x_scale": 0.03}
    y = lowbit.matmul(x, packed, **form)
    assert y.dtype == tf.bfloat16
    np.testing.assert_array_equal(
        y, tf.cast(lowbit.matmul(tf.cast(x, tf.float32), packed, **form), tf.bfloat16)
    )


@hypothesis.settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    form=st.sampled_from(FORMATS),
    activations=st.sampled_from(("per_row", "static", "float")),
    batch=st.lists(st.integers(0, 5), max_size=3),
    k=st.integers(1, 300),
    n=st.integers(1, 70),
    seed=st.integers(0, 2**31),
)
def test_any_shape_is_what_core_computes_on_one_thread(core, form, activations, batch, k, n, seed):
    rng = np.random.default_rng(seed)
    num_bits, group_size = form
    packed = weights(rng, num_bits, group_size, k, n)
    x = rng.normal(size=(*batch, k)).astype(np.float32)
    settings = {"activations": activations, "x_scale": 0.03, "zero_point": -9}
    y = lowbit.matmul(x, packed, **settings)
    assert y.shape == (*batch, n)
    form = {"num_bits": num_bits, "group_size": group_size, "units": n}
    one = core.matmul(x.reshape(-1, k), packed.data, threads=1, **form, **settings)
    np.testing.assert_array_equal(np.reshape(y, (-1, n)), one)


def test_results_do_not_depend_on_the_number_of_threads(core, rng):
    """TensorFlow's pool has every core of this machine; the C ABI is given one."""
    for num_bits, group_size in FORMATS:
        packed = weights(rng, num_bits, group_size, 1031, 331)
        form = {"num_bits": num_bits, "group_size": group_size, "units": 331}
        for m in (1, 140):
            x = rng.normal(size=(m, 1031)).astype(np.float32)
            one = core.matmul(x, packed.data, threads=1, **form)
            np.testing.assert_array_equal(lowbit.matmul(x, packed), one)


@pytest.mark.parametrize(
    ("num_bits", "group_size", "fused"),
    [(*form, "linear") for form in FORMATS[:-1]] + [(4, 32, f) for f in reference.FUSED[1:]],
)
def test_gradients_are_the_finite_differences_of_float_activations(
    rng, num_bits, group_size, fused
):
    packed = weights(rng, num_bits, group_size, 33, 5)
    # Sums of a few units, and none so close to a bend of relu that a step crosses it.
    x = tf.constant(rng.normal(size=(2, 33)) / 2, tf.float32)
    bias = tf.constant(rng.normal(size=5), tf.float32)

    def call(x, bias):
        return lowbit.matmul(x, packed, bias=bias, activations="float", fused=fused)

    linear = lowbit.matmul(x, packed, bias=bias, activations="float")
    step = 2.0**-7
    reach = step * float(tf.reduce_max(tf.abs(lowbit.unpack(packed))))
    far = np.abs(np.asarray(linear)) > reach
    if fused == "relu6":
        far &= np.abs(np.asarray(linear) - 6) > reach
    found, expected = tf.test.compute_gradient(call, [x, bias], delta=step)
    for a, b in zip(found, expected, strict=True):
        if fused in ("relu", "relu6"):
            a, b = a[far.ravel()], b[far.ravel()]
        # A central difference is off by step^2 / 6 times a third derivative, and by rounding.
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3 * np.abs(b).max() + 1e-4)


@pytest.mark.parametrize(("num_bits", "group_size"), FORMATS)
@pytest.mark.parametrize("fused", ["linear", "relu", "gelu", "silu"])
def test_gradients_are_those_of_the_float_product(rng, num_bits, group_size, fused):
    packed = weights(rng, num_bits, group_size)
    x = tf.constant(rng.normal(size=(2, 3, 70)), tf.float32)
    bias = tf.constant(rng.normal(size=19), tf.float32)
    upstream = tf.constant(rng.normal(size=(2, 3, 19)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([x, bias])
        y = lowbit.matmul(x, packed, bias=bias, fused=fused)
    found = tape.gradient(y, [x, bias], upstream)
    # The same from plain ops, at the linear output that the op computed.
    linear = lowbit.matmul(x, packed, bias=bias)
    with tf.GradientTape() as tape:
        tape.watch(linear)
        z = fused_function(fused)(linear)
    inner = tape.gradient(z, linear, upstream)
    np.testing.assert_allclose(
        found[0], tf.tensordot(inner, tf.transpose(lowbit.unpack(packed)), 1), atol=1e-5
    )
    np.testing.assert_allclose(found[1], tf.reduce_sum(inner, (0, 1)), atol=1e-5)


def test_gradients_work_without_bias_inside_a_function(rng):
    packed = weights(rng, 4, 32)

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(lowbit.matmul(x, packed))
        return tape.gradient(y, x)

    expected = tf.reduce_sum(lowbit.unpack(packed), axis=1)
    np.testing.assert_allclose(gradient(tf.ones((1, 70)))[0], expected, rtol=1e-4, atol=1e-6)


def test_unpack_gives_the_real_weights(rng):
    for num_bits, group_size in FORMATS:
        packed = weights(rng, num_bits, group_size)
        q, scale = unpacked(packed)
        spread = np.repeat(scale, group_size or 70, axis=0)[:70]
        np.testing.assert_array_equal(lowbit.unpack(packed), q * spread)


def test_the_op_packs_the_bytes_of_the_drawing(rng):
    q, scale = rng.integers(-8, 8, (70, 19)).astype(np.int8), np.full((3, 19), 0.3, np.float32)
    data = library.ops().tfquant_lowbit_pack(q, scale, num_bits=4, group_size=32)
    np.testing.assert_array_equal(data, lowbit.pack(q, scale, num_bits=4, group_size=32).data)


def test_a_function_of_unknown_batch_runs_and_knows_its_units(rng):
    packed = weights(rng, 4, 32)
    function = tf.function(
        lambda x: lowbit.matmul(x, packed), input_signature=[tf.TensorSpec((None, 70))]
    )
    assert function.get_concrete_function().output_shapes.as_list() == [None, 19]
    x = tf.constant(rng.normal(size=(9, 70)), tf.float32)
    np.testing.assert_array_equal(function(x), lowbit.matmul(x, packed))


def test_a_saved_model_gives_the_same(rng, tmp_path):
    packed = weights(rng, 4, 32)

    class Model(tf.Module):
        def __init__(self):
            self.data = tf.Variable(packed.data, trainable=False)

        @tf.function(input_signature=[tf.TensorSpec((None, 70))])
        def serve(self, x):
            w = lowbit.PackedWeights(self.data, **packed.layout)
            return {"y": lowbit.matmul(x, w)}

    model = Model()
    tf.saved_model.save(model, tmp_path / "m", signatures={"serving_default": model.serve})
    loaded = tf.saved_model.load(tmp_path / "m").signatures["serving_default"]
    x = tf.constant(rng.normal(size=(4, 70)), tf.float32)
    np.testing.assert_array_equal(loaded(x=x)["y"], lowbit.matmul(x, packed))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": tf.zeros((2, 200))}, "`weights` must hold"),
        ({"x": tf.zeros((2, 0))}, "must have 1 to 2.31 rows and columns"),
        ({"x": tf.zeros(())}, "`x` must not be a scalar"),
        ({"bias": tf.zeros((19, 1))}, "`bias` must have 1 dimensions"),
        ({"bias": tf.zeros((18,))}, "`bias` must be empty or hold units=19 values."),
        ({"activations": "per_group"}, "only if the weights have groups"),
        ({"activations": "static", "x_scale": 0.0}, "`x_scale` must be positive and finite"),
        ({"activations": "static", "x_scale": float("nan")}, "`x_scale` must be positive"),
        ({"activations": "static", "x_scale": float("inf")}, "`x_scale` must be positive"),
        ({"activations": "static", "zero_point": 128}, "`zero_point` must lie in"),
        ({"activations": "static", "zero_point": 2**32}, "`zero_point` must lie in"),
        ({"activations": "per_cent"}, "per_cent"),
        ({"fused": "swoosh"}, "swoosh"),
    ],
)
def test_the_shape_function_and_the_kernel_refuse_in_the_same_words(rng, change, words):
    packed = weights(rng, 4, 0)
    given = {"x": tf.zeros((2, 70))} | change
    x = given.pop("x")
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=words):
        lowbit.matmul(x, packed, **given)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=words):
        tf.function(lambda: lowbit.matmul(x, packed, **given)).get_concrete_function()


def test_wrong_buffers_are_refused_at_run_time(rng):
    packed = weights(rng, 4, 0)
    for data, words in ((packed.data[:-1], "must hold"), (packed.data[::-1].copy(), "otherwise")):
        wrong = lowbit.PackedWeights(data, **packed.layout)
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            lowbit.matmul(tf.zeros((2, 70)), wrong)
    ops = library.ops()
    for q, scale, words in (
        (np.zeros((70, 2), np.int8), np.full((1, 2), np.inf), "positive and finite"),
        (np.full((70, 2), 8, np.int8), np.ones((1, 2)), "Values must lie in"),
        (np.zeros((70, 2), np.int8), np.ones((2, 2)), "`scale` must have the shape"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            ops.tfquant_lowbit_pack(q, scale.astype(np.float32), num_bits=4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must hold"):
        ops.tfquant_lowbit_unpack(packed.data, num_bits=4, depth=71, units=40)


def test_shape_functions_refuse_what_the_kernels_refuse(rng):
    packed, ops, scale = weights(rng, 4, 0), library.ops(), np.ones((1, 2), np.float32)
    q = np.zeros((70, 2), np.int8)
    matmul, bias = ops.tfquant_lowbit_matmul, np.zeros(0, np.float32)
    x, deep = np.zeros((1, 70), np.float32), np.zeros((131072, 1), np.int8)
    for call, words in (
        (lambda: ops.tfquant_lowbit_pack(q[0], scale, num_bits=4), "`q` must have 2 dim"),
        (lambda: ops.tfquant_lowbit_pack(q, scale[0], num_bits=4), "`scale` must have 2 dim"),
        (lambda: ops.tfquant_lowbit_pack(q, scale.T, num_bits=4), r"the shape \(1, 2\)"),
        (lambda: ops.tfquant_lowbit_pack(q[:0], scale, num_bits=4), "must have 1 to 2.31 rows"),
        (lambda: ops.tfquant_lowbit_pack(q, scale, num_bits=2**32 + 4), "num_bits"),
        (lambda: ops.tfquant_lowbit_pack(q, scale, num_bits=4, group_size=48), "`group_size`"),
        (lambda: ops.tfquant_lowbit_pack(deep, scale[:, :1], num_bits=4), "at most 131071 rows"),
        (
            lambda: ops.tfquant_lowbit_unpack(packed.data, num_bits=4, depth=71, units=40),
            "`weights` must hold",
        ),
        (
            lambda: ops.tfquant_lowbit_unpack(packed.data[None], num_bits=4, depth=70, units=19),
            "`weights` must have 1 dim",
        ),
        (
            lambda: ops.tfquant_lowbit_unpack(packed.data, num_bits=4, depth=2**62, units=2**62),
            "must have 1 to 2.31 rows",
        ),
        (lambda: matmul(x, packed.data[None], bias, units=19, num_bits=4), "`weights` must have 1"),
        (lambda: matmul(x, packed.data, bias, units=2**40, num_bits=4), "must have 1 to 2.31 rows"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            call()
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=words):
            tf.function(call).get_concrete_function()


def test_shape_functions_leave_open_what_is_not_known(rng):
    packed, bias = weights(rng, 4, 32), tf.zeros((0,))
    form = {"units": 19, "num_bits": 4, "group_size": 32}
    for shape, expected in ((None, None), ((None, None), [None, 19]), ((3, None), [3, 19])):

        @tf.function(input_signature=[tf.TensorSpec(shape), tf.TensorSpec(None, tf.uint8)])
        def call(x, data):
            return library.ops().tfquant_lowbit_matmul(x, data, bias, **form)

        found = call.get_concrete_function().output_shapes
        assert (found.as_list() if found.rank is not None else None) == expected
        assert call(tf.ones((3, 70)), packed.data).shape == (3, 19)


@pytest.mark.parametrize("shape", [None, (None, None), (2, None)])
def test_gradients_work_where_the_depth_is_not_known(rng, shape):
    packed = weights(rng, 4, 32)

    @tf.function(input_signature=[tf.TensorSpec(shape)])
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = lowbit.matmul(x, packed)
        return tape.gradient(y, x), y

    expected = np.broadcast_to(tf.reduce_sum(lowbit.unpack(packed), axis=1), (2, 70))
    np.testing.assert_allclose(gradient(tf.ones((2, 70)))[0], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError):
        gradient(tf.ones((2, 35)))


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32"])
def test_other_types_of_x_are_refused(rng, dtype):
    packed = weights(rng, 4, 32)
    with pytest.raises((TypeError, ValueError, tf.errors.InvalidArgumentError)):
        lowbit.matmul(tf.zeros((2, 70), dtype), packed)


def test_packed_weights_check_their_numbers():
    with pytest.raises(ValueError, match="`num_bits` must be"):
        lowbit.PackedWeights(None, 3, 0, 4, 4)


def test_the_doctor_finds_nothing_wrong():
    report = lowbit.doctor()
    assert report.built and report.path in report.supported_paths
    assert report.problem == report.remedy == ""
