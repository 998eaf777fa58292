"""evaluate.py: the figures of training again, other statistics, speakers, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

import evaluate
from command_line import CommandError
from keras_bnrnn.data.speech.corpus import load_corpus, read_utterances
from keras_bnrnn.fit.errors import FitError
from keras_bnrnn.fit.tables import read_results
from recipes import speech_task
from recipes.speech_task import SpeechTask
from recipes.tasks import EVALUATION_FILE
from script_fixtures import write_text


@pytest.fixture
def run(trained_speech, tmp_path):
    """A copy of the trained run's folder."""
    return shutil.copytree(trained_speech / "run", tmp_path / "run")


def read(folder):
    return json.loads((folder / EVALUATION_FILE).read_text())


@pytest.mark.slow
def test_speech(call_script, tiny_corpus, run):
    model = (run / "best.keras").read_bytes()
    call_script(evaluate, f"--run_dir={run}", f"--data_dir={tiny_corpus}")
    assert (run / "best.keras").read_bytes() == model
    found, best = read(run), read_results(run)["best"]
    assert found["moving_averages"]["fce"] == pytest.approx(best["dev_fce"], rel=1e-4)
    assert found["moving_averages"]["fer"] == pytest.approx(best["dev_fer"], rel=1e-4)
    losses = [found[name]["fce"] for name in ("moving_averages", "recalibrated")]
    losses.append(found["batch_statistics"]["fce"])
    assert len(set(losses)) == 3 and np.isfinite(losses).all()
    # All utterances of the corpus are of one speaker.
    assert found["speakers"] == {
        "seen": pytest.approx(best["dev_fer"], rel=1e-4),
        "speaker speaker": pytest.approx(best["dev_fer"], rel=1e-4),
    }


def test_unseen_speakers_are_counted_apart(tiny_corpus, trained_speech, monkeypatch):
    corpus = load_corpus(tiny_corpus)
    task = SpeechTask(read_results(trained_speech / "run")["config"], tiny_corpus)
    dev = list(read_utterances(corpus, "dev"))
    new = {utterance["id"] for utterance in dev[::2]}

    def read_with_speakers(corpus, split):
        for utterance in read_utterances(corpus, split):
            yield {**utterance, "speaker": "new" if utterance["id"] in new else "old"}

    monkeypatch.setattr(speech_task, "read_utterances", read_with_speakers)
    first_state = np.eye(corpus.num_states)[0]
    found = task.more_scores(lambda x: np.ones((*x["features"].shape[:2], 1)) * first_state)
    rates = found["speakers"]
    for group, members in (
        ("unseen", [u for u in dev if u["id"] in new]),
        ("seen", [u for u in dev if u["id"] not in new]),
    ):
        labels = np.concatenate([utterance["labels"] for utterance in members])
        assert rates[group] == pytest.approx(np.mean(labels != 0), rel=1e-5)
    assert rates["speaker new"] == rates["unseen"]


@pytest.mark.slow
def test_language(call_script, trained_language, tiny_text, tmp_path):
    run = shutil.copytree(trained_language / "run", tmp_path / "run")
    call_script(evaluate, f"--run_dir={run}", f"--data_dir={tiny_text}")
    found, best = read(run), read_results(run)["best"]
    assert found["moving_averages"]["perplexity"] == pytest.approx(
        best["valid_perplexity"], rel=1e-4
    )
    assert {"recalibrated", "batch_statistics"} <= found.keys()
    (tmp_path / "other").mkdir()
    write_text(tmp_path / "other", 140)
    with pytest.raises(CommandError, match="it was trained on another text"):
        call_script(evaluate, f"--run_dir={run}", f"--data_dir={tmp_path}/other")


def test_scoring_leaves_the_model_as_it_was(tiny_corpus, trained_speech):
    results = read_results(trained_speech / "run")
    task = SpeechTask(results["config"], tiny_corpus)
    model = task.load_model(trained_speech / "run" / "best.keras")
    before = model.get_weights()

    def call(x):
        for variable in model.variables:
            variable.assign(np.ones(variable.shape))
        return tf.zeros((*x["features"].shape[:2], task.corpus.num_states))

    evaluate.score(model, call, task, "")
    for value, same in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, same)


def test_what_is_refused(call_script, tiny_corpus, run, tmp_path):
    with pytest.raises(FitError, match=r"no results\.json"):
        call_script(evaluate, f"--run_dir={tmp_path}")
    with pytest.raises(CommandError, match="--data_dir is missing"):
        call_script(evaluate, f"--run_dir={run}")
    other = tmp_path / "other"
    shutil.copytree(tiny_corpus, other)
    document = json.loads((tiny_corpus / "corpus.json").read_text())
    (other / "corpus.json").write_text(json.dumps({**document, "seed": 99}))
    with pytest.raises(CommandError, match="it was trained on another corpus"):
        call_script(evaluate, f"--run_dir={run}", f"--data_dir={other}")
    (run / "best.keras").unlink()
    with pytest.raises(FitError, match=r"no best\.keras"):
        call_script(evaluate, f"--run_dir={run}", f"--data_dir={tiny_corpus}")
