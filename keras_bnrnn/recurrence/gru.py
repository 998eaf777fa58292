"""The equations of a GRU with Keras's default activations, and their derivatives.

`reset_after` says on which side of the recurrent product the reset gate stands, and that makes two
different cells.
"""

import tensorflow as tf

from keras_bnrnn.recurrence.differentiated import (
    RecurrentProduct,
    sigmoid_gradient,
    tanh_gradient,
)


class ResetAfterGRUEquations:
    """One step forward and back, with the reset gate after the product, as in cuDNN.

        [u_z, u_r, u_n] = h U + b
        z = sigmoid(z_z + u_z),  r = sigmoid(z_r + u_r),  n = tanh(z_n + r u_n)
        h' = z h + (1 - z) n

    Saves z and r, n and u_n: `[batch, 4 * units]`.

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
        u_zr, u_n = self.recurrent.forward(h)
        if self.biases is not None:
            u_zr, u_n = map(tf.nn.bias_add, (u_zr, u_n), self.biases)
        z_zr, z_n = tf.split(z, self.sizes, axis=-1)
        zr = tf.sigmoid(z_zr + u_zr)
        z, r = tf.split(zr, 2, axis=-1)
        n = tf.tanh(z_n + r * u_n)
        return [n + z * (h - n)], [zr, n, u_n]

    def backward(self, saved, before, after, d_after):
        zr, n, u_n = saved
        z, r = tf.split(zr, 2, axis=-1)
        (dh,) = d_after
        dh_z = dh * z
        da_z = sigmoid_gradient(z, dh * (before[0] - n))
        da_n = tanh_gradient(n, dh - dh_z)
        da_r = sigmoid_gradient(r, da_n * u_n)
        d_u = tf.concat([da_z, da_r, da_n * r], -1)
        return [tf.concat([da_z, da_r, da_n], -1), d_u], [self.recurrent.backward(d_u) + dh_z]

    def parameter_gradients(self, h_before, dz, further):
        (d_u,) = further
        gradients = [self.recurrent.kernel_gradient(h_before, d_u)]
        if self.biases is not None:
            gradients.append(tf.reduce_sum(d_u, [0, 1]))
        return gradients


class ResetBeforeGRUEquations:
    """One step forward and back, with the reset gate before the product, as first published.

        z = sigmoid(z_z + h U_z),  r = sigmoid(z_r + h U_r),  n = tanh(z_n + (r h) U_n)
        h' = z h + (1 - z) n

    Saves z and r, n: `[batch, 3 * units]`.

    Args:
        parameters: `[U]`, of shape `[units, 3 * units]`.
        masks: Of the recurrent dropout: `None` or a list of three, for z, r and n.
        rows: As `RecurrentProduct` takes it.
    """

    def __init__(self, parameters, masks=None, rows=None):
        (U,) = parameters
        units = U.shape[0]
        U_zr, U_n = tf.split(U, [2 * units, units], axis=1)
        masks_zr, mask_n = (None, None) if masks is None else (masks[:2], masks[2])
        self.recurrent = RecurrentProduct(U_zr, [2 * units], masks_zr, rows)
        self.candidate = RecurrentProduct(U_n, [units], mask_n, rows)
        self.sizes = [2 * units, units]
        self.saved_channels = [2 * units, units]
        self.gradient_channels = [3 * units, units]

    def forward(self, z, states):
        (h,) = states
        z_zr, z_n = tf.split(z, self.sizes, axis=-1)
        (a_zr,) = self.recurrent.forward_onto(z_zr, h)
        zr = tf.sigmoid(a_zr)
        z, r = tf.split(zr, 2, axis=-1)
        (a_n,) = self.candidate.forward_onto(z_n, r * h)
        n = tf.tanh(a_n)
        return [n + z * (h - n)], [zr, n]

    def backward(self, saved, before, after, d_after):
        zr, n = saved
        z, r = tf.split(zr, 2, axis=-1)
        (h,) = before
        (dh,) = d_after
        dh_z = dh * z
        da_z = sigmoid_gradient(z, dh * (h - n))
        da_n = tanh_gradient(n, dh - dh_z)
        d_rh = self.candidate.backward(da_n)
        da_zr = tf.concat([da_z, sigmoid_gradient(r, d_rh * h)], -1)
        dh = self.recurrent.backward(da_zr) + dh_z + d_rh * r
        return [tf.concat([da_zr, da_n], -1), r * h], [dh]

    def parameter_gradients(self, h_before, dz, further):
        (rh,) = further
        d_zr, d_n = tf.split(dz, self.sizes, axis=-1)
        return [
            tf.concat(
                [
                    self.recurrent.kernel_gradient(h_before, d_zr),
                    self.candidate.kernel_gradient(rh, d_n),
                ],
                -1,
            )
        ]
