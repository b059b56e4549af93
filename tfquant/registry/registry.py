"""`QuantizeRegistry`: layer type -> `QuantizeConfig`."""

from collections.abc import Callable

from tfquant.registry.schemes import Scheme
from tfquant.wrappers import QuantizeConfig

Factory = Callable[[object, Scheme], QuantizeConfig | None]


class QuantizeRegistry:
    """Says how each type of layer is quantized under a scheme.

    The type must match exactly: a subclass may compute something else.

    Example:

    ```python
    registry = tfq.QuantizeRegistry()
    registry.register(MyDense, lambda layer, scheme: MyConfig())
    q = tfq.quantize_model(model, registry=registry)
    ```

    Args:
        parent: Registry asked for types that are not registered here. The default knows Keras's
            own layers; `None` knows nothing.
    """

    def __init__(self, parent: "QuantizeRegistry | str | None" = "keras"):
        self._factories: dict[type, Factory] = {}
        self._parent = KERAS_LAYERS if parent == "keras" else parent

    def register(self, layer_type: type, factory: Factory) -> None:
        """Adds a type of layer.

        Args:
            layer_type: Class of the layer, or of the `keras.Operation`.
            factory: Function of the layer and the `Scheme` that returns a `QuantizeConfig`, or
                `None` when this layer stays float.

        Raises:
            ValueError: If the type is registered here already.
        """
        if layer_type in self._factories:
            raise ValueError(
                f"A layer type is registered once. Received: {layer_type.__name__}, which is "
                "registered already."
            )
        self._factories[layer_type] = factory

    def supports(self, layer) -> bool:
        """Whether the type of `layer` is registered, here or in the parent."""
        return self._find(type(layer)) is not None

    def get_quantize_config(self, layer, scheme: Scheme) -> QuantizeConfig | None:
        """Returns the config of `layer` under `scheme`, or `None` if it stays float."""
        factory = self._find(type(layer))
        return None if factory is None else factory(layer, scheme)

    def layer_types(self) -> list[type]:
        """Returns the registered types, those of the parent first."""
        inherited = self._parent.layer_types() if self._parent else []
        return [*inherited, *(t for t in self._factories if t not in inherited)]

    def _find(self, layer_type):
        if layer_type in self._factories:
            return self._factories[layer_type]
        return self._parent._find(layer_type) if self._parent else None


KERAS_LAYERS = QuantizeRegistry(parent=None)
