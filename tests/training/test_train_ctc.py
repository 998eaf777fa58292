"""train_ctc.py: it learns texts, goes on, says what is too short, and refuses other corpora."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import train_ctc
import train_speech
from command_line import CommandError
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import load_corpus
from keras_bnrnn.fit.loop import evaluate, prepare
from keras_bnrnn.fit.tables import read_history, read_results
from recipes.ctc_task import CtcTask
from script_fixtures import write_corpus

SMALL = ("--layers=1", "--units=12", "--batch_size=8", "--learning_rate=0.02")


@pytest.fixture
def task(parse_flags, tiny_characters):
    """The task of some flags."""

    def make(*flags, corpus=tiny_characters):
        parse_flags(train_ctc, *SMALL, *flags)
        return CtcTask(CtcTask.settings_of(train_ctc.FLAGS), corpus)

    return make


def test_trains_and_writes_results(trained_ctc):
    rows, results = read_history(trained_ctc / "run"), read_results(trained_ctc / "run")
    assert rows[-1]["train_ctc_loss"] < 0.5 * rows[0]["train_ctc_loss"]
    assert rows[-1]["dev_cer"] < 0.7 * rows[0]["dev_cer"]
    assert {"dev_cer", "dev_wer", "dev_ctc_loss", "train_wer"} <= results["best"].keys()
    assert results["task"] == "ctc" and results["criterion"] == "dev_cer"
    assert results["config"]["corpus"]["states"] == 5
    loaded = keras.saving.load_model(trained_ctc / "run" / "best.keras", compile=False)
    assert loaded.output.shape == (None, None, 5)
    output = (trained_ctc / "output.txt").read_text()
    assert "4 characters." in output and "1/4 of the frames" in output


def test_batches_are_texts_and_weights_of_utterances(task, tiny_characters):
    inputs, labels, weights = next(iter(task().batches("dev")))
    corpus = load_corpus(tiny_characters)
    assert weights.shape == (8,) and (weights.numpy() == 1).all()
    assert labels.shape[0] == 8 and labels.shape[1] < inputs["features"].shape[1]
    counts = np.count_nonzero(labels, axis=1)
    np.testing.assert_array_equal(8 * counts, inputs["lengths"])
    assert labels.numpy().max() < corpus.num_states


def test_what_is_too_short_and_what_is_unknown_is_said_before_training(task, tmp_path):
    plan = "\n".join(task("--reduction=8").plan())
    # A repeated character needs a frame more than the eighth of the frames gives.
    assert (
        "Too short for their text at --reduction=8" in plan and "train utterances: train-" in plan
    )
    assert "Too short" not in "\n".join(task("--reduction=4").plan())
    corpus = write_corpus(tmp_path / "corpus", characters=True)
    document = (corpus / "corpus.json").read_text()
    document = document.replace('"lengths"', '"unknown_characters": {"ß": 2}, "lengths"')
    (corpus / "corpus.json").write_text(document)
    assert "dev that training lacks, each an error: 'ß' (2)" in "\n".join(
        task(corpus=corpus).plan()
    )


@pytest.mark.parametrize("flags", [("--cell=gru", "--normalization=frame"), ("--model=baseline",)])
def test_kinds_of_models(task, flags):
    model = task(*flags).build_model(1)
    names = {type(layer.forward_layer).__name__ for layer in model.layers if "bidir" in layer.name}
    assert names == {"BatchNormGRU" if "--cell=gru" in flags else "LSTM"}


def test_the_mean_over_replicas_is_that_of_one_device(task, strategy):
    """Uneven utterances, and a row that only fills the batch."""
    one = task("--model=baseline")
    batch = next(iter(one.batches("dev").unbatch().batch(7)))
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = one.build_model(2)
    alone = float(model.loss(batch[1], model(batch[0]), batch[2]))
    batches = one.batches("dev").unbatch().take(7).batch(8)
    batches = batches.apply(tf.data.experimental.assert_cardinality(1))
    with strategy.scope():
        prepare(model, strategy, batches, 8)
        found = evaluate(model, strategy, batches, 8)
    assert found["ctc_loss"] == pytest.approx(alone, rel=1e-4)
    assert found["loss"] == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["--output_dir="], CommandError, "--output_dir is missing"),
        (["--data_dir=nowhere"], CorpusError, "no such file"),
        (["--jit_compile"], CommandError, "XLA compiles neither"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    call_script, tiny_characters, tmp_path, more, error, message
):
    folder = tmp_path / "run"
    with pytest.raises(error, match=message):
        call_script(
            train_ctc, *SMALL, f"--data_dir={tiny_characters}", f"--output_dir={folder}", *more
        )
    assert not folder.exists()


def test_a_corpus_of_the_other_kind_is_refused(call_script, tiny_corpus, tiny_characters, tmp_path):
    for script, corpus, message in (
        (train_ctc, tiny_corpus, "labels of frames and no text.*train_speech.py"),
        (train_speech, tiny_characters, "text and no labels of frames.*train_ctc.py"),
    ):
        with pytest.raises(CorpusError, match=message):
            call_script(script, f"--data_dir={corpus}", f"--output_dir={tmp_path}/run")
    assert not (tmp_path / "run").exists()


def test_no_utterance_that_could_be_learnt_is_an_error(task, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", utterances=(1, 1), characters=True, shard_count=1)
    with pytest.raises(CorpusError, match="no training utterance has the frames"):
        one = task("--reduction=8", corpus=corpus)
        one.settings.reduction = 64
        list(one.plan())
