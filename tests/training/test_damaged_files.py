"""Every tool answers a file of a run that is damaged, partial or another's with one line."""

import contextlib
import json
import math
import shutil
import zipfile
from types import SimpleNamespace

import pytest

import compare
import evaluate
import export
import inspect_speech
import reproduce
import transcribe
import write_likelihoods
from command_line import CommandError
from keras_bnrnn import serving
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import load_corpus
from keras_bnrnn.fit import FitError, RunFolder
from keras_bnrnn.fit.tables import comment_of, read_history, read_results
from recipes.phone_model import DESCRIPTION_FILE, PHONE_COUNTS
from untrained import WORDS

EXPECTED = (CommandError, FitError, CorpusError)
NOT_JSON = [b"", b"[", b'{"config": {', b"\xff\xfe\x00", b"\x00" * 50]
FOREIGN = [None, [], {}, 3000, math.nan, "x", True]
COLUMNS = {
    "speech": ["train_fce", "train_fer", "dev_fce", "dev_fer"],
    "language": ["train_perplexity", "valid_perplexity"],
}
CONFIGS = {
    "speech": {
        **{"model": "batch_norm", "layers": 1, "units": 6, "bidirectional": True},
        **{"batch_size": 8, "max_frames": 1300, "augment": False, "mixed_precision": "none"},
        **{"synchronized": True, "learning_rate": 0.1, "momentum": 0.9, "seed": 0},
    },
    "language": {"model": "batch_norm", "text": {"train_tokens": 9, "vocabulary": len(WORDS)}},
}


