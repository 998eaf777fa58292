"""`--mixed_precision`, `--deterministic` and what cannot be combined with several devices."""

import keras
import tensorflow as tf

from command_line import PRECISIONS, CommandError

FLOAT16_LOSS_SCALE = 2.0**7


def set_up_tensorflow(flag_values, strategy):
    """Applies the flags on precision and determinism, and refuses what Keras cannot do together.

    Raises:
        CommandError: with the reason.
    """
    if strategy.num_replicas_in_sync > 1:
        for name, harmless in (("jit_compile", False), ("steps_per_execution", 1)):
            if flag_values[name].value != harmless:
                raise CommandError(
                    f"--{name} cannot be combined with several devices: Keras's fit fails under "
                    "tf.distribute then (docs/SCALING.md); leave it away or use --strategy=none"
                )
        for name in ("normalize_recurrent", "normalize_cell_state"):
            asked = name in flag_values and flag_values[name].value
            if asked and flag_values.model == "batch_norm" and flag_values.synchronized:
                raise CommandError(
                    f"--{name} cannot be synchronised over several devices: that would take "
                    "collectives inside the time loop; add --nosynchronized or use --strategy=none"
                )
    keras.mixed_precision.set_dtype_policy(PRECISIONS[flag_values.mixed_precision])
    if flag_values.deterministic:
        tf.config.experimental.enable_op_determinism()


def scaled(optimizer):
    """The optimizer, with a scaled loss where the dtype policy computes in float16.

    Keras's own start, 2**15, overflows at these losses, and skips the first dozen steps.
    """
    if keras.mixed_precision.dtype_policy().name != "mixed_float16":
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=FLOAT16_LOSS_SCALE)
