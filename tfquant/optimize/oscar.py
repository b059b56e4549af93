"""`Oscar`: the range of a layer's steps in closed form, weights rounded to the nearest."""

import dataclasses
from typing import ClassVar

import numpy as np

from tfquant.numerics import group_scale
from tfquant.optimize.algorithm import Algorithm
from tfquant.optimize.gptq import give, prepare
from tfquant.rounding.clip import best_range
from tfquant.rounding.quadratic import to_grid


@dataclasses.dataclass(frozen=True)
class Oscar(Algorithm):
    """Clips what shares a step where the expected error of the outputs is least, without a search.

    Inputs are taken for independent; each counts by its second moment. Weights are rounded to the
    nearest, and the bias gives means back. The clip of OSCAR, as ai-edge-quantizer has it; its
    scales of inputs are those of "awq" and "smoothquant" here.
    """

    name: ClassVar[str] = "oscar"

    def choose(self, block) -> None:
        """Gives the layers of a block integers, one after the other."""
        for site in block.one_by_one():
            moments, importance = prepare(site, block.rng, 0.0, False)
            steps = _steps(site, importance)
            give(site, to_grid(site.weights / site.spread(steps), site.bounds), steps, moments)


def _steps(site, importance):
    """Returns the steps of a layer, in the shape of the quantizer's."""
    q = site.quantizer
    h = site.to_kernel(np.broadcast_to(importance[:, :, None], site.weights.shape))
    kept = [n for n in range(len(q.parts_shape)) if n not in q.reduced_axes]
    as_rows = lambda x: np.transpose(  # noqa: E731
        x.reshape(q.parts_shape), (*kept, *q.reduced_axes)
    ).reshape(-1, np.prod([q.parts_shape[n] for n in q.reduced_axes], dtype=int))
    found = best_range(as_rows(np.abs(site.kernel)), as_rows(h), q.spec.qmax) / q.spec.qmax
    steps = np.maximum(found, 1e-12).reshape(q.scale_shape).astype(np.float32)
    return np.asarray(group_scale(steps)) if q.grouped else steps
