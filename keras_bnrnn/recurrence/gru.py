"""The equations of a GRU with Keras's default activations, and their derivatives.

`reset_after` says on which side of the recurrent product the reset gate stands, and that makes two
different cells.
"""

import tensorflow as tf

from keras_bnrnn.recurrence.differentiated import (
    RecurrentProduct,
    bias_gradient,
    sigmoid_gradient,
    tanh_gradient,
)


class ResetAfterGRUEquations:
    """One step forward and back, with the reset gate after the product, as in cuDNN.

        [u_update, u_reset, u_n] = h U + b
        update = sigmoid(z_update + u_update),  reset = sigmoid(z_reset + u_reset)
        n = tanh(z_n + reset u_n)
        h' = update h + (1 - update) n

    Saves both gates, n and u_n: `[batch, 4 * units]`.

    Args:
        parameters: `[U]` or `[U, b]`, of shapes `[units, 3 * units]` and `[3 * units]`.
        masks, rows: As `RecurrentProduct` takes them.
    """

    def __init__(self, parameters, masks=None, rows=None):
        U, *bias = parameters
        units = U.shape[0]
        self.sizes = [2 * units, units]
        self.recurrent = RecurrentProduct(U, self.sizes, masks, rows)
        self.biases = tf.split(bias[0], self.sizes) if bias else None
        self.saved_channels = [2 * units, units, units]
        self.gradient_channels = [3 * units, 3 * units]

    def forward(self, z, states):
        (h,) = states
        u_gates, u_n = self.recurrent.forward(h)
        if self.biases is not None:
            u_gates, u_n = map(tf.nn.bias_add, (u_gates, u_n), self.biases)
        z_gates, z_n = tf.split(z, self.sizes, axis=-1)
        gates = tf.sigmoid(z_gates + u_gates)
        update, reset = tf.split(gates, 2, axis=-1)
        n = tf.tanh(z_n + reset * u_n)
        return [n + update * (h - n)], [gates, n, u_n]

    def backward(self, saved, before, after, d_after):
        gates, n, u_n = saved
        update, reset = tf.split(gates, 2, axis=-1)
        (dh,) = d_after
        dh_update = dh * update
        d_update = sigmoid_gradient(update, dh * (before[0] - n))
        d_n = tanh_gradient(n, dh - dh_update)
        d_reset = sigmoid_gradient(reset, d_n * u_n)
        d_u = tf.concat([d_update, d_reset, d_n * reset], -1)
        dz = tf.concat([d_update, d_reset, d_n], -1)
        return [dz, d_u], [self.recurrent.backward(d_u) + dh_update]

    def parameter_gradients(self, h_before, dz, further):
        (d_u,) = further
        gradients = [self.recurrent.kernel_gradient(h_before, d_u)]
        if self.biases is not None:
            gradients.append(bias_gradient(d_u))
        return gradients


class ResetBeforeGRUEquations:
    """One step forward and back, with the reset gate before the product, as first published.

        update = sigmoid(z_update + h U_update),  reset = sigmoid(z_reset + h U_reset)
        n = tanh(z_n + (reset h) U_n)
        h' = update h + (1 - update) n

    Saves both gates and n: `[batch, 3 * units]`.

    Args:
        parameters: `[U]`, of shape `[units, 3 * units]`.
        masks: Of the recurrent dropout: `None` or a list of three, for the gates and n.
        rows: As `RecurrentProduct` takes it.
    """

    def __init__(self, parameters, masks=None, rows=None):
        (U,) = parameters
        units = U.shape[0]
        U_gates, U_n = tf.split(U, [2 * units, units], axis=1)
        masks_gates, mask_n = (None, None) if masks is None else (masks[:2], masks[2])
        self.recurrent = RecurrentProduct(U_gates, [2 * units], masks_gates, rows)
        self.candidate = RecurrentProduct(U_n, [units], mask_n, rows)
        self.sizes = [2 * units, units]
        self.saved_channels = [2 * units, units]
        self.gradient_channels = [3 * units, units]

    def forward(self, z, states):
        (h,) = states
        z_gates, z_n = tf.split(z, self.sizes, axis=-1)
        (a_gates,) = self.recurrent.forward_onto(z_gates, h)
        gates = tf.sigmoid(a_gates)
        update, reset = tf.split(gates, 2, axis=-1)
        (a_n,) = self.candidate.forward_onto(z_n, reset * h)
        n = tf.tanh(a_n)
        return [n + update * (h - n)], [gates, n]

    def backward(self, saved, before, after, d_after):
        gates, n = saved
        update, reset = tf.split(gates, 2, axis=-1)
        (h,) = before
        (dh,) = d_after
        dh_update = dh * update
        d_update = sigmoid_gradient(update, dh * (h - n))
        d_n = tanh_gradient(n, dh - dh_update)
        d_reset_h = self.candidate.backward(d_n)
        d_gates = tf.concat([d_update, sigmoid_gradient(reset, d_reset_h * h)], -1)
        dh = self.recurrent.backward(d_gates) + dh_update + d_reset_h * reset
        return [tf.concat([d_gates, d_n], -1), reset * h], [dh]

    def parameter_gradients(self, h_before, dz, further):
        (reset_h,) = further
        d_gates, d_n = tf.split(dz, self.sizes, axis=-1)
        return [
            tf.concat(
                [
                    self.recurrent.kernel_gradient(h_before, d_gates),
                    self.candidate.kernel_gradient(reset_h, d_n),
                ],
                -1,
            )
        ]
