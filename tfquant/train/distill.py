"""Learning from the float model."""

import keras
from keras import ops


def distill(model, teacher, *, temperature: float = 1.0, weight: float = 0.7, from_logits=False):
    """Returns a model that trains `model` to answer like `teacher`.

        loss = (1 - weight) * loss(y, student) + weight * T^2 * KL(teacher_T, student_T)

    with both softened by the temperature `T` (Hinton et al. 2015, arXiv:1503.02531, section 2).
    The result is a `keras.distillation.Distiller`: compile and fit it as any model, then go on with
    `model`, which is trained in place.

    Args:
        model: Model from `quantize_model`, calibrated.
        teacher: The float model. It is not changed.
        temperature: Softness of the distributions, positive.
        weight: Share of the teacher in the loss, 0 to 1.
        from_logits: Whether the models return logits and not probabilities.

    Raises:
        ImportError: If the installed Keras has no `keras.distillation`.
        ValueError: If `temperature` or `weight` is out of range, or the models do not match.

    Example:

    ```python
    distiller = tfq.distill(q, model)
    distiller.compile("adam", "sparse_categorical_crossentropy")
    distiller.fit(images, labels, epochs=3)
    tfq.to_tflite(q, "model.tflite")
    ```
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive. Received: temperature={temperature}.")
    if not 0 <= weight <= 1:
        raise ValueError(f"`weight` must be between 0 and 1. Received: weight={weight}.")
    if not hasattr(keras, "distillation"):
        raise ImportError(
            "tfq.distill needs keras.distillation, of Keras 3.12 or newer; tfq.finetune has a "
            f"teacher under any. Received: Keras {keras.__version__}."
        )
    return keras.distillation.Distiller(
        teacher=_copy(teacher),
        student=model,
        distillation_losses=SoftenedDivergence(temperature, from_logits),
        distillation_loss_weights=weight,
        student_loss_weight=1.0 - weight,
    )


def _copy(teacher):
    """Returns a copy: Keras freezes the teacher, and the user may want to quantize it again."""
    copy = keras.models.clone_model(teacher)
    copy.set_weights(teacher.get_weights())
    return copy


# Keras has it from 3.12 on.
_DistillationLoss = getattr(getattr(keras, "distillation", None), "DistillationLoss", object)


@keras.saving.register_keras_serializable(package="tfquant")
class SoftenedDivergence(_DistillationLoss):
    """`T^2 * KL(teacher_T, student_T)`, of logits or of probabilities.

    Keras's own `LogitsDistillation` takes logits only; the logarithm of probabilities is as good as
    the logits that they came from, since a softmax does not see a constant.

    Args:
        temperature: `T`.
        from_logits: Whether outputs are logits.
    """

    def __init__(self, temperature: float = 1.0, from_logits: bool = False):
        self.temperature, self.from_logits = temperature, from_logits

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        """Returns the mean over rows and outputs, a scalar."""
        del kwargs
        pairs = zip(
            keras.tree.flatten(teacher_outputs), keras.tree.flatten(student_outputs), strict=True
        )
        return sum(softened_divergence(t, s, self.temperature, self.from_logits) for t, s in pairs)

    def get_config(self):
        """Returns the arguments of the constructor."""
        return {"temperature": self.temperature, "from_logits": self.from_logits}


def softened_divergence(teacher, student, temperature: float, from_logits: bool):
    """Returns `T^2 * KL(teacher_T, student_T)`, the mean over rows, a scalar."""

    def log_softened(x):
        x = ops.cast(x, "float32")
        logits = x if from_logits else ops.log(ops.maximum(x, keras.config.epsilon()))
        return ops.log_softmax(logits / temperature, axis=-1)

    teacher, student = log_softened(teacher), log_softened(student)
    divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
    return ops.mean(divergence) * temperature**2
