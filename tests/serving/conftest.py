"""An acoustic model that reads forwards and a language model, untrained, and their SavedModels."""

import functools
from typing import NamedTuple

import keras
import pytest
import tensorflow as tf

import untrained
from keras_bnrnn import serving
from keras_bnrnn.data.speech.corpus import load_corpus
from keras_bnrnn.serving.language import language_endpoints
from keras_bnrnn.serving.speech import speech_endpoints


class Exported(NamedTuple):
    model: keras.Model
    folder: str
    signatures: dict

    def zero_states(self, batch):
        specs = self.signatures["step"].structured_input_signature[1]
        return {
            name: tf.zeros([batch, spec.shape[1]])
            for name, spec in specs.items()
            if name.endswith(("_h", "_c"))
        }


def export(model, folder, endpoints):
    serving.export(model, folder, endpoints=endpoints)
    return Exported(model, folder, tf.saved_model.load(str(folder)).signatures)


@pytest.fixture(scope="session")
def speech(tiny_corpus, tmp_path_factory):
    endpoints = functools.partial(speech_endpoints, corpus=load_corpus(tiny_corpus))
    model = untrained.speech_model(bidirectional=False)
    return export(model, tmp_path_factory.mktemp("speech") / "exported", endpoints)


@pytest.fixture(scope="session")
def text(tiny_characters, tmp_path_factory):
    """A model that writes text and reads forwards, a quarter of the frames."""
    corpus = load_corpus(tiny_characters)
    endpoints = functools.partial(speech_endpoints, corpus=corpus, reduction=4)
    model = untrained.ctc_model(bidirectional=False)
    return export(model, tmp_path_factory.mktemp("text") / "exported", endpoints)


@pytest.fixture(scope="session")
def language(tmp_path_factory):
    pytest.importorskip("tensorflow_text", reason="the extra 'text' is not installed")
    endpoints = functools.partial(
        language_endpoints, vocabulary=untrained.WORDS, tokenization="running_text"
    )
    folder = tmp_path_factory.mktemp("language") / "exported"
    return export(untrained.language_model(), folder, endpoints)
