"""Which observer measures best: score and logit error of each, on all models with data."""

import dataclasses
import os
import tempfile

import numpy as np
from cases import CASES
from device import logit_error, scores_and_logits

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
