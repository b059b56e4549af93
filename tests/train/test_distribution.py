"""Training on several replicas: grids agree, and equal those of a run on one device."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

# Each run is a process of its own: devices and clusters are fixed when TensorFlow starts.
PROGRAM = """
import json, os, sys
import numpy as np
import tensorflow as tf

kind, family = sys.argv[1:3]
if kind == "mirrored":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
elif kind == "workers":
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
else:
    strategy = tf.distribute.get_strategy()

import keras
import tfquant as tfq

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x = rng.normal(size=(64, 6)).astype("float32")
y = (x[:, 0] > 0).astype("int32")
with strategy.scope():
    parts = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((6,)), *parts])
    q = tfq.quantize_model(model, "w4a8", activation_quantizer=family)
    tfq.calibrate(q, x, progress=False, bias_correction=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    q.compile(keras.optimizers.SGD(0.05), loss, jit_compile=False)
data = tf.data.Dataset.from_tensor_slices((3 * x, y)).batch(16)
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
data = data.with_options(options)
if kind == "workers":
    # Keras's own loop fails across workers, for a float model too: see the README.
    @tf.function
    def step(batch):
        return strategy.run(q.train_step, args=(batch,))

    q.optimizer.build(q.trainable_variables)
    for _ in range(2):
        for batch in strategy.experimental_distribute_dataset(data):
            step(batch)
else:
    q.fit(data, epochs=2, verbose=0)


def copies(variable):
    value = variable.value
    found = strategy.experimental_local_results(value)
    return [np.asarray(v).tolist() for v in found]


print(json.dumps({v.path: copies(v) for v in q.variables}))
"""


def run(kind, family, **environment):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    command = [sys.executable, "-c", PROGRAM, kind, family]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(process):
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def assert_as_on_one_device(got, expected):
    assert got.keys() == expected.keys()
    for path, (value,) in expected.items():
        for copy in got[path]:
            # Gradients are summed in another order; a flipped tie may follow.
            np.testing.assert_allclose(copy, value, rtol=2e-4, atol=2e-5, err_msg=path)


@pytest.mark.parametrize(
    "family", [pytest.param("moving_average", marks=pytest.mark.long), "learned_step"]
)
def test_two_replicas_learn_what_one_device_does(family):
    single, mirrored = run("single", family), run("mirrored", family)
    expected, got = result(single), result(mirrored)
    assert all(len(copies) == 2 for copies in got.values())
    for path, (first, second) in got.items():
        np.testing.assert_array_equal(first, second, err_msg=path)
    assert_as_on_one_device(got, expected)


@pytest.mark.slow
def test_two_workers_learn_what_one_device_does():
    ports = [free_port(), free_port()]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    workers = [
        run(
            "workers",
            "moving_average",
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}),
        )
        for i in range(2)
    ]
    expected = result(run("single", "moving_average"))
    first, second = [result(worker) for worker in workers]
    assert first == second
    assert_as_on_one_device(first, expected)
