"""The equation of a SimpleRNN with Keras's default activation, and its derivative."""

import tensorflow as tf

from keras_bnrnn.recurrence.differentiated import RecurrentProduct, tanh_gradient


class SimpleRNNEquations:
    """One step forward and back: `h' = tanh(z + h U)`. Saves nothing, as h' says it all.

    Args:
        parameters: `[U]`, of shape `[units, units]`.
        masks, rows: As `RecurrentProduct` takes them.
    """

    def __init__(self, parameters, masks=None, rows=None):
        (U,) = parameters
        self.recurrent = RecurrentProduct(U, [U.shape[1]], masks, rows)
        self.saved_channels = []
        self.gradient_channels = [U.shape[1]]

    def forward(self, z, states):
        (h,) = states
        (a,) = self.recurrent.forward_onto(z, h)
        return [tf.tanh(a)], []

    def backward(self, saved, before, after, d_after):
        da = tanh_gradient(after[0], d_after[0])
        return [da], [self.recurrent.backward(da)]

    def parameter_gradients(self, h_before, dz, further):
        return [self.recurrent.kernel_gradient(h_before, dz)]
