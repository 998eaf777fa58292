"""Speech: recordings and their alignments, prepared into a corpus, and read from it in batches."""

from keras_bnrnn.data.speech.augmentation import SpecAugment
from keras_bnrnn.data.speech.corpus import Corpus, load_corpus, read_utterances
from keras_bnrnn.data.speech.features import LogMelFilterBank
from keras_bnrnn.data.speech.pipelines import speech_dataset

__all__ = [
    "Corpus",
    "LogMelFilterBank",
    "SpecAugment",
    "load_corpus",
    "read_utterances",
    "speech_dataset",
]
