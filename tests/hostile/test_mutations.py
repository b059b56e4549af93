"""Damaged files through each command: one line that names the file, no traceback, nothing written.

All in one process: a signal would end it, and the test with it.
"""

import json
import shutil

import keras
import numpy as np
import pytest

import tfquant as tfq
import tfquant_cli

CALLS = {
    "inspect model.keras": ("model.keras", ("inspect", "model.keras")),
    "inspect model.tflite": ("model.tflite", ("inspect", "model.tflite")),
    **{
        f"check model.tflite on {device}": (
            "model.tflite",
            ("check", "model.tflite", f"--device={device}"),
        )
        for device in ("litert", "edgetpu", "tflm", "ethos-u")
    },
    "export-c model.tflite": ("model.tflite", ("export-c", "model.tflite", "out")),
    "compare model.tflite": (
        "model.tflite",
        ("compare", "sound.keras", "model.tflite", "--data=sound.npz"),
    ),
    "compare data.npz": (
        "data.npz",
        ("compare", "sound.keras", "sound.tflite", "--data=data.npz"),
    ),
    "quantize model.keras": (
        "model.keras",
        ("quantize", "model.keras", "--scheme=w8", "--output=out.tflite", "--noverify"),
    ),
    "quantize recipe.json": (
        "recipe.json",
        ("quantize", "sound.keras", "--recipe=recipe.json", "--output=out.tflite", "--noverify"),
    ),
    "report report.json": ("report.json", ("report", "report.json")),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder of small sound files, one of each format."""
    folder = tmp_path_factory.mktemp("sound")
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    y = keras.layers.Dense(5, activation="relu", name="first")(x)
    model = keras.Model(x, keras.layers.Dense(3, name="second")(y))
    data = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    quantized = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    report = tfq.to_tflite(quantized, folder / "model.tflite", progress=False)
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", x=data, y=np.arange(8) % 3)
    tfq.Recipe("w8").where("first", "f16").save(str(folder / "recipe.json"))
    (folder / "report.json").write_text(report.to_json())
    return folder


def mutated(content: bytes, generator) -> bytes:
    """Content with a few bytes changed, cut out, doubled, or put elsewhere; or cut short."""
    content = bytearray(content)
    kind = generator.integers(5)
    start = int(generator.integers(len(content)))
    length = int(generator.integers(1, 1 + min(64, len(content) - start)))
    if kind == 0:
        for place in generator.integers(len(content), size=generator.integers(1, 9)):
            content[place] = generator.integers(256)
    elif kind == 1:
        del content[start : start + length]
    elif kind == 2:
        content[start:start] = content[start : start + length]
    elif kind == 3:
        content[start : start + length] = generator.bytes(length)
    else:
        del content[start:]
    return bytes(content)


def check(call, count, sound, folder, capfd, monkeypatch):
    """Runs a command on mutations of its file; returns how many it took for sound."""
    monkeypatch.chdir(folder)
    damaged, arguments = CALLS[call]
    for path in sound.iterdir():
        (folder / path.name.replace(path.stem, "sound")).write_bytes(path.read_bytes())
    content, generator, taken = (sound / damaged).read_bytes(), np.random.default_rng(0), 0
    for number in range(count):
        (folder / damaged).write_bytes(mutated(content, generator))
        before = sorted(path.name for path in folder.iterdir())
        code = tfquant_cli.main(list(arguments))
        out, err = capfd.readouterr()
        place = f"mutation {number} of {damaged}: {err[-600:]}"
        assert "Traceback" not in out + err, place
        assert code in (0, 2, 3), place
        taken += code != 2
        if code == 2:
            assert out == "" and err.count("\n") == 1 and damaged in err, place
            assert sorted(path.name for path in folder.iterdir()) == before, place
        (folder / "out.tflite").unlink(missing_ok=True)
        shutil.rmtree(folder / "out", ignore_errors=True)
    return taken


@pytest.mark.parametrize("call", CALLS)
def test_a_damaged_file_is_named_in_one_line(call, sound, tmp_path, capfd, monkeypatch):
    if call.startswith("export-c") or call.endswith("tflm"):
        pytest.importorskip("tflite_micro", reason="needs the extra tfquant[tflm]: tflite-micro")
    # A mutation that is none converts a model, or starts a process.
    slow = call.startswith(("quantize", "export-c")) or call.endswith(("tflm", "ethos-u"))
    count = 25 if slow else 100
    assert check(call, count, sound, tmp_path, capfd, monkeypatch) < count


@pytest.mark.long
@pytest.mark.parametrize("call", CALLS)
def test_a_thousand_damaged_files_are(call, sound, tmp_path, capfd, monkeypatch):
    assert check(call, 1000, sound, tmp_path, capfd, monkeypatch) < 1000


def absurd(parts, name):
    """The members of a Keras file of a sound form whose content is absurd."""
    config = json.loads(parts["config.json"])
    dense = config["config"]["layers"][1]["config"]
    if name == "units":
        dense["units"] = 10**12
    elif name == "negative":
        dense["units"] = -1
    elif name == "text":
        dense["units"] = "a"
    elif name == "empty":
        config["config"]["layers"] = []
    elif name == "list":
        config = []
    elif name == "number":
        config = 3
    elif name == "no model":
        config = config["config"]["layers"][1]
    text = json.dumps(config)
    if name == "deep":
        text = '{"a":' * 100_000 + "1" + "}" * 100_000
    changed = {**parts, "config.json": text.encode()}
    if name == "no weights":
        del changed["model.weights.h5"]
    if name == "no config":
        del changed["config.json"]
    if name == "garbage weights":
        changed["model.weights.h5"] = b"garbage" * 1000
    return changed


ABSURD = (
    *("units", "negative", "text", "empty", "list", "number", "deep", "no model"),
    *("no weights", "no config", "garbage weights"),
)


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_model_in_a_sound_archive_is_named_in_one_line(
    name, sound, tmp_path, capfd, monkeypatch
):
    import zipfile

    with zipfile.ZipFile(sound / "model.keras") as archive:
        parts = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "absurd.keras", "w") as archive:
        for member, content in absurd(parts, name).items():
            archive.writestr(member, content)
    monkeypatch.chdir(tmp_path)
    assert tfquant_cli.main(["inspect", "absurd.keras"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "absurd.keras" in err, err[-600:]


def test_names_of_tensors_may_be_missing_or_no_text(sound, tmp_path):
    from tfquant.litert.flatbuffer import File

    for name in (None, b"\xff\xfe"):
        file = File((sound / "model.tflite").read_bytes())
        for tensor in file.subgraph.tensors:
            tensor.name = name
        (tmp_path / "named.tflite").write_bytes(file.to_bytes())
        summary = tfq.inspect(tmp_path / "named.tflite")
        assert [x.operator for x in summary.operators].count("FULLY_CONNECTED") == 2
        assert "FULLY_CONNECTED" in str(summary)