def variants(document, depth=3):
    """JSON documents that differ from one in a single place, and what is no JSON."""
    yield from NOT_JSON
    whole = json.dumps(document).encode()
    yield from (whole[: len(whole) // 3], whole[:-2])
    for changed in changes(document, depth):
        yield json.dumps(changed).encode()


def changes(value, depth):
    yield from FOREIGN
    keys = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        keys = [0] if value else []
    for key in keys if depth else ():
        if isinstance(value, dict):
            yield {name: part for name, part in value.items() if name != key}
        for part in changes(value[key], depth - 1):
            changed = value.copy()
            changed[key] = part
            yield changed


def assert_one_line(path, contents, use, expected=EXPECTED, folder=None):
    """Each content of a file is good enough, or refused and named; many are refused."""
    folder = folder or path.parent
    before, refused, tried = path.read_bytes(), 0, 0
    for content in contents:
        path.write_bytes(content)
        tried += 1
        try:
            use()
        except expected as error:
            assert any(name in str(error) for name in (path.name, str(folder))), error
            refused += 1
        except Exception as error:
            raise AssertionError(f"{path.name} of {content[:200]!r}") from error
    path.write_bytes(before)
    use()
    assert refused > tried / 3


def row(task, epoch):
    return {"epoch": epoch, **dict.fromkeys(COLUMNS[task], 0.5), "learning_rate": 0.1}


def write_run(folder, task, corpus=None):
    """The folder of a run of two epochs, whose models are empty archives."""
    folder.mkdir(parents=True)
    config = dict(CONFIGS[task])
    if corpus is not None:
        config["corpus"] = {"source": "test", "sha256": load_corpus(corpus).checksum[:16]}
        shutil.copy(corpus / "corpus.json", folder)
        counts = {"state_frames": [9] * 5, "visits": [1] * 5, "bigram": [["SIL", "AH", 5]]}
        (folder / "phone_counts.json").write_text(json.dumps(counts))
    else:
        words = {"words": WORDS, "tokenization": "running_text"}
        (folder / "vocabulary.json").write_text(json.dumps(words))
    results = {
        **{"task": task, "model": "batch_norm", "config": config, "finished": True},
        **{"criterion": COLUMNS[task][-1], "best": row(task, 2), "final": row(task, 2)},
        **{"seconds_per_epoch": [9.0, 2.0], "versions": {"keras": "3"}, "parameters": 7},
    }
    (folder / "results.json").write_text(json.dumps(results))
    config = {"format_version": 2, "config": config, "task": task, "run": "a"}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [",".join(row(task, 1)), *(",".join(map(str, row(task, k).values())) for k in (1, 2))]
    (folder / "history.csv").write_text("\n".join(lines) + "\n")
    with zipfile.ZipFile(folder / "best.keras", "w") as archive:
        archive.writestr("empty", b"")
        archive.comment = comment_of(2)
    return folder


@pytest.fixture
def speech(tmp_path, tiny_corpus):
    return write_run(tmp_path / "speech", "speech", tiny_corpus)


@pytest.fixture
def language(tmp_path):
    return write_run(tmp_path / "language", "language")


@pytest.fixture
def without_models(monkeypatch):
    """What the tools do with a model takes time, and is not what these tests are about."""
    monkeypatch.setattr(export.keras.saving, "load_model", lambda path, compile: None)
    monkeypatch.setattr(export, "fold_batch_norm", lambda model: model)
    monkeypatch.setattr(serving, "export", lambda *arguments, **options: ["serve"])
    monkeypatch.setattr(evaluate.SpeechTask, "load_model", staticmethod(lambda path: None))
    monkeypatch.setattr(evaluate.SpeechTask, "more_scores", lambda task, infer: {})
    monkeypatch.setattr(evaluate, "function_of", lambda *arguments, **options: None)
    monkeypatch.setattr(evaluate, "score", lambda *arguments: {"fce": 0.5})
    monkeypatch.setattr(evaluate, "normalizing_by_batch", contextlib.nullcontext)
    monkeypatch.setattr(evaluate, "recalibrate", lambda *arguments, **options: None)


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("task", [pytest.param("speech", marks=pytest.mark.slow), "language"])
def test_results(request, task, call_script, without_models, tiny_corpus, tmp_path):
    folder = request.getfixturevalue(task)
    (folder / "config.json").unlink()  # Else it tells what is another run's.

    def use():
        run = f"--run_dir={folder}"
        call_script(compare, f"--output_dir={tmp_path}", folder)
        call_script(export, run, f"--output_dir={tmp_path}/exported")
        if task == "speech":
            call_script(evaluate, run, f"--data_dir={tiny_corpus}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "draw", lambda *arguments: None)
        assert_one_line(folder / "results.json", variants(results_of(folder), 2), use)


def test_results_of_another_run(speech):
    results = results_of(speech)
    results["config"]["seed"] = 3
    (speech / "results.json").write_text(json.dumps(results))
    with pytest.raises(FitError, match=r"results\.json is of another run than config\.json"):
        read_results(speech)


def test_results_that_reproduce_reads(language):
    """Its own, too, which it writes beside the report."""
    results = {**results_of(language), "arguments": []}
    (language / "results.json").write_text(json.dumps(results))
    run = reproduce.Run("a/b-0", (), 2, language, language, ())
    assert_one_line(
        language / "results.json",
        variants(results, 2),
        lambda: (run.done, run.seconds_per_epoch, run.finished_epochs),
    )


def test_histories(speech, call_script, tmp_path):
    text = (speech / "history.csv").read_text()
    lines = text.splitlines()
    cells = [line.split(",") for line in lines]
    contents = ["", "\n", lines[0], "\n".join(lines[:2]), text[: len(text) // 2], "\0" * 30]
    contents += [text + lines[1], text.replace("2,", "7,", 1), text + '"' + "x" * 200_000]
    for column in range(len(cells[0])):
        without = [row[:column] + row[column + 1 :] for row in cells]
        contents.append("\n".join(map(",".join, without)))
        for other in ("", "x", "nan", "inf", "1,2", '"'):
            changed = [*cells[1][:column], other, *cells[1][column + 1 :]]
            contents.append("\n".join([lines[0], ",".join(changed), lines[2]]))

    def use():
        call_script(compare, f"--output_dir={tmp_path}", speech)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "draw", lambda *arguments: None)
        assert_one_line(speech / "history.csv", map(str.encode, contents), use)


def test_configurations(speech):
    config = json.loads((speech / "config.json").read_text())

    def use():
        RunFolder(speech, config["config"], None, task="speech")._lock.close()

    assert_one_line(speech / "config.json", variants(config, 2), use)


@pytest.mark.parametrize("name", ["corpus.json", "phone_counts.json"])
def test_what_a_run_of_speech_keeps(speech, name, call_script, without_models, tmp_path):
    document = json.loads((speech / name).read_text())

    def use():
        call_script(export, f"--run_dir={speech}", f"--output_dir={tmp_path}/exported")

    assert_one_line(speech / name, variants(document), use)


def test_corpora(tiny_corpus, tmp_path):
    """Any that can be read has all that is used of it."""
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    path = tmp_path / "corpus" / "corpus.json"

    def use():
        corpus = load_corpus(path.parent)
        for split in corpus.splits:
            corpus.check_shards(split)
            assert corpus.has_labels(split) is not None
        assert corpus.dimension == len(corpus.mean) == len(corpus.variance)
        corpus.phones(range(min(corpus.num_states, 1)))

    assert_one_line(path, variants(json.loads(path.read_text()), 5), use)


def test_vocabularies(language, call_script, without_models, tmp_path):
    path = language / "vocabulary.json"

    def use():
        call_script(export, f"--run_dir={language}", f"--output_dir={tmp_path}/exported")

    assert_one_line(path, variants(json.loads(path.read_text())), use)


def test_descriptions_of_exported_models(tiny_corpus, tmp_path, monkeypatch, call_script):
    path = tmp_path / DESCRIPTION_FILE
    path.parent.mkdir()
    (tmp_path / "saved_model.pb").touch()
    corpus = load_corpus(tiny_corpus)
    counts = {"state_frames": [9] * 5, "visits": [1] * 5, "bigram": [["SIL", "AH", 5]]}
    assert counts.keys() == PHONE_COUNTS.keys()
    description = {
        **{"signatures": ["serve_waveform"], "states": corpus.states, "phone_counts": counts},
        **{"sample_rate": 8000, "features": {"sample_rate": 8000}},
        **{"mean": corpus.mean.tolist(), "variance": corpus.variance.tolist()},
    }
    path.write_text(json.dumps(description))
    monkeypatch.setattr(transcribe.tf.saved_model, "load", lambda path: SimpleNamespace())
    monkeypatch.setattr(transcribe, "output_paths", lambda *arguments: stop())

    class Enough(Exception):
        pass

    def stop():
        raise Enough

    def use():
        with contextlib.suppress(Enough):
            call_script(transcribe, f"--model={tmp_path}", "a.wav")
        write_likelihoods.make_scorer(None, write_likelihoods.read_description(tmp_path, corpus))

    assert_one_line(path, variants(description), use, folder=tmp_path)


def test_likelihoods(tiny_corpus, tmp_path):
    model = tmp_path / "model"
    (model / "variables").mkdir(parents=True)
    (model / "saved_model.pb").touch()
    corpus, output = load_corpus(tiny_corpus), tmp_path / "likelihoods"
    write_likelihoods.claim(output, model, corpus)
    path = output / "likelihoods.json"

    def use():
        try:
            write_likelihoods.claim(output, model, corpus)
        except CommandError as error:
            raise CommandError(f"{path.name}: {error}") from None

    assert_one_line(path, variants(json.loads(path.read_text())), use)


def test_evaluations(language, monkeypatch):
    monkeypatch.setattr(reproduce, "hardware", lambda: "a machine")
    path = language / "evaluation.json"
    path.write_text('{"moving_averages": {}}')
    run = reproduce.Run("a/b-0", (), 2, language, language.with_name("kept"), ())
    assert_one_line(path, variants({}), lambda: reproduce.keep(run))


def test_a_history_and_results_read_alone(speech):
    assert len(read_history(speech)) == read_results(speech)["best"]["epoch"]
    assert inspect_speech.read_run(speech)[1]["model"] == "batch_norm"
