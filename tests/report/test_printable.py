"""Reports in a notebook, as a table of pandas, and as a record that is read again."""

import builtins
import sys

import numpy as np
import pytest

import tfquant as tfq
from tfquant.report import FloatOperator, LayerReport, Parity, PartReport, TensorReport
from tfquant.report.record import from_json


def report(**fields):
    layers = [
        LayerReport("conv", "CONV_2D", 8, 8, "4 channels", (0.1, 0.2), 40.0, 30.0, Parity(9, 0, 0)),
        LayerReport("a <b>", "ADD", None, 8, parts=[PartReport("column 1", 3, 9.5)], swallowed=[]),
    ]
    fields = {"end_to_end": Parity(9, 1, 1.0, 3, 1.0), "samples": "your data", **fields}
    floats = [FloatOperator("x", "MUL", "nobody knows")]
    tensors = [TensorReport("image", "INT8", [1, 8, 8, 1], 0.5, -128)]
    return tfq.ConversionReport("m.tflite", 90, 30, layers, floats, inputs=tensors, **fields)


@pytest.fixture
def notebook(monkeypatch):
    """What rich takes for Jupyter."""
    shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setattr(builtins, "get_ipython", shell, raising=False)
    from rich.console import Console

    assert Console().is_jupyter


def test_text_is_the_same_in_a_notebook(request):
    expected = str(report())
    assert "CONV_2D" in expected
    request.getfixturevalue("notebook")
    assert str(report()) == f"{report()}" == expected


def test_a_notebook_shows_the_table(notebook, capsys):
    html = report(end_to_end=Parity(9, 8, 90.0, 3, 1.0))._repr_html_()
    assert html.startswith("<pre") and "CONV_2D" in html
    assert "a &lt;b&gt;" in html and "<b>" not in html
    assert "color: #800000" in html.split("LOOK AT THIS")[0]  # Red.
    assert capsys.readouterr().out == ""


def test_layers_are_a_table_of_pandas(monkeypatch):
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    table = report().to_dataframe()
    assert isinstance(table, pandas.DataFrame)
    assert list(table["name"]) == ["conv", "a <b>"]
    assert table["parity.values"][0] == 9


def test_a_table_of_pandas_needs_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        report().to_dataframe()


@pytest.mark.parametrize("largest", [1.0, np.inf, np.nan])
def test_a_record_is_read_as_it_was_written(largest):
    inner = report()
    written = report(
        end_to_end=Parity(9, 1, largest, 3, 1.0, accuracies=(0.5, 0.25)),
        signatures={"other": inner},
        provenance={"versions": {"keras": "3"}},
    )
    read = from_json(written.to_json(), "report.json")
    assert str(read) == str(written)
    assert read.to_dict() == written.to_dict()
    assert read.layers[0].parity == inner.layers[0].parity
    assert read.inputs == written.inputs and read.signatures["other"].layers[0].name == "conv"
    assert isinstance(read.end_to_end.largest, float)


def test_a_record_of_a_packed_model_is_read_again():
    from tfquant.report import PackedLayerReport

    written = tfq.PackingReport("m", [PackedLayerReport("dense", "Dense", 8, 2, 4, None)])
    assert from_json(written.to_json(), "x.json") == written


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "which is none"),
        ("[]", "which is none"),
        ("{}", "which is none"),
        ('{"report": "FileSummary", "schema_version": 1}', "which is none"),
        ('{"report": "ConversionReport", "schema_version": 99}', "of schema 1 is expected"),
        ('{"report": "ConversionReport", "schema_version": 1, "path": 3}', "in which TypeError"),
        ("[" * 100_000, "which is none"),
    ],
)
def test_what_is_no_record_is_refused_by_name(content, words):
    with pytest.raises(ValueError, match=f"'some.json'.*{words}|{words}.*'some.json'"):
        from_json(content, "some.json")
