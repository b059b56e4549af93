"""`OperationLayer`: a `keras.ops` node of a functional model, as a layer."""

import keras


@keras.saving.register_keras_serializable(package="tfquant")
class OperationLayer(keras.layers.Layer):
    """Calls a Keras operation, such as the `Add` behind `x + 1.0`, so that it can be wrapped.

    Args:
        operation: `keras.Operation` that is not a layer.
    """

    def __init__(self, operation, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.operation = operation
        self.built = True

    def call(self, *args, **kwargs):
        """Calls the operation."""
        return self.operation(*args, **kwargs)

    def get_config(self):
        return {
            **super().get_config(),
            "operation": keras.saving.serialize_keras_object(self.operation),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["operation"] = keras.saving.deserialize_keras_object(config["operation"])
        config.pop("autocast", None)
        return cls(**config)
