"""What a user gets wrong, and models at the edge: a clear error, or a right answer."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfquant as tfq
from tfquant.litert.flatbuffer import File

FLATBUFFER_ERROR = r"A \.tflite file is expected"


def small(name="small"):
    x = keras.Input((6,), name="x")
    y = layers.Dense(4, activation="relu", name="first")(x)
    return keras.Model(x, layers.Dense(3, name="second")(y), name=name)


def convolutional():
    x = keras.Input((6, 6, 2), name="x")
    y = layers.Conv2D(4, 3, name="conv")(x)
    y = layers.ReLU()(layers.BatchNormalization(name="norm")(y))
    return keras.Model(x, layers.Dense(3, name="head")(layers.Flatten()(y)))


def rows(model, rng, count=16):
    return rng.normal(size=(count, *model.inputs[0].shape[1:])).astype(np.float32)


def calibrated(model, data, scheme="w8a8"):
    quantized = tfq.quantize_model(model, scheme)
    return tfq.calibrate(quantized, data, progress=False)


@pytest.fixture
def quantized(rng):
    model = small()
    return calibrated(model, rows(model, rng))


def convert(model, path, **kwargs):
    return tfq.to_tflite(model, path, progress=False, **kwargs)


def files(folder):
    return sorted(p.name for p in folder.rglob("*"))


class TestPaths:
    def test_a_folder_that_does_not_exist_is_named(self, quantized, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"does not exist: .*missing"):
            convert(quantized, tmp_path / "missing" / "model.tflite")
        assert files(tmp_path) == []

    def test_a_folder_is_no_file(self, quantized, tmp_path):
        (tmp_path / "folder").mkdir()
        with pytest.raises(IsADirectoryError, match="which is a folder"):
            convert(quantized, tmp_path / "folder")
        assert files(tmp_path) == ["folder"]

    def test_a_folder_that_cannot_be_written_is_named(self, quantized, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # The superuser may write all.
        with pytest.raises(PermissionError, match="cannot be written"):
            convert(quantized, tmp_path / "model.tflite")
        assert files(tmp_path) == []

    def test_a_file_is_no_folder(self, quantized, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OSError, match="does not exist"):
            convert(quantized, tmp_path / "file" / "model.tflite")
        assert (tmp_path / "file").read_text() == "mine"

    def test_the_path_is_checked_before_the_work(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            convert(tfq.quantize_model(small()), tmp_path / "missing" / "model.tflite")

    @pytest.mark.parametrize("path", [None, 3])
    def test_what_is_no_path_is_an_error(self, quantized, path):
        with pytest.raises(TypeError, match="Path"):
            convert(quantized, path)

    def test_a_disk_that_is_full_leaves_the_old_file(self, quantized, tmp_path, monkeypatch):
        path = tmp_path / "model.tflite"
        path.write_bytes(b"old")

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            convert(quantized, path, verify=False)
        assert files(tmp_path) == ["model.tflite"]
        assert path.read_bytes() == b"old"

    def test_a_relative_path_in_the_working_folder_is_fine(self, quantized, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        convert(quantized, "model.tflite", verify=False)
        assert files(tmp_path) == ["model.tflite"]


class TestModels:
    @pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w4a8"])
    def test_a_model_without_grids_writes_nothing(self, scheme, tmp_path):
        with pytest.raises(ValueError, match=r"no grids yet: call tfq\.calibrate"):
            convert(tfq.quantize_model(small(), scheme), tmp_path / "model.tflite")
        assert files(tmp_path) == []

    def test_a_float_model_writes_nothing(self, tmp_path):
        with pytest.raises(ValueError, match=r"from tfq\.quantize_model is expected.*'plain'"):
            convert(small("plain"), tmp_path / "model.tflite")
        assert files(tmp_path) == []

    @pytest.mark.parametrize("thing", [None, "model.keras", layers.Dense(2)])
    def test_what_is_no_model_is_refused(self, thing, tmp_path):
        with pytest.raises((TypeError, ValueError), match=r"is expected\. Received"):
            convert(thing, tmp_path / "model.tflite")
        assert files(tmp_path) == []

    @pytest.mark.parametrize(
        ("scheme", "name", "value"),
        [
            ("w8a8", "input_type", "int16"),
            ("w8a8", "output_type", "int16"),
            ("w8a8", "input_type", "float16"),
            ("w8a16", "input_type", "int8"),
            ("w8a16", "output_type", "uint8"),
            ("w8", "input_type", "int8"),
            ("f16", "output_type", "uint8"),
            ("w8a8_dynamic", "input_type", "int8"),
        ],
    )
    def test_a_type_that_the_scheme_does_not_have_is_refused(
        self, scheme, name, value, rng, tmp_path
    ):
        model = small()
        model = calibrated(model, rows(model, rng), scheme)
        with pytest.raises(ValueError, match=rf"`{name}` must be one of .*Received: '{value}'"):
            convert(model, tmp_path / "model.tflite", **{name: value})
        assert files(tmp_path) == []

    @pytest.mark.parametrize("shape", [(4, 5), (4, 6, 1), (0, 6)])
    def test_samples_of_another_shape_are_refused(self, quantized, shape, tmp_path):
        with pytest.raises(ValueError, match=r"[Rr]eceived"):
            convert(quantized, tmp_path / "model.tflite", samples=np.zeros(shape, np.float32))
        assert files(tmp_path) == []

    @pytest.mark.parametrize("batch_size", [0, -1, 1.5])
    def test_a_batch_of_no_rows_is_refused(self, quantized, batch_size, tmp_path):
        with pytest.raises(ValueError, match=r"`batch_size` must .*Received"):
            convert(quantized, tmp_path / "model.tflite", batch_size=batch_size)
        assert files(tmp_path) == []


class TestBytes:
    @pytest.mark.parametrize(
        "content", [b"", b"TFL3", b"\0" * 64, b"PK\x03\x04 a zip file", b"not a model at all"]
    )
    def test_garbage_is_no_file(self, content, tmp_path):
        with pytest.raises(ValueError, match=FLATBUFFER_ERROR):
            File(content)
        (tmp_path / "garbage.tflite").write_bytes(content)
        with pytest.raises(ValueError, match=FLATBUFFER_ERROR):
            tfq.inspect(tmp_path / "garbage.tflite")

    def test_garbage_behind_the_mark_of_a_file_is_refused(self, rng, tmp_path):
        (tmp_path / "garbage.tflite").write_bytes(b"\x1c\0\0\0TFL3" + rng.bytes(500))
        with pytest.raises(ValueError, match=FLATBUFFER_ERROR):
            tfq.inspect(tmp_path / "garbage.tflite")

    @pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
    def test_a_truncated_file_is_refused(self, quantized, share, tmp_path):
        path = tmp_path / "model.tflite"
        convert(quantized, path, verify=False)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match=FLATBUFFER_ERROR):
            tfq.inspect(path)


def agrees(model, data, tmp_path):
    """The report, once model and file were found to compute the same finite values."""
    report = convert(model, tmp_path / "model.tflite", samples=data)
    assert np.isfinite(np.asarray(model(data))).all()
    assert not report.saturated_biases
    assert report.end_to_end.share_differing <= 0.001
    return report


class TestEdges:
    def test_activations_that_are_always_zero_stay_zero(self, tmp_path):
        model = small()
        for layer in ("first", "second"):
            kernel, bias = model.get_layer(layer).get_weights()
            model.get_layer(layer).set_weights([-np.abs(kernel), np.zeros_like(bias)])
        data = np.abs(np.random.default_rng(0).normal(size=(16, 6))).astype(np.float32)
        quantized = calibrated(model, data)
        np.testing.assert_array_equal(quantized(data), 0.0)
        agrees(quantized, data, tmp_path)

    def test_data_of_zeros_only_calibrate(self, tmp_path):
        model, data = small(), np.zeros((8, 6), np.float32)
        quantized = calibrated(model, data)
        np.testing.assert_allclose(quantized(data), model(data), atol=1e-6)
        agrees(quantized, data, tmp_path)

    def test_constant_activations_keep_their_value(self, tmp_path):
        model, data = small(), np.full((8, 6), 3.0, np.float32)
        quantized, expected = calibrated(model, data), np.asarray(model(data))
        step = np.abs(expected).max() / 100  # An 8-bit step, and 8-bit weights.
        np.testing.assert_allclose(quantized(data), expected, atol=2 * step)
        agrees(quantized, data, tmp_path)

    def test_weights_of_zeros_only_give_the_bias(self, rng, tmp_path):
        model = convolutional()
        for name in ("conv", "head"):
            kernel, bias = model.get_layer(name).get_weights()
            bias = rng.normal(size=bias.shape)
            model.get_layer(name).set_weights([np.zeros_like(kernel), bias])
        data = rows(model, rng)
        quantized, expected = calibrated(model, data), np.asarray(model(data))
        # The bias is spread over the output's range: half a step of 1/255 of it.
        np.testing.assert_allclose(quantized(data), expected, atol=0.01 * np.ptp([*expected[0], 0]))
        agrees(quantized, data, tmp_path)

    @pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a16"])
    def test_channels_of_zero_weights_leave_the_others_alone(self, scheme, rng, tmp_path):
        model = convolutional()
        kernel, bias = model.get_layer("conv").get_weights()
        kernel[..., [0, 2]] = 0.0
        model.get_layer("conv").set_weights([kernel, bias + 0.3])
        data = rows(model, rng)
        quantized, expected = calibrated(model, data, scheme), np.asarray(model(data))
        atol = (0.25 if scheme == "w4a8" else 0.04) * np.abs(expected).max()
        np.testing.assert_allclose(quantized(data), expected, atol=atol)
        report = convert(quantized, tmp_path / "model.tflite", samples=data)
        assert not report.saturated_biases
        assert report.end_to_end.largest <= 1

    @pytest.mark.parametrize("size", [1e-8, 1e-4, 1e4, 1e8])
    def test_weights_of_any_size_keep_their_precision(self, size, rng, tmp_path):
        model = small()
        model.set_weights([w * size for w in model.get_weights()])
        data = rows(model, rng)
        quantized, expected = calibrated(model, data), np.asarray(model(data))
        np.testing.assert_allclose(quantized(data), expected, atol=0.04 * np.abs(expected).max())
        agrees(quantized, data, tmp_path)

    def test_one_huge_weight_does_not_blow_up(self, rng, tmp_path):
        model = small()
        kernel, bias = model.get_layer("first").get_weights()
        kernel[0, 0] = 1e20
        model.get_layer("first").set_weights([kernel, bias])
        data = rows(model, rng)
        agrees(calibrated(model, data), data, tmp_path)

    def test_a_bias_far_above_the_products_does_not_saturate(self, rng, tmp_path):
        model = convolutional()
        kernel, bias = model.get_layer("conv").get_weights()
        model.get_layer("conv").set_weights([kernel * 1e-7, bias + 50.0])
        data = rows(model, rng)
        quantized, expected = calibrated(model, data), np.asarray(model(data))
        np.testing.assert_allclose(quantized(data), expected, atol=0.04 * np.abs(expected).max())
        agrees(quantized, data, tmp_path)

    def test_data_far_outside_the_calibrated_range_saturate_alike(self, rng, tmp_path):
        model = small()
        data = rows(model, rng)
        agrees(calibrated(model, data), data * 1000, tmp_path)

    def test_one_row_is_enough(self, rng, tmp_path):
        model = small()
        data = rows(model, rng, 1)
        agrees(calibrated(model, data), data, tmp_path)


class TestCalibrationData:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            ({"y": np.zeros((4, 6))}, r"must have the keys \['x'\]"),
            (np.zeros((4, 5)), r"must have the shape"),
            (np.zeros((0, 6)), r"must not be empty"),
            (np.full((4, 6), np.nan), r"must be finite"),
            (np.full((4, 6), "a"), r"must hold numbers"),
            (iter(()), r"at least one batch"),
        ],
        ids=["name", "shape", "empty", "nan", "dtype", "no batch"],
    )
    def test_what_does_not_fit_leaves_the_model_uncalibrated(self, data, words, tmp_path):
        quantized = tfq.quantize_model(small())
        with pytest.raises(ValueError, match=words):
            tfq.calibrate(quantized, data, progress=False)
        with pytest.raises(ValueError, match="no grids yet"):
            convert(quantized, tmp_path / "model.tflite")


class TestLayersAtTheEdge:
    def test_a_lambda_is_read(self, rng, tmp_path):
        x = keras.Input((6,))
        y = layers.Lambda(lambda x: x * 2.0 + 1.0, name="scale")(layers.Dense(4)(x))
        model = keras.Model(x, layers.Dense(2)(y))
        data = rows(model, rng)
        report = agrees(calibrated(model, data), data, tmp_path)
        assert not report.float_operators

    def test_a_lambda_that_cannot_be_read_stays_float_and_is_named(self, rng, tmp_path):
        x = keras.Input((6,))
        y = layers.Dense(4)(x)
        y = layers.Lambda(lambda x: tf.math.cumsum(x, 1), output_shape=(4,), name="own")(y)
        model = keras.Model(x, layers.Dense(2)(y))
        data = rows(model, rng)
        report = convert(calibrated(model, data), tmp_path / "model.tflite", samples=data)
        assert any("'own' (Lambda)" in op.reason for op in report.float_operators)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_weights_that_are_not_finite_are_refused_by_name(self, value):
        model = small()
        kernel, bias = model.get_layer("second").get_weights()
        kernel[0, 0] = value
        model.get_layer("second").set_weights([kernel, bias])
        with pytest.raises(ValueError, match=r"must be finite.*layer 'second'"):
            tfq.quantize_model(model)

    @pytest.mark.filterwarnings("ignore:.build... was called on layer 'lazy'")
    def test_an_inner_layer_that_was_never_built_is_left_out(self, rng, tmp_path):
        class Lazy(layers.Layer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.used, self.unused = layers.Dense(4), layers.Dense(9)

            def call(self, x):
                return self.used(x)

        x = keras.Input((6,))
        model = keras.Model(x, layers.Dense(2)(Lazy(name="lazy")(x)))
        data = rows(model, rng)
        report = agrees(calibrated(model, data), data, tmp_path)
        assert not report.float_operators

    def test_layers_of_one_name_in_two_models_stay_two(self, rng, tmp_path):
        x = keras.Input((6,))
        inner = []
        for name in ("a", "b"):
            z = keras.Input((6,))
            inner.append(keras.Model(z, layers.Dense(6, name="same")(z), name=name))
        model = keras.Model(x, layers.Add()([m(x) for m in inner]))
        data = rows(model, rng)
        quantized = calibrated(model, data)
        assert len({layer.name for layer in quantized.layers}) == len(quantized.layers)
        np.testing.assert_allclose(quantized(data), model(data), atol=0.1)
        agrees(quantized, data, tmp_path)

    def test_a_table_of_a_million_rows_is_converted(self, rng, tmp_path):
        x = keras.Input((3,), dtype="int32")
        y = layers.Flatten()(layers.Embedding(1_000_000, 4, name="table")(x))
        model = keras.Model(x, layers.Dense(2)(y))
        data = rng.integers(0, 1_000_000, (32, 3)).astype(np.int32)
        report = agrees(calibrated(model, data), data, tmp_path)
        assert not report.float_operators
        assert report.quantized_bytes < 4_100_000

    def test_what_no_operator_computes_is_refused_by_name(self, rng, tmp_path):
        x = keras.Input((4, 4, 4, 2))
        y = layers.Dense(2)(layers.MaxPooling3D(2, name="box")(x))
        model = keras.Model(x, y)
        quantized = tfq.quantize_model(model, skip=["box"])
        tfq.calibrate(quantized, rows(model, rng), progress=False)
        with pytest.raises(ValueError, match=r"no operator for MaxPool3D\. .*'box"):
            convert(quantized, tmp_path / "model.tflite")
        assert files(tmp_path) == []

    def test_what_unknown_layers_become_is_one_of_two(self):
        with pytest.raises(ValueError, match=r"must be 'weights' or 'float'\. Received: 'int8'"):
            tfq.quantize_model(small(), unknown_layers="int8")

    @pytest.mark.parametrize(("choice", "stored"), [("weights", "INT8"), ("float", "FLOAT32")])
    def test_weights_of_an_unknown_layer_are_stored_as_chosen(
        self, choice, stored, rng, tmp_path, caplog
    ):
        x = keras.Input((4, 4, 4, 2))
        model = keras.Model(x, layers.Dense(2)(layers.Conv3D(3, 2, name="box")(x)))
        quantized = tfq.quantize_model(model, unknown_layers=choice)
        assert caplog.text.count("'box' (Conv3D)") == 1
        tfq.calibrate(quantized, rows(model, rng), progress=False)
        convert(quantized, tmp_path / "model.tflite", verify=False)
        file = File((tmp_path / "model.tflite").read_bytes())
        kernels = [i for op in file.ops for i in op.inputs if file.is_constant(i)]
        assert stored in {file.type(i) for i in kernels if np.prod(file.shape(i)) == 48}
