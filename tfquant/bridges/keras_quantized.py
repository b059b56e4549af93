"""`from_keras_quantized`: from a model that Keras quantized to a quantized model."""

import keras
import numpy as np
from keras import ops

from tfquant.bridges.twin import Twin
from tfquant.graph.walk import all_layers
from tfquant.reading.subclassed import readable
from tfquant.registry import Recipe
from tfquant.rewrite import quantize_apply
from tfquant.wrappers import QuantizeWrapper


def from_keras_quantized(model, *, device: str | None = None):
    """Returns the quantized model of one that `keras.Model.quantize` quantized.

    Each integer stays what it is; the steps are Keras's, rounded to float32. So the model becomes
    what Keras does not write of it: `to_tflite`, `to_onnx`, `to_packed`.

    | Keras | here |
    |---|---|
    | `"int8"` | 8 bits, a step for each output, inputs rounded at run time |
    | `"int4"`, by channel | 4 bits, a step for each output, float arithmetic |
    | blocks, `"gptq"`, `"awq"` | a dense layer a group, and their sum; 4 bits, where zero points
    are taken off and that does not fit, 8 |
    | embeddings | 8 bits, a step for each row or block of it |

    Layers that Keras left float stay float. Inputs that are rounded at run time have the device's
    grid, with a zero point, not Keras's.

    Args:
        model: Model with layers quantized in the modes `"int8"`, `"int4"`, `"gptq"` or `"awq"`,
            made here or loaded from a `.keras` file. It is not changed.
        device: As of `quantize_model`.

    Returns:
        `keras.Model`, as `quantize_model` returns it.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it has no quantized layer, or one whose integers cannot be kept: in mode
            `"float8"`, with LoRA weights, or of a type that Keras does not quantize itself.

    Example:

    ```python
    model.quantize("int8")
    q = tfq.from_keras_quantized(model)
    report = tfq.to_tflite(q, "model.tflite")
    ```
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: {model!r}.")
    twin = Twin(readable(model))
    if not twin.given and not twin.wholes:
        raise ValueError(
            f"No layer of '{model.name}' is quantized. Call model.quantize first, or give a float "
            "model to tfq.quantize_model."
        )
    recipe = Recipe("w8")
    for layer, scheme in twin.wholes.items():
        recipe = recipe.where(lambda x, layer=layer: x is layer, scheme)
    q = quantize_apply(twin.model, recipe, weight_quantizer="abs_max", device=device)
    _give(q, twin.given)
    return q


def _give(q, given):
    """Gives the wrappers of `q` the integers of the twin's weights, and looks whether they hold."""
    wrappers = [x for x in all_layers(q) if isinstance(x, QuantizeWrapper)]
    left = [(x, i) for x in wrappers for i in range(len(x.weight_quantizers))]
    for one in given:
        found = [at for at in left if _is_that_of(one, *at)]
        if not found:
            raise ValueError(
                f"The integers of '{one.name}' have found no place in the quantized model: a "
                "rewrite has changed the layer's weights."
            )
        wrapper, index = found[0]
        left.remove(found[0])
        wrapper.give_integers(one.levels, one.steps, index)
        _check(one, wrapper, index)
    for wrapper, index in left:
        _check_rounding(wrapper, index)


def _is_that_of(one, wrapper, index):
    """Whether a weight of a wrapper is the twin's."""
    variable, _ = wrapper.weight_quantizers[index]
    if tuple(variable.shape) != one.levels.shape:
        return False
    return np.array_equal(ops.convert_to_numpy(variable), one.values)


def _check(one, wrapper, index):
    """Raises unless what is computed with is the integers."""
    variable, quantizer = wrapper.weight_quantizers[index]
    computed = ops.convert_to_numpy(quantizer.call(variable.value))
    if not np.array_equal(computed, one.values):
        raise ValueError(
            f"The integers of '{one.name}' cannot be kept: its steps lie too far apart."
        )


def _check_rounding(wrapper, index):
    """Raises unless a weight inside of a layer lies on the grid that was found for it.

    The largest integer of a channel is the largest of the grid, in Keras as here, so the steps are
    the same.
    """
    variable, quantizer = wrapper.weight_quantizers[index]
    w = ops.convert_to_numpy(variable)
    computed = ops.convert_to_numpy(quantizer.call(variable.value))
    if not np.allclose(computed, w, rtol=1e-6, atol=0):
        raise ValueError(
            f"'{wrapper.layer.name}' would be rounded again. All weights of rank 2 inside of "
            "a layer must be integers in Keras, or none."
        )
