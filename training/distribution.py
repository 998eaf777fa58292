"""`--strategy`: which devices a training script uses."""

import tensorflow as tf

from command_line import STRATEGIES, CommandError


def make_strategy(name):
    """Returns the `tf.distribute` strategy that `--strategy=name` asks for.

    Args:
        name: `"auto"` (`MirroredStrategy` where two or more GPUs are visible), `"none"` (TensorFlow
            chooses one device) or `"mirrored"` (all visible GPUs, or all logical CPUs where there
            is no GPU).

    Returns:
        A `tf.distribute.Strategy`; build and compile the model inside its `scope()`.

    Raises:
        CommandError: for another name.
    """
    if name not in STRATEGIES:
        raise CommandError(f"--strategy={name} is not one of {', '.join(STRATEGIES)}")
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        devices = gpus or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def check_batch_size(batch_size, strategy):
    """Raises a `CommandError` unless the global batch divides evenly over the replicas."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise CommandError(
            f"--batch_size={batch_size} does not divide over {replicas} replicas; use a multiple "
            f"of {replicas}, or --strategy=none"
        )
