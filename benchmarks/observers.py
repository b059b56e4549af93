"""Which observer measures best: score and logit error of each, on all models with data.

By itself, `python benchmarks/observers.py`, it measures a set of rare peaks, which needs no data.
"""

import dataclasses
import os
import tempfile

import numpy as np
from absl import app
from cases import CASES
from device import Runner, logit_error, read, scores_and_logits

SCHEMES = ("w8a8", "w4a8")

# LiteRT's 4-bit convolutions are slow: large images are scored on fewer rows, at even strides.
LARGE_IMAGE = 100_000
ROWS_4_BIT = 100


@dataclasses.dataclass(frozen=True)
class Measured:
    """One observer on one model under one scheme.

    Attributes:
        model, scheme, observer: What was measured.
        float_score: Share of right predictions of the float model.
        score: The same of the file on the device.
        agree: Share of predictions equal to the float model's.
        logit_error: RMS difference of the logits, relative.
    """

    model: str
    scheme: str
    observer: str
    float_score: float
    score: float
    agree: float
    logit_error: float


def measure(load, names, schemes, step) -> list[Measured]:
    """Measures every observer.

    Args:
        load: The loader of the data folder.
        names: Models to measure; those without data are left out.
        schemes: Schemes to measure.
        step: Called with a description before each measurement.
    """
    import tfquant as tfq
    from tfquant import observers

    results = []
    for case in CASES:
        if case.name not in names or not case.has_data:
            continue
        calibration, rows, labels = case.rows(load)
        model = case.model(load)
        everything = rows, labels, model.predict(rows, batch_size=32, verbose=0)
        for scheme in schemes:
            stride = 1
            if scheme == "w4a8" and rows[0].size >= LARGE_IMAGE:
                stride = len(everything[0]) // ROWS_4_BIT
            rows, labels, expected = (array[::stride] for array in everything)
            truth = expected.argmax(-1)
            q = tfq.quantize_model(model, scheme)
            for observer in observers.OBSERVERS:
                step(f"{case.name} {scheme} {observer}")
                tfq.calibrate(q, calibration, observer=observer, progress=False)
                scores, logits = scores_and_logits(_content(q), rows)
                found = scores.argmax(-1)
                results.append(
                    Measured(
                        case.name,
                        scheme,
                        observer,
                        float(np.mean(truth == labels)),
                        float(np.mean(found == labels)),
                        float(np.mean(found == truth)),
                        logit_error(expected, logits),
                    )
                )
    return results


# Observers of `rare_peaks`, the default among them.
AUTO = "auto"

# Calibration rows with an event, and what is measured.
EVENTS, ROWS, LENGTH = 0.02, 400, 256


def rare_peaks() -> dict[str, tuple[float, float]]:
    """Measures a model that returns the height of a peak, seen in 2% of the calibration rows.

    Returns:
        Dict from an observer to the median of what the file returns on rows with a peak, as a share
        of what the float model does, and the RMS difference on rows without one.
    """
    import tfquant as tfq
    from tfquant import observers

    rng = np.random.default_rng(0)
    model = _peak_height()
    calibration, _ = _signals(rng, ROWS, EVENTS)
    rows, events = _signals(rng, ROWS, 0.5)
    expected, found = model.predict(rows, verbose=0), {}
    for observer in (AUTO, *(name for name in observers.OBSERVERS if name != AUTO)):
        q = tfq.quantize_model(model, "w8a8")
        tfq.calibrate(q, calibration, observer=observer, progress=False)
        received = _returned(_content(q), rows).reshape(expected.shape)
        share = float(np.median(received[events] / expected[events]))
        quiet = float(np.sqrt(np.mean((received - expected)[~events] ** 2)))
        found[observer] = share, quiet
    return found


def _returned(content, rows):
    """Returns the only output of a file as real numbers."""
    graph = read(content).subgraphs[0]
    quantization = graph.tensors[graph.outputs[0]].quantization
    (stored,) = Runner(content)(rows)
    return (stored.astype(np.float64) - quantization.zeroPoint[0]) * quantization.scale[0]


def _peak_height():
    """Returns a small network that smooths a signal, and finds its largest value."""
    import keras
    from keras import layers

    x = keras.Input((LENGTH, 1))
    y = layers.Conv1D(4, 3, padding="same", activation="relu", use_bias=False)(x)
    y = layers.Dense(1)(layers.GlobalMaxPooling1D()(y))
    model = keras.Model(x, y)
    kernel = np.tile(np.float32([0.2, 0.6, 0.2])[:, None, None], (1, 1, 4))
    model.set_weights([kernel, np.full((4, 1), 0.25, np.float32), np.zeros(1, np.float32)])
    return model


def _signals(rng, count, share):
    """Returns noise with a peak of 4 to 6 in some rows, and which they are."""
    rows = rng.normal(0, 0.05, (count, LENGTH, 1)).astype("float32")
    events = np.arange(count) % round(1 / share) == 0
    places = rng.integers(1, LENGTH - 1, events.sum())
    rows[events, places, 0] = rng.uniform(4, 6, events.sum())
    return rows, events


def main(_):
    """Prints what each observer makes of rare peaks; exit code 1 if the default is the worst."""
    found = rare_peaks()
    for name, (share, quiet) in found.items():
        print(f"{name:<20} median peak {share:.3f} of float   RMS without a peak {quiet:.4f}")
    return int(found[AUTO][0] <= min(share for name, (share, _) in found.items() if name != AUTO))


def summary(results) -> list[str]:
    """Returns the figures of each observer over all models and schemes, best first."""
    keys = {(r.model, r.scheme) for r in results}
    lines = []
    for scheme in (*SCHEMES, "both"):
        chosen = [r for r in results if scheme in (r.scheme, "both")]
        table = {}
        for r in chosen:
            group = [s for s in chosen if (s.model, s.scheme) == (r.model, r.scheme)]
            # Equal scores share a rank.
            by_score = 1 + sum(s.score > r.score for s in group)
            by_score += 0.5 * (sum(s.score == r.score for s in group) - 1)
            by_error = 1 + sum(s.logit_error < r.logit_error for s in group)
            table.setdefault(r.observer, []).append((by_score, by_error, r))
        order = sorted(table, key=lambda name: np.mean([e for _, e, _ in table[name]]))
        lines.append(f"{scheme}, best logit error first:")
        for name in order:
            ranks_score, ranks_error, found = zip(*table[name], strict=True)
            lines.append(
                f"  {name:<20} mean score {np.mean([r.score for r in found]):.4f}"
                f"  mean rank by score {np.mean(ranks_score):.2f}"
                f"  by logit error {np.mean(ranks_error):.2f}"
                f"  mean logit error {np.mean([r.logit_error for r in found]):.4f}"
                f"  mean agreement {np.mean([r.agree for r in found]):.4f}"
            )
    lines.append(f"over {len(keys)} pairs of model and scheme")
    return lines


def _content(q) -> bytes:
    import tfquant as tfq

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.tflite")
        tfq.to_tflite(q, path, verify=False, progress=False)
        with open(path, "rb") as file:
            return file.read()


if __name__ == "__main__":
    app.run(main)
