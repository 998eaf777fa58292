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

    Saves the four gates, `[batch, units]` each.

    Args:
        parameters: `[U]`, of shape `[units, 4 * units]`.
        masks, rows: As `RecurrentProduct` takes them.
    """

    def __init__(self, parameters, masks=None, rows=None):
        (U,) = parameters
        units = U.shape[0]
        self.recurrent = RecurrentProduct(U, [units] * 4, masks, rows)
        self.saved_channels = [units] * 4
        self.gradient_channels = [4 * units]

    def forward(self, z, states):
        h, c = states
        a_i, a_f, a_g, a_o = self.recurrent.forward_onto(z, h)
        i, f, g, o = tf.sigmoid(a_i), tf.sigmoid(a_f), tf.tanh(a_g), tf.sigmoid(a_o)
        c = f * c + i * g
        return [o * tf.tanh(c), c], [i, f, g, o]

    def backward(self, saved, before, after, d_after):
        dh, dc = d_after
        i, f, g, o = saved
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
