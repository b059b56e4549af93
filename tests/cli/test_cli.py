"""The command, as a user of the shell meets it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfquant as tfq
import tfquant_cli

ROOT = pathlib.Path(tfquant_cli.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with models, data and broken files."""
    folder = tmp_path_factory.mktemp("cli")
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    inputs = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Flatten(name="flatten")(keras.layers.ReLU(name="relu")(x))
    model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax", name="head")(x))
    model.save(folder / "model.keras")
    images = rng.uniform(0, 1, (40, 8, 8, 1)).astype("float32")
    quantized = tfq.calibrate(tfq.quantize_model(model), images, progress=False)
    quantized.save(folder / "quantized.keras")
    tfq.to_tflite(quantized, folder / "good.tflite", progress=False, verify=False)
    np.savez(folder / "data.npz", image=images, y=np.zeros(40))
    np.savez(folder / "anonymous.npz", images)
    np.savez(folder / "two.npz", a=images, b=images)
    np.savez(folder / "shape.npz", image=images[:, :4])
    np.savez(folder / "nan.npz", image=images * np.nan)
    np.savez(folder / "empty.npz", image=images[:0])
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    (folder / "junk.keras").write_bytes(b"junk")
    (folder / "cut.keras").write_bytes((folder / "model.keras").read_bytes()[:2000])
    (folder / "cut.tflite").write_bytes((folder / "good.tflite").read_bytes()[:2000])
    subclassed = Subclassed()
    subclassed(images)
    subclassed.save(folder / "subclassed.keras")
    return folder


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    yield folder
    for path in folder.iterdir():
        if path not in before:
            path.unlink()


