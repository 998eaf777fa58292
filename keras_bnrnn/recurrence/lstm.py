"""The equations of an LSTM with Keras's default activations, and their derivatives."""

import tensorflow as tf

from keras_bnrnn.recurrence.differentiated import (
    RecurrentProduct,
    sigmoid_gradient,
    tanh_gradient,
)


class LSTMEquations:
    """One step forward and back.

        [a_i, a_f, a_g, a_o] = z + h U
        c' = sigmoid(a_f) c + sigmoid(a_i) tanh(a_g)
        h' = sigmoid(a_o) tanh(c')

    Saves the pre-activations, `[batch, 4 * units]`: computing the gates again costs less than
    keeping each of them.

    Args:
        parameters: `[U]`, of shape `[units, 4 * units]`.
        masks: Of the recurrent dropout, as `RecurrentProduct` takes them.
    """

    def __init__(self, parameters, masks=None):
        (U,) = parameters
        self.recurrent = RecurrentProduct(U, masks)
        self.saved_channels = [U.shape[1]]
        self.gradient_channels = [U.shape[1]]

    def forward(self, z, states):
        h, c = states
        a = z + self.recurrent.forward(h)
        i, f, g, o = self._gates(a)
        c = f * c + i * g
        return [o * tf.tanh(c), c], [a]

    def backward(self, saved, before, after, d_after):
        dh, dc = d_after
        i, f, g, o = self._gates(*saved)
        tanh_c = tf.tanh(after[1])
        dc += tanh_gradient(tanh_c, dh * o)
        da = tf.concat(
            [
                sigmoid_gradient(i, dc * g),
                sigmoid_gradient(f, dc * before[1]),
                tanh_gradient(g, dc * i),
                sigmoid_gradient(o, dh * tanh_c),
            ],
            -1,
        )
        return [da], [self.recurrent.backward(da), dc * f]

    def parameter_gradients(self, h_before, dz, further):
        return [self.recurrent.kernel_gradient(h_before, dz)]

    @staticmethod
    def _gates(a):
        i, f, g, o = tf.split(a, 4, axis=-1)
        return tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
