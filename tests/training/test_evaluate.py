"""evaluate.py: the figures of training again, other statistics, speakers, and what it refuses."""

import json
import shutil

import keras
import numpy as np
import pytest

import evaluate
import train_ptb
import train_speech
from command_line import CommandError
from keras_bnrnn.data.speech.corpus import load_corpus, read_utterances
from keras_bnrnn.fit.run_folder import read_results

SPEECH = ("--layers=1", "--units=6", "--batch_size=4", "--epochs=1", "--learning_rate=0.01")


def read(folder):
    return json.loads((folder / evaluate.EVALUATION_FILE).read_text())


def test_speech(call_script, tiny_corpus, tmp_path):
    run = tmp_path / "run"
    call_script(train_speech, *SPEECH, f"--data_dir={tiny_corpus}", f"--output_dir={run}")
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


def test_unseen_speakers_are_counted_apart(tiny_corpus, monkeypatch):
    corpus = load_corpus(tiny_corpus)
    task = evaluate.SpeechTask.__new__(evaluate.SpeechTask)
    task.corpus, task.config = corpus, {"batch_size": 4}
    dev = list(read_utterances(corpus, "dev"))
    new = {utterance["id"] for utterance in dev[::2]}

    def read_with_speakers(corpus, split):
        for utterance in read_utterances(corpus, split):
            yield {**utterance, "speaker": "new" if utterance["id"] in new else "old"}

    monkeypatch.setattr(evaluate, "read_utterances", read_with_speakers)

    class FirstState:
        def predict_on_batch(self, x):
            return np.eye(corpus.num_states)[np.zeros(x["features"].shape[:2], int)]

    rates = task.by_speaker(FirstState())
    for group, members in (
        ("unseen", [u for u in dev if u["id"] in new]),
        ("seen", [u for u in dev if u["id"] not in new]),
    ):
        labels = np.concatenate([utterance["labels"] for utterance in members])
        assert rates[group] == pytest.approx(np.mean(labels != 0), rel=1e-5)
    assert rates["speaker new"] == rates["unseen"]


@pytest.mark.parametrize("model", ["baseline", "batch_norm"])
def test_language(call_script, tmp_path, model):
    pytest.importorskip("tensorflow_text", reason="the `text` extra is not installed")
    run = tmp_path / "run"
    flags = ["--steps_per_epoch=3", "--epochs=1", "--dropout=0.5", f"--model={model}"]
    call_script(train_ptb, *flags, f"--output_dir={run}")
    call_script(evaluate, f"--run_dir={run}")
    found, best = read(run), read_results(run)["best"]
    expected = pytest.approx(best["valid_perplexity"], rel=1e-4)
    assert found["moving_averages"]["perplexity"] == expected
    assert ("recalibrated" in found) == ("batch_statistics" in found) == (model == "batch_norm")
    config = read_results(run)["config"]
    config["text"]["sha256"] = 16 * "0"
    with pytest.raises(CommandError, match="trained on another text"):
        evaluate.LanguageTask(config, None)


def test_scoring_leaves_the_model_as_it_was(parse_flags, call_script, tiny_corpus, tmp_path):
    run = tmp_path / "run"
    call_script(train_speech, *SPEECH, f"--data_dir={tiny_corpus}", f"--output_dir={run}")
    parse_flags(evaluate, f"--run_dir={run}", f"--data_dir={tiny_corpus}")
    task = evaluate.SpeechTask(read_results(run)["config"], str(tiny_corpus))
    model = keras.models.load_model(run / "best.keras", compile=False)
    before = model.get_weights()
    evaluate.score(model, task, "", training=True)
    for value, same in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, same)


def test_what_is_refused(call_script, tiny_corpus, tmp_path):
    with pytest.raises(CommandError, match=r"no results\.json"):
        call_script(evaluate, f"--run_dir={tmp_path}")
    run = tmp_path / "run"
    call_script(train_speech, *SPEECH, f"--data_dir={tiny_corpus}", f"--output_dir={run}")
    other = tmp_path / "other"
    shutil.copytree(tiny_corpus, other)
    document = json.loads((other / "corpus.json").read_text())
    document["states"].append(document["states"][0])
    for split in document["splits"].values():
        split["state_frames"].append(0)
    (other / "corpus.json").write_text(json.dumps(document))
    with pytest.raises(CommandError, match="trained on another corpus"):
        call_script(evaluate, f"--run_dir={run}", f"--data_dir={other}")
    same_states = {**json.loads((tiny_corpus / "corpus.json").read_text()), "seed": 99}
    (other / "corpus.json").write_text(json.dumps(same_states))
    with pytest.raises(CommandError, match="trained on another corpus"):
        call_script(evaluate, f"--run_dir={run}", f"--data_dir={other}")
    (run / "best.keras").unlink()
    with pytest.raises(CommandError, match=r"no best\.keras"):
        call_script(evaluate, f"--run_dir={run}", f"--data_dir={tiny_corpus}")
