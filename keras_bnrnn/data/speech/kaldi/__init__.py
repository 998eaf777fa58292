"""What a Kaldi recipe leaves on disk: features in archives, and alignments to pdf-ids."""

from keras_bnrnn.data.speech.kaldi.source import CMVN_KINDS, KaldiSource

__all__ = ["CMVN_KINDS", "KaldiSource"]
