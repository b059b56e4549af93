"""The texts: generated tables are current, links lead somewhere, figures stand once."""

import pathlib
import re

import keras
import layer_tables
import pytest

import tfquant as tfq

ROOT = pathlib.Path(__file__).parent.parent
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("file", layer_tables.TEXTS)
def test_generated_tables_are_those_of_the_registry(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    # Else: python docs/layer_tables.py
    assert layer_tables.update(text, layer_tables.TEXTS[file]) == text


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


def test_the_readme_is_read_in_one_go():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    by_hand = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", text, flags=re.DOTALL)
    assert len(by_hand.encode()) < 8000


def test_a_text_without_markers_is_refused():
    with pytest.raises(ValueError, match="layers"):
        layer_tables.update("no markers", ("layers",))


def test_a_layer_that_cannot_be_made_is_named():
    class Strange(keras.layers.Layer):
        def __init__(self, strangeness):
            super().__init__()

    registry = tfq.QuantizeRegistry(parent=None)
    registry.register(Strange, lambda layer, scheme: None)
    with pytest.raises(ValueError, match=r"Strange requires: add \['strangeness'\]"):
        layer_tables.layer_table(registry)
