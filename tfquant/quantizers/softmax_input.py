"""A grid in front of a softmax: what a softmax cannot see needs no integers."""

import keras
from keras import ops

from tfquant.quantizers.base import RealScope, RecordingScope
from tfquant.quantizers.static import Static

# `exp(-9)` is a sixteenth of half a step of an 8-bit softmax.
SOFTMAX_REACH = 9.0

# A row whose largest score is below this was hidden whole by a mask.
HIDDEN_ROW = -500.0


@keras.saving.register_keras_serializable(package="tfquant")
class SoftmaxInput(Static):
    """Static grid in front of a softmax over the last axis.

    A mask adds a large negative number to the scores that it hides. Taken into the range, it leaves
    the other scores one integer. So the TFLite converter's own 8-bit file of a MiniLM encoder loses
    its attention: its scores span 2.4e38, and every softmax is uniform. What lies further than
    `SOFTMAX_REACH` below the largest score of its row contributes nothing, so observers see it at
    that distance, and the device saturates there. A row that is hidden whole they do not see: all
    of it saturates, and its softmax is uniform, as the float model's is.
    """

    def call(self, x, training=None):
        """Returns `x` rounded to the grid; shows observers what is in reach of its row's top."""
        scope = RecordingScope.current()
        if scope is None or isinstance(scope, RealScope):
            return super().call(x, training=training)
        top = ops.max(x, axis=-1, keepdims=True)
        seen = ops.maximum(x, top - SOFTMAX_REACH)
        scope.record(self, ops.where(top < HIDDEN_ROW, ops.max(top), seen))
        return x


@keras.saving.register_keras_serializable(package="tfquant")
class MaskInput(Static):
    """Static grid of a mask that is added to scores: it ends where scores are hidden.

    What hides a score by -1e9 hides it at the end of the grid as well, to which it saturates.
    """

    def call(self, x, training=None):
        """Returns `x` rounded to the grid; shows observers no more than hides a score."""
        scope = RecordingScope.current()
        if scope is None or isinstance(scope, RealScope):
            return super().call(x, training=training)
        scope.record(self, ops.clip(x, 2 * HIDDEN_ROW, -2 * HIDDEN_ROW))
        return x
