"""Small models after real architectures: quantized whole, and no worse than others do it."""

import pytest
from architectures import MODELS, build, data_of
from architectures.measure import SCHEMES, measure

# Of every kind one, and those that take seconds.
DEFAULT = (
    "anomaly",
    "bert",
    "ds_cnn",
    "gat",
    "gcn",
    "mobilenet_v2",
    "super_resolution",
    "two_tower",
    "unet",
    "vision_transformer",
)

CASES = [
    pytest.param(
        name, scheme, marks=() if scheme == "w8a8" and name in DEFAULT else pytest.mark.long
    )
    for name in MODELS
    for scheme in SCHEMES
]


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_an_architecture_is_quantized_whole_and_no_worse_than_by_others(name, scheme, tmp_path):
    model = build(name)
    found = measure(model, data_of(model), scheme, tmp_path)
    assert found.apart == 0
    assert found.agrees
    if found.rival is not None and found.rival < 100:  # Or it quantized nothing.
        assert found.sqnr > found.rival - 1.0
        assert len(found.float_operators) <= len(found.rival_float), found.float_operators
