"""The float model inside a quantized one, as the teacher of its training."""

import keras
from keras import ops, tree

from tfquant.graph.walk import is_readable, leaves
from tfquant.train.distill import softened_divergence
from tfquant.wrappers import Quantize, QuantizeWrapper


def activation_quantizers(layer) -> list:
    """Returns the quantizers of what a layer puts out."""
    if isinstance(layer, Quantize):
        return [layer.quantizer]
    if isinstance(layer, QuantizeWrapper) and layer.quantizes:
        return [q for site in layer.output_quantizers for q in site if q is not None]
    return []


def quantizers(model) -> list:
    """Returns the quantizers of a model's weights and activations."""
    found = []
    for layer in leaves(model):
        if isinstance(layer, QuantizeWrapper):
            found += [quantizer for _, quantizer in layer.weight_quantizers]
        found += activation_quantizers(layer)
    return found


def float_copy(model):
    """Returns a copy of a quantized model that computes in float, as before calibration.

    Args:
        model: Model from `quantize_model`, with the weights that it was calibrated with. What
            `tfq.optimize` chose and what training moved stay in them.
    """
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    for ours, its in zip(leaves(model), leaves(copy), strict=True):
        if isinstance(ours, QuantizeWrapper):
            kept = {}
            ours.originals.save(kept)
            its.originals.load(kept)
            its.originals.restore()
    for quantizer in quantizers(copy):
        quantizer.active = False
    copy.trainable = False
    return copy


def answer(model, x):
    """Returns what `model` infers from inputs in any form that `fit` takes."""
    flat = tree.flatten(x)
    if len(flat) == 1 and is_readable(model) and not isinstance(model, keras.Sequential):
        x = tree.pack_sequence_as(model.input, flat)
    return model(x, training=False)


class Lesson:
    """What a training step learns: the labels, and the teacher's answers.

        loss = (1 - share) * loss(y, student) + share * T^2 * KL(teacher_T, student_T) + losses

    with `losses` those that layers add. Answers that are no distributions of classes are learned by
    the model's own loss, as labels are.

    Args:
        model: The quantized model, compiled.
        teacher: The float model.
        share: Share of the teacher in the loss.
        temperature: `T`.
        kinds: What each output is, of `kinds_of`.
    """

    def __init__(self, model, teacher, share: float, temperature: float, kinds: list[str]):
        self.model, self.teacher, self.share = model, teacher, share
        self.temperature, self.kinds = temperature, kinds

    def __call__(self, loss, x, y_pred):
        """Returns the loss of a step, from that of the labels."""
        added = sum((ops.sum(ops.cast(a, loss.dtype)) for a in self.model.losses), 0.0)
        answers = answer(self.teacher, x)
        if all(self.kinds):
            taught = sum(
                softened_divergence(a, p, self.temperature, kind == "logits")
                for a, p, kind in zip(
                    tree.flatten(answers), tree.flatten(y_pred), self.kinds, strict=True
                )
            )
        else:
            taught = self.model.compute_loss(x, answers, y_pred, None, False) - added
        return (1 - self.share) * (loss - added) + self.share * ops.cast(taught, loss.dtype) + added
