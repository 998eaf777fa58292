"""Batch-normalised recurrent networks for Keras.

After Laurent, Pereyra, Brakel, Zhang and Bengio, "Batch normalized recurrent neural networks"
(ICASSP 2016, arXiv 1510.01378).
"""

import keras as _keras

if _keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"keras_bnrnn runs on Keras's TensorFlow backend only, but Keras was started with "
        f"{_keras.backend.backend()!r}. Set the environment variable KERAS_BACKEND=tensorflow "
        "before the first import of keras."
    )

from keras_bnrnn import data, fit, losses, metrics, serving
from keras_bnrnn.bidirectional import Bidirectional
from keras_bnrnn.cells import BatchNormGRUCell, BatchNormLSTMCell, BatchNormSimpleRNNCell
from keras_bnrnn.folding import fold_batch_norm
from keras_bnrnn.gap import StatisticsGap
from keras_bnrnn.layers import BatchNormGRU, BatchNormLSTM, BatchNormSimpleRNN
from keras_bnrnn.plain_weights import copy_weights
from keras_bnrnn.population import recalibrate

__version__ = "0.1.0"

__all__ = [
    "BatchNormGRU",
    "BatchNormGRUCell",
    "BatchNormLSTM",
    "BatchNormLSTMCell",
    "BatchNormSimpleRNN",
    "BatchNormSimpleRNNCell",
    "Bidirectional",
    "StatisticsGap",
    "copy_weights",
    "data",
    "fit",
    "fold_batch_norm",
    "losses",
    "metrics",
    "recalibrate",
    "serving",
]
