"""Preparation end to end: what it writes, resuming, worker counts, and bad input."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech import jobs, parts, preparation, splits, synthesis
from keras_bnrnn.data.speech.corpus import (
    find_utterance,
    load_corpus,
    read_alignment_scores,
    read_utterances,
    verify_corpus,
)
from keras_bnrnn.data.speech.preparation import prepare_corpus
from keras_bnrnn.data.speech.sources import LibriSpeechSource, SyntheticSource
from keras_bnrnn.files import PARTIAL

for package in ("pocketsphinx", "espeakng_loader", "soxr"):
    pytest.importorskip(package, reason="the extra 'speech' is not installed")
soundfile = pytest.importorskip("soundfile", reason="the extra 'speech' is not installed")

REPOSITORY = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("remembered_alignments")


def corpus_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def failures_of(folder):
    lines = (Path(folder) / "failures.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "id\treason"
    return dict(line.split("\t") for line in lines[1:])


@pytest.fixture(scope="module")
def source():
    return SyntheticSource(count=12, seed=5)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, source, remembered_alignments):
    folder = tmp_path_factory.mktemp("prepared") / "corpus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_UTTERANCES", 4)
        prepare_corpus(source, folder)
    return folder


@pytest.fixture
def speech_tree(tmp_path, source):
    """LibriSpeech's layout, written from synthetic sentences at 8 and 44.1 kHz."""
    listed, _ = source.utterances()
    root = tmp_path / "libri"
    for split, speaker, rate, utterances in (
        ("train-clean", "7", 8000, listed[:3]),
        ("dev-clean", "9", 44100, listed[10:]),
    ):
        chapter = root / split / speaker / "1"
        chapter.mkdir(parents=True)
        lines = []
        for number, utterance in enumerate(utterances):
            name = f"{speaker}-1-{number:04d}"
            samples = synthesis.synthesize(utterance.location, rate)
            soundfile.write(chapter / f"{name}.flac", samples, rate)
            lines.append(f"{name} {utterance.transcript.upper()}")
        (chapter / f"{speaker}-1.trans.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def test_corpus_says_what_is_in_it(prepared):
    corpus = load_corpus(prepared)
    assert verify_corpus(prepared) == []
    assert sorted(path.name for path in prepared.iterdir()) == [
        "corpus.json",
        "dev-00000-of-00001.tfrecord",
        "failures.tsv",
        "preparation.json",
        "train-00000-of-00001.tfrecord",
    ]
    assert failures_of(prepared) == {}
    train = list(read_utterances(corpus, "train"))
    dev = list(read_utterances(corpus, "dev"))
    assert (len(train), len(dev)) == (10, 2)
    assert corpus.splits["train"]["utterances"] == 10
    assert not {u["transcript"] for u in train} & {u["transcript"] for u in dev}
    assert not {u["speaker"] for u in train} & {u["speaker"] for u in dev}
    for entry, utterances in ((corpus.splits["train"], train), (corpus.splits["dev"], dev)):
        labels = np.concatenate([u["labels"] for u in utterances])
        assert entry["frames"] == len(labels)
        counts = np.bincount(labels, minlength=corpus.num_states)
        assert entry["state_frames"] == counts.tolist()
    occurring = {label for u in train + dev for label in u["labels"]}
    assert occurring == set(range(corpus.num_states))
    features = np.concatenate([u["features"] for u in train]).astype(np.float64)
    assert features.shape[1] == 123
    np.testing.assert_allclose(corpus.mean, features.mean(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(corpus.variance, features.var(axis=0), rtol=1e-5)
    for state in corpus.states:
        assert set(state) == {"name", "phone", "position", "senone"}
    phones = corpus.phones(dev[0]["labels"])
    assert len(phones) > len(dev[0]["transcript"].split()) and "SIL" in phones
    assert find_utterance(corpus, "dev/dev-00001")[1]["id"] == "dev-00001"
    with pytest.raises(CorpusError, match="no utterance 'nobody'"):
        find_utterance(corpus, "nobody")
    assert corpus.document["versions"]["tensorflow"] == tf.__version__


def test_features_are_those_of_the_layer(prepared, source):
    corpus = load_corpus(prepared)
    _, utterance = find_utterance(corpus, "dev-00000")
    listed = {u.id: u for u in source.utterances()[0]}
    samples = source.waveform(listed["dev-00000"])
    settings = {k: v for k, v in corpus.features.items() if k not in ("kind", "dimension")}
    from keras_bnrnn.data.speech.features import LogMelFilterBank

    features = LogMelFilterBank(**settings)(samples[np.newaxis])[0]
    frames = len(utterance["labels"])
    np.testing.assert_allclose(features[:frames], utterance["features"], atol=1e-4)


def test_stopped_between_parts_continues_to_the_same_corpus(
    prepared, source, tmp_path, monkeypatch
):
    monkeypatch.setattr(parts, "PART_UTTERANCES", 4)

    class Stopped(Exception):
        pass

    def stop(done, total, failed):
        if done >= 4:
            raise Stopped

    with pytest.raises(Stopped):
        prepare_corpus(source, tmp_path / "corpus", progress=stop)
    folder = tmp_path / "corpus" / "parts"
    assert [path.name for path in folder.glob("*.json")] == ["train-00000.json"]
    with pytest.raises(CorpusError, match="was its preparation finished"):
        load_corpus(tmp_path / "corpus")
    # A part without a summary is one that was being written.
    (folder / "train-00001.tfrecord").write_bytes(b"half a rec")
    done = []
    prepare_corpus(source, tmp_path / "corpus", progress=lambda *counts: done.append(counts[0]))
    assert done[0] == 4
    assert corpus_bytes(tmp_path / "corpus") == corpus_bytes(prepared)


def test_small_shards_hold_the_same_utterances(prepared, source, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_UTTERANCES", 2)
    corpus = prepare_corpus(source, tmp_path / "corpus", shard_bytes=1)
    shards = corpus.splits["train"]["shards"]
    assert [shard["file"] for shard in shards[:2]] == [
        "train-00000-of-00005.tfrecord",
        "train-00001-of-00005.tfrecord",
    ]
    one = [u["id"] for u in read_utterances(load_corpus(prepared), "train")]
    assert [u["id"] for u in read_utterances(corpus, "train")] == one
    assert verify_corpus(tmp_path / "corpus") == []


def test_the_same_call_again_does_nothing(prepared, source, monkeypatch):
    monkeypatch.setattr(SyntheticSource, "prepare", None)
    before = corpus_bytes(prepared)
    prepare_corpus(source, prepared)
    assert corpus_bytes(prepared) == before


def test_the_words_of_a_lexicon_count(source, speech_tree, tmp_path):
    lexicon = tmp_path / "lexicon.txt"
    transcripts = next(speech_tree.rglob("7-1.trans.txt"))
    first, *lines = transcripts.read_text().splitlines()
    transcripts.write_text("\n".join([f"{first} ZYXGRUB", *lines]))
    lexicon.write_text("QUIZZLE  K W IH Z AH L\n")
    source = LibriSpeechSource(input_dir=str(speech_tree), lexicon=str(lexicon))
    prepare_corpus(source, tmp_path / "corpus")
    [reason] = failures_of(tmp_path / "corpus").values()
    assert "zyxgrub" in reason
    lexicon.write_text("ZYXGRUB  Z IH K S G R AH B\n")
    with pytest.raises(CorpusError, match="another lexicon"):
        prepare_corpus(source, tmp_path / "corpus")


def test_names_that_are_no_text_are_failures(source, tmp_path, monkeypatch):
    listed, _ = source.utterances()
    listed[0] = dataclasses.replace(listed[0], speaker=os.fsdecode(b"M\xfcller"))
    monkeypatch.setattr(SyntheticSource, "utterances", lambda self: (listed, []))
    corpus = prepare_corpus(source, tmp_path / "corpus")
    assert failures_of(tmp_path / "corpus") == {listed[0].id: "its id or speaker is not UTF-8"}
    assert corpus.splits["train"]["utterances"] == 9


def test_one_process_prepares_at_a_time(prepared, source, tmp_path, monkeypatch):
    folder = tmp_path / "corpus"

    def busy(parts_dir):
        assert parts_dir == folder / "parts"
        raise TimeoutError("another process is at work")

    monkeypatch.setattr(preparation, "lock_folder", busy)
    # What a process left that was killed while it claimed the folder.
    folder.mkdir()
    (folder / f"preparation{PARTIAL}.json").write_text("{")
    with pytest.raises(CorpusError, match="another process is at work, or choose another"):
        prepare_corpus(source, folder)

    def made_meanwhile(parts_dir):
        shutil.copytree(prepared, folder, dirs_exist_ok=True)
        return contextlib.nullcontext()

    monkeypatch.setattr(preparation, "lock_folder", made_meanwhile)
    monkeypatch.setattr(SyntheticSource, "prepare", None)
    assert prepare_corpus(source, folder).splits == load_corpus(prepared).splits


def test_folder_of_another_preparation_is_refused(prepared, tmp_path):
    with pytest.raises(CorpusError, match=r"another listing \(utt.*\), settings, utterances"):
        prepare_corpus(SyntheticSource(count=13, seed=5), prepared)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CorpusError, match="not empty"):
        prepare_corpus(SyntheticSource(count=12), tmp_path)


def test_labels_of_other_kinds(tmp_path):
    corpus = prepare_corpus(SyntheticSource(count=3, labels="phones"), tmp_path / "phones")
    assert all(set(state) == {"name", "phone"} for state in corpus.states)
    assert corpus.num_states < 45
    corpus = prepare_corpus(SyntheticSource(count=3, labels="phone_states"), tmp_path / "states")
    assert corpus.states[0]["name"].endswith(".0")
    with pytest.raises(CorpusError, match="labels='triphones'"):
        SyntheticSource(labels="triphones")


def test_librispeech_layout_at_other_rates(speech_tree, tmp_path):
    corpus = prepare_corpus(LibriSpeechSource(input_dir=str(speech_tree)), tmp_path / "corpus")
    assert failures_of(tmp_path / "corpus") == {}
    assert {name: split["utterances"] for name, split in corpus.splits.items()} == {
        "train": 3,
        "dev": 2,
    }


def test_bad_utterances_are_listed_and_the_others_kept(speech_tree, tmp_path):
    chapter = speech_tree / "train-clean" / "7" / "1"
    transcripts = chapter / "7-1.trans.txt"
    good = next(iter(chapter.glob("*.flac"))).read_bytes()
    lines = transcripts.read_bytes()
    (chapter / "7-1-0010.wav").write_bytes(b"")
    lines += b"7-1-0010 THE EMPTY FILE\n"
    lines += b"7-1-0011 THE MISSING FILE\n"
    (chapter / "7-1-0012.flac").write_bytes(good)
    lines += b"7-1-0012 THE ZYXGRUB\n"
    (chapter / "7-1-0013.flac").write_bytes(good)
    lines += b"7-1-0013 CAF\xc9\n"
    (chapter / "7-1-0014.flac").write_bytes(good[: len(good) // 2])
    lines += b"7-1-0014 " + b"WHAT WAS SAID HERE TODAY\n"
    (chapter / "7-1-0015.flac").write_bytes(good)
    latin = os.fsdecode(b"7-1-M\xfcller")
    (chapter / f"{latin}.flac").write_bytes(good)
    (chapter / "7-1-0016.flac").write_bytes(good)
    lines += b"7-1-0016\n"
    soundfile.write(chapter / "7-1-0017.flac", np.zeros(100), 16000)
    lines += b"7-1-0017 SHORT\n"
    lines += b"7-1-0002 ONCE MORE\n"
    transcripts.write_bytes(b"\xef\xbb\xbf" + lines.replace(b" ", b"\t", 1))
    duplicate = speech_tree / "train-clean" / "7" / "2"
    duplicate.mkdir()
    shutil.copy(chapter / "7-1-0001.flac", duplicate)
    (duplicate / "7-2.trans.txt").write_text("7-1-0001 AGAIN\n")
    (duplicate / "7-3.trans.txt").write_text("7-3-0000 THE OTHER\n")
    elsewhere = speech_tree / "train-clean" / "7" / "3"
    elsewhere.mkdir()
    (elsewhere / "7-3-0001.wav").write_bytes(good)

    corpus = prepare_corpus(LibriSpeechSource(input_dir=str(speech_tree)), tmp_path / "corpus")
    failures = failures_of(tmp_path / "corpus")
    assert corpus.splits["train"]["utterances"] == 3
    assert corpus.document["failures"] == len(failures) == 13
    for name, reason in {
        "7-1-0001": "twice",
        "7-1-0002": "twice",
        "7-1-0010": "empty",
        "7-1-0011": "no audio file",
        "7-1-0012": "7-1-0012.flac: not in the dictionary: zyxgrub",
        "7-1-0013": "not UTF-8",
        "7-1-0014": "7-1-0014.flac",
        "7-1-0015": "no transcript",
        "7-1-0016": "7-1-0016.flac: the transcript is empty",
        "7-1-0017": "7-1-0017.flac: the audio is silent",
        "7-1-M\ufffdller": "no transcript",
        "7-3-0000": "no audio file",
        "7-3-0001": "7-3-0001.wav: no transcript",
    }.items():
        assert reason in failures[name], name


def test_ids_that_repeat_are_told_apart_by_their_speakers(tmp_path):
    for speaker in ("anna", "bob"):
        folder = tmp_path / "train" / speaker
        folder.mkdir(parents=True)
        (folder / "001.flac").touch()
        (folder / f"{speaker}.trans.txt").write_text("001 ONE\n")
    listed, failures = LibriSpeechSource(input_dir=str(tmp_path)).utterances()
    assert [u.id for u in listed] == ["train/anna/001", "train/bob/001"] and failures == []


def test_empty_and_missing_folders(tmp_path):
    for folder, reason in (("nothing", "no such folder"), (".", r"no '\*.trans.txt'")):
        source = LibriSpeechSource(input_dir=str(tmp_path / folder))
        with pytest.raises(CorpusError, match=reason):
            prepare_corpus(source, tmp_path / "corpus")


def test_nothing_that_can_be_prepared(speech_tree, tmp_path):
    for path in speech_tree.rglob("*.flac"):
        path.write_bytes(b"")
    with pytest.raises(CorpusError, match=r"left anything for train.*empty"):
        prepare_corpus(LibriSpeechSource(input_dir=str(speech_tree)), tmp_path / "corpus")
    assert len(failures_of(tmp_path / "corpus")) == 5


def test_features_that_are_not_numbers_are_a_failure(source, tmp_path, monkeypatch):
    good = SyntheticSource.prepare

    def with_nan(self, utterance):
        frames = good(self, utterance)
        if utterance.id == "train-00003":
            frames.features[5, 7] = np.nan
        return frames

    monkeypatch.setattr(SyntheticSource, "prepare", with_nan)
    corpus = prepare_corpus(source, tmp_path / "corpus")
    assert failures_of(tmp_path / "corpus") == {
        "train-00003": "features that are not finite numbers"
    }
    assert corpus.splits["train"]["utterances"] == 9 and np.isfinite(corpus.mean).all()


def test_full_disk_is_one_clear_error(source, tmp_path, monkeypatch):
    class FullDisk:
        def __init__(self, path):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def write(self, record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(tf.io, "TFRecordWriter", FullDisk)
        with pytest.raises(CorpusError, match=r"No space left on device.*continues"):
            prepare_corpus(source, tmp_path / "corpus")
    prepare_corpus(source, tmp_path / "corpus")


def test_shares_deal_out_whole_speakers(speech_tree):
    source = LibriSpeechSource(input_dir=str(speech_tree), splits="train=0.6,dev=0.4")
    listed, _ = source.utterances()
    speakers = {}
    for utterance in listed:
        speakers.setdefault(utterance.speaker, set()).add(utterance.split)
    assert sorted(map(sorted, speakers.values())) == [["dev"], ["train"]]
    three = LibriSpeechSource(input_dir=str(speech_tree), splits="train=0.6,dev=0.2,test=0.2")
    with pytest.raises(CorpusError, match="only 2"):
        three.utterances()
    for shares in ("train=0.5", "train=2,dev=-1", "layouts", "train=0.5,development=0.5"):
        with pytest.raises(CorpusError, match="splits="):
            LibriSpeechSource(input_dir=str(speech_tree), splits=shares).utterances()


def test_layout_that_names_no_split(speech_tree):
    (speech_tree / "dev-clean").rename(speech_tree / "others")
    with pytest.raises(CorpusError, match=r"splits=layout.*9-1-0000"):
        LibriSpeechSource(input_dir=str(speech_tree)).utterances()


def test_taking_some_keeps_every_split(speech_tree):
    listed, _ = LibriSpeechSource(input_dir=str(speech_tree)).utterances()
    taken = splits.take_utterances(listed, 2, seed=0)
    assert [u.split for u in sorted(taken, key=lambda u: u.split)] == ["dev", "train"]
    with pytest.raises(CorpusError, match="utterances=1"):
        splits.take_utterances(listed, 1, seed=0)


def damaged_copy(prepared, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(prepared, folder)
    return folder


def test_verify_names_what_is_damaged(prepared, tmp_path):
    folder = damaged_copy(prepared, tmp_path)
    shard = folder / "train-00000-of-00001.tfrecord"
    whole = shard.read_bytes()

    shard.write_bytes(whole[: len(whole) // 2])
    problems = "\n".join(verify_corpus(folder))
    assert "checksum" in problems and "damaged after" in problems and shard.name in problems

    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    shard.write_bytes(flipped)
    assert any(shard.name in problem for problem in verify_corpus(folder))

    shard.unlink()
    assert any("missing" in problem for problem in verify_corpus(folder))


def test_verify_reads_what_checksums_cannot_tell(prepared, tmp_path):
    from keras_bnrnn.data.speech.corpus import file_checksum, make_example

    folder = damaged_copy(prepared, tmp_path)
    shard = folder / "dev-00000-of-00001.tfrecord"
    features = np.zeros((4, 123), np.float32)
    features[1, 1] = np.nan
    with tf.io.TFRecordWriter(str(shard)) as writer:
        writer.write(make_example("one", "s", "a", features, [0, 1, 2, 3]))
        writer.write(make_example("two", "s", "b", np.zeros((4, 123)), [0, 1, 2, 999999]))
        writer.write(make_example("two", "s", "b", np.zeros((2, 123)), [0, 1]))
        writer.write(make_example("six", "s", "b", np.zeros((2, 100)), [0, 1]))
        writer.write(make_example("ten", "s", "b", np.zeros((4, 123)), [0, 1]))
    document = json.loads((folder / "corpus.json").read_text())
    entry = document["splits"]["dev"]["shards"][0]
    entry.update(bytes=shard.stat().st_size, sha256=file_checksum(str(shard)))
    (folder / "corpus.json").write_text(json.dumps(document))
    problems = "\n".join(verify_corpus(folder))
    for part in ("utterance one: features that are not", "utterance two: labels 0 to 999999"):
        assert part in problems
    for part in ("utterance two: occurs twice", "utterance six: 200 features for frames of 123"):
        assert part in problems
    assert "utterance ten: 2 labels for 4 frames" in problems


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"format_version": 99}, "format_version 99"),
        ({"states": None}, "lacks states"),
    ],
)
def test_corpora_of_other_versions_are_refused(prepared, tmp_path, change, reason):
    folder = damaged_copy(prepared, tmp_path)
    document = json.loads((folder / "corpus.json").read_text())
    for key, value in change.items():
        if value is None:
            del document[key]
        else:
            document[key] = value
    (folder / "corpus.json").write_text(json.dumps(document))
    with pytest.raises(CorpusError, match=reason):
        load_corpus(folder)


def run_script(*arguments, **options):
    command = [sys.executable, str(REPOSITORY / "training" / "prepare_speech.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "2"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.slow
def test_killed_script_ends_with_the_same_corpus(tmp_path):
    """As one that a single worker has made."""
    arguments = ["--source=synthetic", "--utterances=100", "--seed=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    prepare_corpus(SyntheticSource(count=100, seed=2), whole, seed=2)
    process = run_script(*arguments, f"--output_dir={killed}", "--workers=2")
    while not list(killed.glob("parts/*.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "corpus.json").exists()
    process = run_script(*arguments, f"--output_dir={killed}", "--workers=2")
    assert process.wait() == 0, process.stderr.read()
    assert corpus_bytes(killed) == corpus_bytes(whole)


class DeadlySource(SyntheticSource):
    """Kills whoever prepares its first training utterance."""

    def prepare(self, utterance):
        if utterance.id == "train-00000":
            os._exit(9)
        return super().prepare(utterance)


@pytest.mark.slow
def test_a_killed_worker_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_UTTERANCES", 4)
    with pytest.raises(CorpusError, match=r"worker was killed.*workers=2"):
        prepare_corpus(DeadlySource(count=12), tmp_path / "corpus", workers=2)


def test_whatever_goes_wrong_with_one_utterance_is_one_line(source, tmp_path, monkeypatch):
    good = SyntheticSource.prepare

    def faulty(self, utterance):
        frames = good(self, utterance)
        if utterance.id == "train-00001":
            raise IndexError("list index out of range")
        if utterance.id == "train-00003":
            return dataclasses.replace(frames, features=frames.features[:, :40])
        if utterance.id == "dev-00001":
            return dataclasses.replace(frames, features=frames.features[:, :13])
        return frames

    monkeypatch.setattr(SyntheticSource, "prepare", faulty)
    corpus = prepare_corpus(source, tmp_path / "corpus")
    assert failures_of(tmp_path / "corpus") == {
        "train-00001": "list index out of range (IndexError)",
        "train-00003": "40 features per frame, where others have 123",
        "dev-00001": "13 features per frame, where others have 123",
    }
    assert verify_corpus(tmp_path / "corpus") == [] and corpus.dimension == 123


def test_the_worst_alignments_are_found(prepared):
    corpus = load_corpus(prepared)
    scores = read_alignment_scores(corpus, "train")
    assert len(scores) == 10 and scores == sorted(scores) and scores[-1][0] < 0
    expected = {u["id"]: u["alignment_score"] for u in read_utterances(corpus, "train")}
    assert {name: score for score, name in scores} == expected


@pytest.fixture
def cluster():
    """A Dask scheduler and a worker with two threads, in this process."""
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is missing")
    options = {"processes": False, "n_workers": 1, "threads_per_worker": 2}
    with distributed.LocalCluster(dashboard_address=None, **options) as here:
        yield here


def test_a_cluster_changes_no_byte(prepared, source, tmp_path, monkeypatch, cluster):
    monkeypatch.setattr(parts, "PART_UTTERANCES", 4)
    monkeypatch.setattr(jobs, "JOBS_AHEAD", 2)
    prepare_corpus(source, tmp_path / "two", scheduler=cluster.scheduler_address)
    assert corpus_bytes(tmp_path / "two") == corpus_bytes(prepared)


def test_no_scheduler_and_other_versions(source, tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    monkeypatch.setattr(jobs, "SECONDS_TO_CONNECT", 0.2)
    with pytest.raises(CorpusError, match="no Dask scheduler answers"):
        prepare_corpus(source, tmp_path / "corpus", scheduler="tcp://127.0.0.1:9")
    versions = {**jobs.installed_versions(), "tensorflow": "1.0"}
    with pytest.raises(CorpusError, match=r"tensorflow \S+ instead of 1\.0"):
        jobs._on_a_worker(versions, print)


@pytest.mark.slow
def test_a_lost_worker_changes_no_byte(prepared, source, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is missing")
    monkeypatch.setattr(parts, "PART_UTTERANCES", 4)
    options = {"processes": True, "n_workers": 2, "threads_per_worker": 1}
    with distributed.LocalCluster(dashboard_address=None, **options) as cluster:
        victims = [next(iter(cluster.workers.values())).pid]

        def kill(done, total, failed):
            if done and victims:
                os.kill(victims.pop(), signal.SIGKILL)

        folder = tmp_path / "two"
        prepare_corpus(source, folder, scheduler=cluster.scheduler_address, progress=kill)
    assert not victims and corpus_bytes(folder) == corpus_bytes(prepared)
