"""Quantization-aware training on several machines.

Start it once on each, with the same list of addresses:

    TF_CONFIG='{"cluster": {"worker": ["host0:1234", "host1:1234"]},
                "task": {"type": "worker", "index": 0}}' python examples/qat_workers.py

Without TF_CONFIG it trains on one machine. Ranges and learned steps are equal on all workers after
each step. The loop is written out because `fit` of Keras 3.15 fails under this strategy, for float
models too.
"""

import tensorflow as tf

# The strategy comes before anything that touches a device.
strategy = tf.distribute.MultiWorkerMirroredStrategy()

import keras  # noqa: E402

import tfquant as tfq  # noqa: E402
from tfquant import demo  # noqa: E402

EPOCHS, BATCH_SIZE = 3, 64

keras.utils.set_random_seed(0)
(images, labels), (test_images, test_labels) = demo.digits()
with strategy.scope():
    model = tfq.quantize_model(demo.network(), "w8a8")
    tfq.calibrate(model, images[:200], progress=False)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)

options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
data = tf.data.Dataset.from_tensor_slices((images, labels))
data = data.shuffle(len(images), seed=0).batch(BATCH_SIZE, drop_remainder=True)
data = strategy.experimental_distribute_dataset(data.with_options(options))


@tf.function
def step(batch):
    """One step on all workers; returns the metrics."""
    logs = strategy.run(model.train_step, args=(batch,))
    return {key: strategy.reduce("MEAN", value, axis=None) for key, value in logs.items()}


for epoch in range(EPOCHS):
    model.reset_metrics()
    for batch in data:
        logs = step(batch)
    print(f"epoch {epoch}:", ", ".join(f"{key} {float(value):.4f}" for key, value in logs.items()))

if strategy.cluster_resolver.task_id in (None, 0):
    right = (model(test_images).numpy().argmax(-1) == test_labels).mean()
    print(f"{strategy.num_replicas_in_sync} workers, accuracy on held-out digits {right:.4f}")
