"""The layers that one layer consists of."""

from keras import layers

from tfquant.wrappers import QuantizeAnnotate


class Parts:
    """Makes the layers that one layer consists of, each marked, and called as often as it is named.

    Args:
        name: Prefix of their names.
        scheme: `Scheme`.
        trainable: Whether their weights train.
        norm: Name of the norm that they are parts of, or `None`.
    """

    def __init__(self, name, scheme, trainable: bool = True, norm: str | None = None):
        self.name, self.scheme, self.trainable, self.norm = name, scheme, trainable, norm
        self.made = {}

    def make(self, name, make, *args, config=None, weights=(), input_shape=None, **kwargs):
        """Returns the part `name`, made at its first use.

        Args:
            name: What is added to the prefix.
            make: Its class.
            *args: Arguments of the class.
            config: `QuantizeConfig`, or `None` for the registry's.
            weights: Arrays that it holds.
            input_shape: Shape that it is built for, where it has weights.
            **kwargs: Arguments of the class.
        """
        if name not in self.made:
            part = make(*args, name=f"{self.name}_{name}", **kwargs)
            if len(weights):
                part.build(input_shape)
                part.set_weights(weights)
            config = config if self.scheme.static else None
            self.made[name] = QuantizeAnnotate(part, config, self.norm)
        return self.made[name]

    def dense(self, name, kernel, bias, x, config=None):
        """Multiplies `x` by weights."""
        settings = self.linear(kernel, bias)
        shape = (None, kernel.shape[0])
        return self.make(name, layers.Dense, config=config, input_shape=shape, **settings)(x)

    def linear(self, kernel, bias) -> dict:
        """Returns the arguments of `make` for a layer of that kernel, and bias or `None`."""
        return {
            ("units" if kernel.ndim == 2 else "filters"): kernel.shape[-1],
            "use_bias": bias is not None,
            "trainable": self.trainable,
            "weights": [kernel] if bias is None else [kernel, bias],
        }