def in_shell(*arguments, folder):
    """Runs the command in a fresh process."""
    return subprocess.run(
        [sys.executable, "-m", "tfquant_cli", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def here_and_now(*arguments):
    """Runs the command in this process: the same code without seconds of imports."""
    return tfquant_cli.main(list(arguments))


GOOD = ("model.keras", "--output", "out.tflite", "--calibration", "data.npz")


def test_quantize_writes_a_file_that_agrees_with_the_model(here):
    done = in_shell("quantize", *GOOD, "--report", "report.json", folder=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "Wrote out.tflite and report.json"
    assert "CONV_2D" in done.stdout
    report = json.loads((here / "report.json").read_text())
    assert report["end_to_end"]["differing"] == 0
    assert report["quantized_bytes"] == (here / "out.tflite").stat().st_size
    assert tfq.inspect("out.tflite").float_operators == []


@pytest.mark.parametrize("scheme", [name for name, s in tfq.SCHEMES.items() if not s.static])
def test_schemes_with_float_activations_need_no_data(here, capsys, scheme):
    assert here_and_now("quantize", "model.keras", "--output=out.tflite", "--scheme", scheme) == 0
    assert capsys.readouterr().out.endswith("Wrote out.tflite\n")


def test_types_skips_and_observers_reach_the_file(here):
    flags = "--input_type=uint8 --output_type=float32 --skip=head --observer=percentile --noverify"
    assert here_and_now("quantize", *GOOD, *flags.split(), "--batch_size=8") == 0
    summary = tfq.inspect("out.tflite")
    assert [kind for _, kind, _ in summary.inputs] == ["UINT8"]
    assert [kind for _, kind, _ in summary.outputs] == ["FLOAT32"]
    assert "FULLY_CONNECTED" in [operator.operator for operator in summary.float_operators]


def test_the_best_effort_chooses_integers_on_the_data(here):
    contents = {}
    for effort in ("default", "best"):
        flags = ("--scheme=w4a8", f"--effort={effort}", "--noverify")
        assert here_and_now("quantize", *GOOD, *flags) == 0
        contents[effort] = (here / "out.tflite").read_bytes()
    assert abs(len(contents["best"]) - len(contents["default"])) <= 64  # Buffers are aligned.
    assert contents["best"] != contents["default"]


def test_the_best_effort_needs_data(here, capsys):
    flags = ("--scheme=w4", "--effort=best", "--output=out.tflite")
    assert here_and_now("quantize", "model.keras", *flags) == tfquant_cli.USER_ERROR
    assert "--effort best runs on data, so --calibration" in capsys.readouterr().err


def test_the_only_array_of_a_file_needs_no_name(here):
    command = ("quantize", "model.keras", "--output=out.tflite", "--calibration=anonymous.npz")
    assert here_and_now(*command) == 0


@pytest.mark.parametrize("output", ["packed.keras", "packed_model"])
def test_a_packed_model_is_written_and_shown(here, capsys, output):
    command = ("quantize", "model.keras", "--calibration=data.npz", "--format=packed")
    try:
        assert here_and_now(*command, "--output", output, "--report=report.json") == 0
    finally:
        shutil.rmtree(here / "packed_model", ignore_errors=True)
    shown = capsys.readouterr().out
    assert "conv   Conv2D       8/8" in shown
    assert shown.endswith(f"Wrote {output} and report.json\n")
    assert json.loads((here / "report.json").read_text())["layers"][0]["weight_bits"] == 8
    if output.endswith(".keras"):
        assert here_and_now("inspect", output) == 0
        assert "per channel (4)" in capsys.readouterr().out


def test_a_recipe_says_what_each_layer_has(here):
    tfq.Recipe("w8a8").where("conv", "w4a8").skip("head").save("recipe.json")
    assert here_and_now("quantize", *GOOD, "--recipe=recipe.json", "--report=report.json") == 0
    layers = {x["name"]: x for x in json.loads((here / "report.json").read_text())["layers"]}
    assert layers["conv"]["weight_bits"] == 4
    assert "FULLY_CONNECTED" in [x.operator for x in tfq.inspect("out.tflite").float_operators]


@pytest.mark.parametrize("flag", ["--scheme=w4a8", "--group_size=32"])
def test_a_recipe_stands_alone(here, capsys, flag):
    tfq.Recipe("w8a8").save("recipe.json")
    assert here_and_now("quantize", *GOOD, "--recipe=recipe.json", flag) == 2
    assert f"cannot stand beside --recipe. Received: {flag}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        (("--scheme=w4_g32",), 32),
        (("--scheme=w4a8_g32", "--group_size=128"), 128),
        (("--calibration=data.npz", "--group_size=64"), 64),
        (("--scheme=w4_g32", "--group_size=0"), None),
    ],
)
def test_groups_are_those_of_the_scheme_or_the_flag(here, capsys, flags, size):
    command = ("quantize", "model.keras", "--format=packed", "--output=out.keras")
    assert here_and_now(*command, *flags) == 0
    shown = capsys.readouterr().out
    words = f"Dense head: groups of {size} do not divide its 144 inputs"
    assert words in shown if size else "groups of" not in shown


@pytest.mark.parametrize("other", ["packed", "onnx"])
def test_types_of_another_format_are_refused(other, here, capsys):
    ending = {"packed": "keras"}.get(other, other)
    given = (f"--format={other}", f"--output=out.{ending}", "--calibration=data.npz")
    assert here_and_now("quantize", "model.keras", *given, "--input_type=int8") == 2
    assert "are for --format tflite" in capsys.readouterr().err


def test_an_onnx_file_is_written_compared_and_shown(here, capsys):
    pytest.importorskip("onnxruntime", reason="needs the extra tfquant[onnx]")
    command = ("quantize", "model.keras", "--calibration=data.npz", "--format=onnx")
    assert here_and_now(*command, "--output=out.onnx", "--report=report.json") == 0
    shown = capsys.readouterr().out
    assert "QLinearConv" in shown and shown.endswith("Wrote out.onnx and report.json\n")
    report = json.loads((here / "report.json").read_text())
    assert report["device"] == "onnxruntime" and not report["end_to_end"]["differing"]


def test_a_missing_extra_is_a_mistake_and_nothing_is_written(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    command = ("quantize", "model.keras", "--calibration=data.npz", "--format=onnx")
    assert here_and_now(*command, "--output=none.onnx") == tfquant_cli.USER_ERROR
    assert "pip install 'tfquant[onnx]'" in capsys.readouterr().err
    assert not (here / "none.onnx").exists()


def test_inspect_shows_a_file_and_a_model(here, capsys):
    assert here_and_now("inspect", "good.tflite") == 0
    shown = capsys.readouterr().out
    assert "CONV_2D" in shown and f"{(here / 'good.tflite').stat().st_size:,} bytes" in shown
    assert here_and_now("inspect", "quantized.keras") == 0
    shown = capsys.readouterr().out
    assert "per channel (4)" in shown and ": quantized, 1,502 parameters" in shown
    assert here_and_now("inspect", "model.keras") == 0
    assert "BatchNormalization" in capsys.readouterr().out


@pytest.mark.parametrize("model, differing", [("quantized.keras", "0 of 400"), ("model.keras", "")])
def test_compare_counts_differences(here, capsys, model, differing):
    assert here_and_now("compare", model, "good.tflite", "--data", "data.npz") == 0
    shown = capsys.readouterr().out
    assert f"differing values    {differing}" in shown
    assert "largest difference" in shown and "equal predictions" in shown


@pytest.mark.slow
def test_the_demo_gets_the_digits_right(here, capsys):
    pytest.importorskip("sklearn", reason="the digits come from scikit-learn")
    assert here_and_now("demo", "--output", "demo.tflite") == 0
    shown = capsys.readouterr().out
    accuracy = [float(word) for word in shown.split("digits: ")[1].split() if word[:2] == "0."]
    assert len(accuracy) == 3 and min(accuracy) > 0.95
    assert shown.endswith("Wrote demo.tflite\n")


def test_doctor_says_which_path_runs(here, capsys):
    assert here_and_now("doctor") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("low-bit operations: ")
    assert "compiler: " in shown
    assert "GPU: " in shown


def test_the_demo_says_what_it_needs(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert here_and_now("demo") == 2
    assert 'pip install "tfquant[demo]"' in capsys.readouterr().err
    assert not (here / "digits.tflite").exists()


TWO = ("quantized.keras", "good.tflite", "--data=data.npz")

MISTAKES = {
    "unknown command": ("nonsense",),
    "no file": ("quantize",),
    "missing flag": ("quantize", "model.keras"),
    "unknown flag": ("quantize", *GOOD, "--nonsense"),
    "unknown type": ("quantize", *GOOD, "--input_type=int4"),
    "type that does not fit": ("quantize", *GOOD, "--input_type=int16"),
    "no number": ("quantize", *GOOD, "--batch_size=many"),
    "batch of nothing": ("quantize", *GOOD, "--batch_size=0"),
    "missing model": ("quantize", "none.keras", *GOOD[1:]),
    "model that is none": ("quantize", "junk.keras", *GOOD[1:]),
    "model cut short": ("quantize", "cut.keras", *GOOD[1:]),
    "subclassed model": ("quantize", "subclassed.keras", *GOOD[1:]),
    "model quantized already": ("quantize", "quantized.keras", *GOOD[1:]),
    "folder as a model": ("inspect", "."),
    "unknown scheme": ("quantize", *GOOD, "--scheme=w3b5"),
    "width that no kernel has": ("quantize", *GOOD, "--scheme=w1a8"),
    "recipe that is none": ("quantize", *GOOD, "--recipe=data.npz"),
    "missing recipe": ("quantize", *GOOD, "--recipe=none.json"),
    "unknown groups": ("quantize", *GOOD, "--group_size=48"),
    "unknown layer": ("quantize", *GOOD, "--skip=tail"),
    "unknown observer": ("quantize", *GOOD, "--observer=oracle"),
    "no calibration": ("quantize", *GOOD[:3]),
    "missing data": ("quantize", *GOOD[:4], "none.npz"),
    "data of other names": ("quantize", *GOOD[:4], "two.npz"),
    "data of another shape": ("quantize", *GOOD[:4], "shape.npz"),
    "data that are not numbers": ("quantize", *GOOD[:4], "nan.npz"),
    "no rows": ("quantize", *GOOD[:4], "empty.npz"),
    "data of objects": ("quantize", *GOOD[:4], "objects.npy"),
    "data that are none": ("quantize", *GOOD[:4], "junk.keras"),
    "missing folder": ("quantize", "model.keras", "--output=no/out.tflite", *GOOD[3:]),
    "folder as output": ("quantize", "model.keras", "--output=.", *GOOD[3:]),
    "output of another ending": ("quantize", "model.keras", "--output=out.onnx", *GOOD[3:]),
    "packed output of another ending": ("quantize", *GOOD, "--format=packed"),
    "report of another ending": ("quantize", *GOOD, "--report=report.txt"),
    "folder that takes no files": ("quantize", "model.keras", "--output=/proc/x", *GOOD[3:]),
    "module that is not there": ("inspect", "model.keras", "--import=no_such_module"),
    "report that is none": ("report", "data.npz"),
    "agreement above one": ("compare", *TWO, "--min_agreement=1.5"),
    "output over the model": ("quantize", "model.keras", "--output=model.keras", *GOOD[3:]),
    "report over the output": ("quantize", *GOOD, "--report=out.tflite"),
    "file cut short": ("inspect", "cut.tflite"),
    "file of no kind": ("inspect", "junk.keras"),
    "no .tflite file": ("compare", "model.keras", "junk.keras", "--data=data.npz"),
    "one file for two": ("compare", "model.keras", "--data=data.npz"),
    "nothing to compare on": ("compare", "model.keras", "good.tflite"),
}


@pytest.mark.parametrize("verbose", [False, True], ids=["", "verbose"])
@pytest.mark.parametrize("arguments", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_one_line_and_writes_nothing(here, capfd, arguments, verbose):
    arguments = (*arguments, "--verbose") if verbose else arguments
    before = {path: path.read_bytes() for path in here.iterdir()}
    assert here_and_now(*arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    own = [line for line in err.splitlines() if line.startswith("tfquant: error: ")]
    assert len(own) == 1 and "Traceback" not in err
    assert verbose or err.count("\n") == 1
    assert {path: path.read_bytes() for path in here.iterdir()} == before


def test_a_mistake_in_a_fresh_process_is_one_line_too(here):
    done = in_shell("quantize", *GOOD, "--scheme", "w4a9000", folder=here)
    assert done.returncode == 2
    assert done.stderr.startswith("tfquant: error: `activation_bits` must be a whole number")
    assert done.stderr.count("\n") == 1


def test_an_interrupt_leaves_nothing_behind(here, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    before = set(here.iterdir())
    monkeypatch.setattr(tfq, "to_tflite", interrupt)
    assert here_and_now("quantize", *GOOD) == 130
    assert capsys.readouterr().err == "tfquant: interrupted\n"
    assert set(here.iterdir()) == before


def test_a_bug_shows_its_traceback(here, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(tfq, "to_tflite", fail)
    assert here_and_now("quantize", *GOOD) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "internal error" in shown


def test_a_broken_installation_is_no_mistake_of_the_user(here, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "tfquant.cli", raising=False)
    monkeypatch.delattr(tfq, "cli", raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert here_and_now("inspect", "good.tflite") == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_from_below_is_no_mistake_of_the_user(here, capsys, monkeypatch):
    monkeypatch.setattr(tfq, "to_tflite", lambda *args, **kwargs: np.zeros(2).reshape(3))
    monkeypatch.setattr(tfq, "quantize_model", lambda *args, **kwargs: keras.ops.ones(1) + "a")
    assert here_and_now("quantize", *GOOD) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (("quantise", "model.keras"), "quantize"),
        (("quantize", *GOOD, "--shceme=w8a8"), "--scheme"),
        (("quantize", *GOOD, "--scheme=w8a8_dynamc"), "w8a8_dynamic"),
        (("quantize", *GOOD, "--observer=percentil"), "percentile"),
    ],
)
def test_a_slip_is_answered_with_what_is_near(here, capsys, arguments, near):
    assert here_and_now(*arguments) == 2
    assert f"did you mean {near}?" in capsys.readouterr().err


def test_what_may_be_asked_for_is_what_there_is():
    from tfquant import devices, quantizers, targets
    from tfquant.numerics.packing import GROUP_SIZES
    from tfquant.optimize.effort import EFFORTS
    from tfquant.registry import schemes

    assert set(tfquant_cli.SCHEMES) == {*tfq.SCHEMES}
    assert set(tfquant_cli.OBSERVERS) == {*tfq.observers.OBSERVERS}
    assert set(tfquant_cli.WEIGHT_QUANTIZERS) == {*quantizers.WEIGHT_QUANTIZERS}
    assert set(tfquant_cli.ACTIVATION_QUANTIZERS) == {*quantizers.ACTIVATION_QUANTIZERS}
    assert set(tfquant_cli.DEVICES) == {*devices.DEVICES}
    assert set(tfquant_cli.TARGETS) == {*targets.TARGETS, *targets.ALIASES, targets.ONNXRUNTIME}
    assert set(tfquant_cli.EFFORTS) == {*EFFORTS}
    assert tfquant_cli.NORMS == schemes.NORMS
    assert {*map(int, tfquant_cli.GROUP_SIZES)} == {*GROUP_SIZES}


def test_flags_are_taken_with_hyphens_and_schemes_in_any_case(here):
    flags = ("--scheme=W4A8", "--batch-size=8", "--no-verify", "--report=report.json")
    assert here_and_now("quantize", *GOOD, *flags) == 0
    report = json.loads((here / "report.json").read_text())
    assert report["layers"][1]["weight_bits"] == 4 and report["end_to_end"] is None


def test_every_option_of_python_reaches_the_file(here):
    flags = (
        *("--scheme=w5a6", "--edge_weight_bits=8", "--weight_quantizer=learned_step"),
        *("--activation_quantizer=static", "--observer=min_max", "--bias_correction=none"),
        *("--device=litert_reference", "--unknown_layers=float", "--steps=1", "--seed=3"),
        *("--file_batch=4", "--norms=float", "--report=report.json"),
    )
    assert here_and_now("quantize", *GOOD, *flags) == 0
    report = json.loads((here / "report.json").read_text())
    conv = report["layers"][1]
    assert (conv["weight_bits"], conv["activation_bits"]) == (8, 6)
    assert report["device"] == "litert_reference" and report["inputs"][0]["shape"][0] == 4
    assert report["correction"] in ("", "none") or "none" in report["correction"]
    made = report["provenance"]
    assert made["calibration"]["observer"] == "min_max" and made["calibration"]["rows"] == 32
    assert made["recipe"]["scheme"]["weight_quantizer"] == "learned_step"


def test_the_record_of_a_conversion_prints_again(here, capsys):
    import hashlib

    assert here_and_now("quantize", *GOOD, "--report=report.json") == 0
    shown = capsys.readouterr().out
    assert here_and_now("report", "report.json") == 0
    assert shown == capsys.readouterr().out + "Wrote out.tflite and report.json\n"
    record = json.loads((here / "report.json").read_text())
    images = np.load(here / "data.npz")["image"]
    assert record["schema_version"] == 1
    assert record["provenance"]["calibration"]["sha256"] == hashlib.sha256(images).hexdigest()
    assert record["provenance"]["versions"]["tfquant"] == tfq.__version__
    details = tfq.inspect("out.tflite")
    (source,) = record["inputs"]
    assert source["name"] == "image" and source["dtype"] == "INT8"
    assert (source["scale"], source["zero_point"]) == pytest.approx(
        next(iter(details.grids.values()))
    )


def test_json_is_all_that_is_printed(here, capsys):
    calls = {
        "inspect": ("inspect", "good.tflite"),
        "model": ("inspect", "model.keras"),
        "compare": ("compare", *TWO),
        "quantize": ("quantize", *GOOD),
        "doctor": ("doctor",),
    }
    printed = {}
    for name, call in calls.items():
        assert here_and_now(*call, "--json") == 0
        printed[name] = json.loads(capsys.readouterr().out)
    assert printed["inspect"]["operators"][0]["operator"] == "CONV_2D"
    assert printed["model"]["layers"][1]["name"] == "conv"
    assert (printed["compare"]["differing"], printed["compare"]["rows"]) == (0, 40)
    assert printed["quantize"]["end_to_end"]["differing"] == 0
    assert printed["doctor"]["versions"]["keras"] == keras.__version__


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("--max_differing=0",), 3),
        (("--max_differing=400",), 0),
        (("--min_agreement=0",), 0),
        (("--min_agreement=1", "--max_differing=400"), None),
    ],
)
def test_a_comparison_that_misses_what_was_asked_for_exits_with_3(here, capfd, flags, code):
    command = ("compare", "model.keras", "good.tflite", "--data=data.npz")
    received = here_and_now(*command, *flags)
    out, err = capfd.readouterr()
    if code is None:
        code = 0 if "predictions   100.00%" in out else 3
    assert received == code
    assert ("good.tflite against model.keras: " in err) == (code == 3)
    assert "differing values" in out


def test_labels_in_the_data_give_accuracies(here, capsys):
    model = keras.saving.load_model("model.keras")
    images = np.load("data.npz")["image"]
    right = model.predict(images, verbose=0).argmax(-1)
    labels = np.where(np.arange(40) < 30, right, (right + 1) % 10)
    np.savez("labelled.npz", image=images, labels=labels)
    assert here_and_now("compare", "model.keras", "good.tflite", "--data=labelled.npz") == 0
    assert "accuracy            0.7500 model.keras, 0." in capsys.readouterr().out


LAYER = """
import keras

@keras.saving.register_keras_serializable("own_layers")
class Twice(keras.layers.Layer):
    def call(self, x):
        return x * 2
"""


def test_layers_of_ones_own_are_imported(here, capsys):
    (here / "own_layers.py").write_text(LAYER)
    code = (
        "import keras, own_layers; x = keras.Input((4,));"
        "keras.Model(x, own_layers.Twice()(x)).save('own.keras')"
    )
    clean = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    call = [sys.executable, "-c", code]
    subprocess.run(call, cwd=here, check=True, capture_output=True, env=clean)
    assert here_and_now("inspect", "own.keras") == 2
    assert "--import MODULE registers layers of your own" in capsys.readouterr().err
    assert here_and_now("inspect", "own.keras", "--import", "own_layers.py") == 0
    assert "Twice" in capsys.readouterr().out
    (here / "broken.py").write_text("1 / 0")
    assert here_and_now("inspect", "own.keras", "--import=broken.py") == 2
    assert "broken.py, which raises ZeroDivisionError: division" in capsys.readouterr().err


def test_code_in_a_file_runs_if_it_is_asked_to(here, capsys):
    x = keras.Input((4,))
    keras.Model(x, keras.layers.Lambda(lambda y: y * 2)(x)).save("lambda.keras")
    assert here_and_now("inspect", "lambda.keras") == 2
    assert "--allow_unsafe runs it" in capsys.readouterr().err
    assert here_and_now("inspect", "lambda.keras", "--allow_unsafe") == 0
    assert "Lambda" in capsys.readouterr().out


def test_a_disk_that_is_full_is_no_bug(here, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tfq, "to_tflite", full)
    assert here_and_now("quantize", *GOOD) == 2
    assert capsys.readouterr().err == "tfquant: error: [Errno 28] No space left on device\n"


def test_help_lists_everything_and_leaves_tensorflow_alone(folder):
    code = (
        "import sys, tfquant_cli; tfquant_cli.main(sys.argv[1:]);"
        "sys.exit(sum(name.split('.')[0] in ('tensorflow', 'keras') for name in sys.modules))"
    )
    shell = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 60}
    shown = subprocess.run([sys.executable, "-c", code, "--help"], **shell)
    assert shown.returncode == 0  # TensorFlow alone would take seconds.
    for command in tfquant_cli.COMMANDS:
        assert command.name in shown.stdout
        helped = in_shell(command.name, "--help", folder=folder)
        assert helped.returncode == 0 and f"usage: tfquant {command.name}" in helped.stdout
        assert f"example:\n  {command.example}" in helped.stdout
    helped = in_shell("help", "quantize", folder=folder).stdout
    words = " ".join(helped.split())
    assert all(name in words for name in (*tfquant_cli.SCHEMES, *tfquant_cli.OBSERVERS))


def test_version_is_the_one_of_the_package(capsys):
    assert here_and_now("--version") == 0
    assert capsys.readouterr().out == f"tfquant {tfq.__version__}\n"
