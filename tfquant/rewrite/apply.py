"""`quantize_model` and `quantize_apply`: from a float model to a model of quantized layers."""

from tfquant import devices
from tfquant.passes import run_passes
from tfquant.passes.precision import TO_FLOAT32_WEIGHTS, policy, with_float32_weights
from tfquant.reading.subclassed import readable
from tfquant.registry import QuantizeRegistry
from tfquant.registry.recipe import Recipe
from tfquant.registry.registry import KERAS_LAYERS
from tfquant.rewrite.annotate import marked_recipe, skip_recipe
from tfquant.rewrite.build import build
from tfquant.rewrite.choose import choose
from tfquant.rewrite.grids import place_grids
from tfquant.rewrite.validate import check_model


@policy(TO_FLOAT32_WEIGHTS)
def quantize_model(
    model,
    scheme="w8a8",
    *,
    skip=(),
    registry: QuantizeRegistry | None = None,
    unknown_layers: str = "weights",
    weight_quantizer: str | None = None,
    activation_quantizer: str | None = None,
    norms: str | None = None,
    device: str | None = None,
):
    """Returns a quantized copy of `model`.

    The copy is an ordinary Keras model. Its weights are quantized at once; its activations are
    when `calibrate` has seen data, and pass through unchanged until then.

    Args:
        model: Built Keras model: functional, sequential, or subclassed with a `call` that consists
            of layers and `keras.ops`. It is not changed.
        scheme: Name of a scheme (`"w8a8"`, `"w4a8"`, ...; see `tfq.SCHEMES`), a `Scheme`, or a
            `Recipe` of several.
        skip: Layers to leave float, whatever the recipe says: names (or regular expressions), layer
            classes, or layers.
        registry: `QuantizeRegistry`; the default knows Keras's own layers.
        unknown_layers: What becomes of layers that nobody has said how to quantize: `"weights"`
            stores their trainable weights of rank 2 or more in 8 bits and computes in float,
            `"float"` leaves them alone. A warning names them.
        weight_quantizer: What training does to the grids of weights: a name of
            `tfq.quantizers.WEIGHT_QUANTIZERS`; `None` for the scheme's own.
        activation_quantizer: What it does to those of activations: a name of
            `tfq.quantizers.ACTIVATION_QUANTIZERS`; `None` for the scheme's own.
        norms: What becomes of layer, root mean square and group norms where activations have grids.
            `"integer"` takes them apart into integers of 16 bits, whatever that costs; `"float"`
            leaves them float; `"auto"` takes integers where `calibrate` finds that the model's
            outputs lose less than 1 dB by them, and `model.norms` says what was taken and what it
            costs. `None` for the scheme's own, `"auto"`.
        device: What inference simulates, to the last integer: `"litert"` (LiteRT on x86-64),
            `"litert_arm"` (on ARM64), `"litert_reference"` (its reference kernels),
            `"onnxruntime"` (ONNX Runtime on a file of `to_onnx`) or `"tflm"` (TensorFlow Lite
            Micro); `None` for LiteRT on the processor at hand.

    Returns:
        `keras.Model`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not built, cannot be read, is quantized already or has weights
            that are not finite; if the scheme, a family of quantizers, `unknown_layers`, `norms`,
            the device or a name in `skip` is unknown.

    Example:

    ```python
    q = tfq.quantize_model(model, "w8a8", skip=["head"])
    tfq.calibrate(q, images)
    report = tfq.to_tflite(q, "model.tflite")
    ```
    """
    chosen = _given(weight_quantizer, activation_quantizer, norms)
    recipe = Recipe.of(scheme).with_settings(**chosen)
    model = readable(model)
    check_model(model)
    recipe = skip_recipe(recipe, model, skip)
    return _quantized(model, recipe, registry, unknown_layers, device)


@policy(TO_FLOAT32_WEIGHTS)
def quantize_apply(
    model,
    scheme="w8a8",
    *,
    registry: QuantizeRegistry | None = None,
    unknown_layers: str = "weights",
    weight_quantizer: str | None = None,
    activation_quantizer: str | None = None,
    norms: str | None = None,
    device: str | None = None,
):
    """Quantizes the layers of `model` that were marked.

    Args:
        model: Model with layers marked by `quantize_annotate_layer`, or from
            `quantize_annotate_model`. It is not changed.
        scheme: Name of a scheme, a `Scheme`, or a `Recipe`, of which marked layers have their row.
        registry: `QuantizeRegistry`; the default knows Keras's own layers.
        unknown_layers: As in `quantize_model`.
        weight_quantizer: As in `quantize_model`.
        activation_quantizer: As in `quantize_model`.
        norms: As in `quantize_model`.
        device: As in `quantize_model`.

    Returns:
        `keras.Model`, as `quantize_model` returns it.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: As `quantize_model`; and if no layer is marked.
    """
    chosen = _given(weight_quantizer, activation_quantizer, norms)
    recipe = Recipe.of(scheme).with_settings(**chosen)
    check_model(model)
    return _quantized(model, marked_recipe(recipe, model), registry, unknown_layers, device)


def _given(weight_quantizer, activation_quantizer, norms) -> dict:
    """Returns the settings of schemes that were given by name."""
    given = {
        "weight_quantizer": weight_quantizer,
        "activation_quantizer": activation_quantizer,
        "norms": norms,
    }
    return {name: value for name, value in given.items() if value is not None}


def _quantized(model, recipe, registry, unknown_layers, device):
    """Walks a model through the rewrite, in the order of the rooms."""
    rows, recipe = recipe.meet(model)
    model, rows = with_float32_weights(model, rows)
    graph = choose(model, rows, registry or KERAS_LAYERS, unknown_layers, devices.get(device).name)
    run_passes(graph)
    place_grids(graph)
    return build(graph, recipe)
