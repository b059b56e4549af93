"""`QuantizeAnnotate`: the mark on a layer that is to be quantized."""

import keras

from tfquant.wrappers.config import QuantizeConfig


@keras.saving.register_keras_serializable(package="tfquant")
class QuantizeAnnotate(keras.layers.Layer):
    """Marks `layer` as one to quantize, and computes what `layer` computes.

    Args:
        layer: Keras layer.
        quantize_config: `QuantizeConfig` to use, or `None` for the registry's.
        norm: Name of the norm that `layer` is a part of, or `None`.
    """

    def __init__(
        self,
        layer,
        quantize_config: QuantizeConfig | None = None,
        norm: str | None = None,
        **kwargs,
    ):
        kwargs.setdefault("name", f"annotate_{layer.name}")
        super().__init__(autocast=False, **kwargs)
        if quantize_config is not None and not isinstance(quantize_config, QuantizeConfig):
            raise TypeError(
                "`quantize_config` must be an instance of QuantizeConfig, or None. Received: "
                f"{quantize_config!r}."
            )
        self.layer = layer
        self.quantize_config = quantize_config
        self.norm = norm
        self.supports_masking = True

    def build(self, *args, **kwargs):
        """Leaves building to the layer's own first call."""
        self.built = True

    def call(self, *args, **kwargs):
        """Calls the layer."""
        return self.layer(*args, **kwargs)

    def compute_output_spec(self, *args, **kwargs):
        """Returns KerasTensors like the layer's."""
        args, kwargs = keras.tree.map_structure(_dense, (args, kwargs))
        return super().compute_output_spec(*args, **kwargs)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "layer": serialize(self.layer),
            "quantize_config": serialize(self.quantize_config),
            "norm": self.norm,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for key in ("layer", "quantize_config"):
            config[key] = keras.saving.deserialize_keras_object(config[key])
        config.pop("autocast", None)
        return cls(**config)


def inner(layer):
    """Returns the layer that a mark is on; any other layer is returned as it is."""
    return layer.layer if isinstance(layer, QuantizeAnnotate) else layer


def _dense(x):
    """Returns a KerasTensor that is not sparse: Keras takes a product with a number for one."""
    sparse = isinstance(x, keras.KerasTensor) and x.sparse
    return keras.KerasTensor(x.shape, x.dtype) if sparse else x
