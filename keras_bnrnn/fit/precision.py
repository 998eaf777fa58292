"""Half precision: the dtype policies, and the scale of a float16 loss."""

import keras

PRECISIONS = {"none": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
FLOAT16_LOSS_SCALE = 2.0**7


def scaled(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer, with a scaled loss where the dtype policy computes in float16.

    Keras's own start, 2**15, overflows at these losses, and skips the first dozen steps.

    Example:

    >>> import keras
    >>> optimizer = scaled(keras.optimizers.Adam(0.001))
    >>> type(optimizer).__name__  # under the policy float32
    'Adam'
    """
    if keras.mixed_precision.dtype_policy().name != "mixed_float16":
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=FLOAT16_LOSS_SCALE)
