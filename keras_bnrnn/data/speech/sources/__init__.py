"""Where speech comes from: each source lists utterances and turns one into labelled frames."""

from keras_bnrnn.data.speech.sources.base import (
    MIN_ALIGNMENT_SCORE,
    AlignedSource,
    Failure,
    LabelledFrames,
    RecordedSource,
    Source,
    SyntheticSource,
    Utterance,
)
from keras_bnrnn.data.speech.sources.folders import LibriSpeechSource, TextGridSource
from keras_bnrnn.data.speech.sources.manifest import ManifestSource

__all__ = [
    "MIN_ALIGNMENT_SCORE",
    "AlignedSource",
    "Failure",
    "LabelledFrames",
    "LibriSpeechSource",
    "ManifestSource",
    "RecordedSource",
    "Source",
    "SyntheticSource",
    "TextGridSource",
    "Utterance",
]
