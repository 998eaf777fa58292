"""Data for recurrent networks: text for language models, speech for frame classification.

Importing this package needs none of the extras; a function that needs one says so when called.
"""

from keras_bnrnn.data.errors import CorpusError, UtteranceError
from keras_bnrnn.data.masks import FillPadding, sequence_mask
from keras_bnrnn.data.speech.augmentation import SpecAugment
from keras_bnrnn.data.speech.corpus import Corpus, load_corpus, read_utterances
from keras_bnrnn.data.speech.features import LogMelFilterBank
from keras_bnrnn.data.speech.pipelines import speech_dataset
from keras_bnrnn.data.text import TextCorpus, load_text, token_windows

__all__ = [
    "Corpus",
    "CorpusError",
    "FillPadding",
    "LogMelFilterBank",
    "SpecAugment",
    "TextCorpus",
    "UtteranceError",
    "load_corpus",
    "load_text",
    "read_utterances",
    "sequence_mask",
    "speech_dataset",
    "token_windows",
]
