"""Kaldi directories: archives of every form, folders by name, and what can be wrong with them."""

import gzip
import pickle
import re
import shutil

import numpy as np
import pytest

from kaldi_models import MODEL
from keras_bnrnn.data.errors import CorpusError, PipeError, UtteranceError
from keras_bnrnn.data.speech import parts
from keras_bnrnn.data.speech.audio import read_audio
from keras_bnrnn.data.speech.corpus import corpus_states, read_utterances, verify_corpus
from keras_bnrnn.data.speech.features import append_differences
from keras_bnrnn.data.speech.kaldi import KaldiSource
from keras_bnrnn.data.speech.kaldi.alignments import read_alignments
from keras_bnrnn.data.speech.kaldi.archives import load_matrix
from keras_bnrnn.data.speech.kaldi.models import read_transition_model
from keras_bnrnn.data.speech.kaldi.source import apply_cmvn
from keras_bnrnn.data.speech.preparation import prepare_corpus
from keras_bnrnn.data.speech.sources import SyntheticSource
from keras_bnrnn.data.speech.sources.base import filter_bank

kaldiio = pytest.importorskip("kaldiio", reason="the extra 'speech' is not installed")


class KaldiTree:
    """A data and an alignment directory of random features and pdf-ids."""

    def __init__(self, root, dimension=5, compression=None):
        self.data, self.ali = root / "data", root / "ali"
        self.features, self.pdf_ids = {}, {}
        self.ali.mkdir(parents=True)
        generator = np.random.default_rng(0)
        for split, speakers in (("train", "ab"), ("dev", "c")):
            folder = self.data / split
            folder.mkdir(parents=True)
            writer = kaldiio.WriteHelper(
                f"ark,scp:{folder / 'feats.ark'},{folder / 'feats.scp'}",
                compression_method=compression,
            )
            with writer, open(folder / "utt2spk", "w") as utt2spk:
                for speaker in speakers:
                    for number in range(3):
                        name = f"{speaker}-{number}"
                        frames = int(generator.integers(20, 40))
                        features = generator.normal(5, 2, (frames, dimension)).astype(np.float32)
                        writer(name, features)
                        print(name, speaker, file=utt2spk)
                        self.features[name] = features
                        self.pdf_ids[name] = generator.integers(0, 9, frames).astype(np.int32)

    def write_alignments(self, form="text.gz", vectors=None):
        vectors = self.pdf_ids if vectors is None else vectors
        text = "".join(f"{n} {' '.join(map(str, v))} \n" for n, v in vectors.items()).encode()
        if form == "text":
            (self.ali / "pdf.1.txt").write_bytes(text)
        elif form == "text.gz":
            (self.ali / "pdf.1.gz").write_bytes(gzip.compress(text))
        else:
            kaldiio.save_ark(str(self.ali / "pdf.1.ark"), vectors)
            if form == "binary.gz":
                binary = (self.ali / "pdf.1.ark").read_bytes()
                (self.ali / "pdf.1.ark").unlink()
                (self.ali / "pdf.1.gz").write_bytes(gzip.compress(binary))
        return self

    def source(self, **arguments):
        return KaldiSource(input_dir=str(self.data), alignment_dir=str(self.ali), **arguments)


@pytest.fixture
def tree(tmp_path):
    return KaldiTree(tmp_path / "kaldi")


def failures_of(folder):
    return (folder / "failures.tsv").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", ["text", "text.gz", "binary", "binary.gz"])
def test_alignments_of_every_form(tree, tmp_path, form):
    tree.write_alignments(form)
    corpus = prepare_corpus(tree.source(), tmp_path / "corpus")
    assert corpus.num_states == max(v.max() for v in tree.pdf_ids.values()) + 1
    assert corpus_states(corpus)[3].name == "pdf-3"
    seen = 0
    for split in ("train", "dev"):
        for utterance in read_utterances(corpus, split):
            np.testing.assert_array_equal(utterance["features"], tree.features[utterance["id"]])
            np.testing.assert_array_equal(utterance["labels"], tree.pdf_ids[utterance["id"]])
            assert utterance["speaker"] == utterance["id"][0]
            seen += 1
    assert seen == 9


def test_compressed_features_of_41_dimensions_get_differences(tmp_path):
    tree = KaldiTree(tmp_path / "kaldi", dimension=41, compression=2).write_alignments()
    corpus = prepare_corpus(tree.source(), tmp_path / "corpus")
    assert corpus.dimension == 123
    utterance = next(read_utterances(corpus, "dev"))
    expected = append_differences(tree.features[utterance["id"]])
    np.testing.assert_allclose(utterance["features"], expected, atol=0.05)


@pytest.mark.slow
def test_workers_change_no_byte(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_UTTERANCES", 2)
    tree.write_alignments()
    folders = tmp_path / "one", tmp_path / "two"
    for workers, folder in enumerate(folders, start=1):
        source = tree.source(splits="train=0.6,dev=0.4")
        first = prepare_corpus(source, folder, workers=workers)
    one, two = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders)
    assert one == two and len(one) == 5
    speakers = [{u["speaker"] for u in read_utterances(first, s)} for s in ("train", "dev")]
    assert not speakers[0] & speakers[1]


def as_transition_ids(tree, vectors):
    """Writes what `ali*` holds: a model in text form beside it says which pdfs these are."""
    tree.write_alignments("binary", vectors)
    (tree.ali / "pdf.1.ark").rename(tree.ali / "ali.1.ark")
    (tree.ali / "final.mdl").write_text(MODEL)


def test_transition_ids_through_the_model(tree, tmp_path):
    ids = {name: 1 + vector % 6 for name, vector in tree.pdf_ids.items()}
    ids["a-0"][4] = 7
    as_transition_ids(tree, ids)
    corpus = prepare_corpus(tree.source(), tmp_path / "corpus")
    assert corpus.num_states == 5
    utterance = next(read_utterances(corpus, "dev"))
    pdf_of = read_transition_model(tree.ali / "final.mdl").pdf_of
    np.testing.assert_array_equal(utterance["labels"], pdf_of[ids[utterance["id"]]])
    failures = failures_of(tmp_path / "corpus")
    assert f"a-0\t{tree.data / 'train' / 'feats.ark'}:4: labels -1 to 4 are out of" in failures


def test_pdf_ids_are_never_mapped(tree, tmp_path):
    pdf_ids = {name: vector % 5 for name, vector in tree.pdf_ids.items()}
    tree.write_alignments(vectors=pdf_ids)
    (tree.ali / "final.mdl").write_text(MODEL)
    corpus = prepare_corpus(tree.source(), tmp_path / "corpus")
    assert corpus.num_states == 5
    for utterance in read_utterances(corpus, "train"):
        np.testing.assert_array_equal(utterance["labels"], pdf_ids[utterance["id"]])
    # Nor do they need a model that can be read.
    (tree.ali / "final.mdl").write_bytes(b"\0B<TransitionModel> ")
    assert len(tree.source().utterances()[0]) == 9


def test_transition_ids_need_the_model_of_their_own_folder(tree):
    tree.write_alignments()
    (tree.ali / "pdf.1.gz").rename(tree.ali / "ali.1.gz")
    other = tree.ali / "other"
    other.mkdir()
    (other / "final.mdl").write_text(MODEL)
    (other / "pdf.txt").write_text("x 1\n")
    with pytest.raises(CorpusError, match=r"ali\.1\.gz holds transition-ids, and there is no"):
        tree.source().utterances()
    (tree.ali / "final.mdl").write_bytes(b"\0B<TransitionModel> ")
    with pytest.raises(CorpusError, match=r"final\.mdl: not a transition model .*ali-to-pdf"):
        tree.source().utterances()
    (tree.ali / "final.mdl").write_text(MODEL.replace("2 1 4", "2 1 3"))
    with pytest.raises(CorpusError, match=r"other: the models differ.*separated by commas"):
        tree.source().utterances()
    (tree.ali / "final.mdl.txt").write_text(MODEL)
    with pytest.raises(CorpusError, match=r"final\.mdl\.txt: the models differ: leave that"):
        tree.source().utterances()


def test_names_of_phones(tree, tmp_path):
    ids = {name: 1 + vector % 6 for name, vector in tree.pdf_ids.items()}
    as_transition_ids(tree, ids)
    (tree.data / "lang").mkdir()
    phones = tree.data / "lang" / "phones.txt"
    phones.write_text("<eps> 0\nSIL 1\nAH 2\n#0 3\n")
    corpus = prepare_corpus(tree.source(), tmp_path / "corpus")
    assert [state["name"] for state in corpus.states] == (
        ["AH.0.0", "pdf-1", "SIL.0.2", "pdf-3", "AH.1.4"]
    )
    utterance = next(read_utterances(corpus, "dev"))
    named = {0: "AH", 2: "SIL", 4: "AH"}
    pdf_of = read_transition_model(tree.ali / "final.mdl").pdf_of
    assert corpus.phones(utterance["labels"][:1]) == [named[pdf_of[ids[utterance["id"]][0]]]]
    phones.write_text("SIL 1\nAE 2\n")
    with pytest.raises(CorpusError, match="a preparation with another phone_names"):
        prepare_corpus(tree.source(), tmp_path / "corpus")
    phones.write_text("SIL 1\n")
    with pytest.raises(CorpusError, match=r"lang/phones\.txt: no name for the phone 2"):
        tree.source().utterances()
    (tree.ali / "phones.txt").write_text("SIL 1\nAH 2\n")
    assert tree.source().utterances()[0]


def test_folders_by_name(tree, tmp_path):
    """As a recipe for the Wall Street Journal names them, among others that are not meant."""
    tree.write_alignments()
    for folder, name in (("train", "train_si284"), ("dev", "test_dev93")):
        scp = tree.data / folder / "feats.scp"
        scp.write_text(scp.read_text().replace(str(scp.parent), str(tree.data / name)))
        scp.parent.rename(tree.data / name)
    backup = tree.data / "train_si284" / ".backup"
    backup.mkdir()
    (backup / "feats.scp").write_text("a-0 old.ark:1\n")
    (tree.data / "train_si84").symlink_to("train_si284")
    with pytest.raises(CorpusError, match=r"train_si84/feats.scp both list a-0.*splits=train="):
        tree.source().utterances()
    splits = "train=train_si284,dev=test_dev93"
    with pytest.raises(CorpusError, match=r"no folder test_eval92 in .*; it has test_dev93, "):
        tree.source(splits=f"{splits},test=test_eval92").utterances()
    corpus = prepare_corpus(tree.source(splits=splits), tmp_path / "corpus")
    counts = {name: split["utterances"] for name, split in corpus.splits.items()}
    assert counts == {"train": 6, "dev": 3} and corpus.document["failures"] == 0
    (tree.data / "test_eval92").mkdir()
    with pytest.raises(CorpusError, match=r"no feats\.scp in .*test_eval92"):
        tree.source(splits=f"{splits},test=test_eval92").utterances()


def test_alignments_of_several_systems(tree):
    """The folder of experiments has many: those to take are named."""
    for name, step in (("tri1", 1), ("tri4b", 2)):
        (tree.ali / name).mkdir()
        with open(tree.ali / name / "pdf.1.txt", "w") as file:
            for utterance, ids in tree.pdf_ids.items():
                print(utterance, *(step * ids), file=file)
    with pytest.raises(CorpusError, match=r"ali/tri1 and .*ali/tri4b align c-0 differently: name"):
        tree.source().utterances()
    chosen = f"{tree.ali / 'tri4b'}, {tree.ali / 'tri4b'}"
    source = KaldiSource(input_dir=str(tree.data), alignment_dir=chosen)
    for utterance in source.utterances()[0]:
        ids = utterance.location.pdf_ids.read()
        np.testing.assert_array_equal(ids, 2 * tree.pdf_ids[utterance.id])
    with pytest.raises(CorpusError, match=r"alignment_dir=.*tri2: there is no such folder"):
        read_alignments(f"{tree.ali},tri2")


def test_test_utterances_without_alignments(tree, tmp_path):
    """They are to be decoded. Of other splits, and of folders that are aligned, they are missed."""
    shutil.copytree(tree.data / "dev", tree.data / "test")
    del tree.pdf_ids["c-0"]
    tree.write_alignments()
    _, failures = tree.source().utterances()
    assert [(f.id, f.reason) for f in failures] == 2 * [("c-0", "no alignment of this utterance")]
    scp = tree.data / "test" / "feats.scp"
    scp.write_text(scp.read_text().replace("c-", "e-"))
    corpus = prepare_corpus(tree.source(), tmp_path / "corpus")
    assert corpus.split("test")["unlabelled"] == corpus.split("test")["utterances"] == 3
    assert [corpus.has_labels(split) for split in corpus.splits] == [True, True, False]
    assert verify_corpus(tmp_path / "corpus") == []
    for utterance in read_utterances(corpus, "test"):
        name = utterance["id"].replace("e", "c")
        np.testing.assert_array_equal(utterance["features"], tree.features[name])
        assert (utterance["labels"] == -1).all() and corpus.phones(utterance["labels"]) == []
    # What cannot be read is no reason to decode.
    (tree.ali / "pdf.2.txt").write_text("e-0 1 2")
    _, failures = tree.source().utterances()
    assert len(failures) == 4 and "pdf.2.txt cannot be read to its end" in failures[-1].reason


def test_features_of_other_dimensions(tree, tmp_path):
    tree.write_alignments()
    other = tree.features["a-1"][:, :3]
    kaldiio.save_ark(str(tmp_path / "other.ark"), {"x": other})
    scp = tree.data / "train" / "feats.scp"
    scp.write_text(re.sub("(?<=a-1 ).*", f"{tmp_path}/other.ark:2", scp.read_text()))
    corpus = prepare_corpus(tree.source(), tmp_path / "corpus")
    assert corpus.dimension == 5 and corpus.split("train")["utterances"] == 5
    reason = "3 features per frame, where others have 5"
    assert failures_of(tmp_path / "corpus").splitlines()[1] == (
        f"a-1\t{tmp_path}/other.ark:2: {reason}"
    )
    dev = tree.data / "dev" / "feats.scp"
    dev.write_text(re.sub("(?m)(?<= ).*$", f"{tmp_path}/other.ark:2", dev.read_text()))
    with pytest.raises(CorpusError, match=f"anything for dev; the first: .*{reason}"):
        prepare_corpus(tree.source(), tmp_path / "between")


def test_lines_that_are_no_integers_cost_one_utterance(tree):
    tree.write_alignments("text")
    path = tree.ali / "pdf.1.txt"
    lines = path.read_text().splitlines(keepends=True)
    lines[0] = "\ufeff" + lines[0]
    lines[1:3] = ["\n", "a-1 1 x\n", f"a-2 {2**40}\n", " \n"]
    path.write_text("".join(lines), encoding="utf-8")
    listed, failures = tree.source().utterances()
    assert len(listed) == 7
    assert [failure.id for failure in failures] == ["a-1", "a-2"]
    assert "pdf.1.txt, line 3: not a line of integers" in failures[0].reason


def test_folders_without_features_are_told(tree):
    tree.write_alignments()
    (tree.data / "test").mkdir()
    (tree.data / "test" / "wav.scp").write_text("e-0 e.wav\n")  # Others have features.
    (tree.data / "gone").symlink_to("nowhere")
    listed, failures = tree.source().utterances()
    assert len(listed) == 9 and {failure.id for failure in failures} == {"gone", "test"}


def test_ids_that_train_and_dev_share(tree, tmp_path):
    """Numbered anew in each split; sub-folders of the alignments then say which is meant."""
    scp = tree.data / "dev" / "feats.scp"
    scp.write_text(scp.read_text().replace("c-", "a-"))
    for split, speakers in (("train", "ab"), ("dev", "c")):
        (tree.ali / split).mkdir()
        with open(tree.ali / split / "pdf.1.txt", "w") as file:
            for name, ids in tree.pdf_ids.items():
                if name[0] in speakers:
                    print(name.replace("c", "a"), *ids, file=file)
    corpus = prepare_corpus(tree.source(), tmp_path / "corpus")
    assert corpus.document["failures"] == 0
    for split in ("train", "dev"):
        for utterance in read_utterances(corpus, split):
            name = utterance["id"] if split == "train" else utterance["id"].replace("a", "c")
            np.testing.assert_array_equal(utterance["labels"], tree.pdf_ids[name])


def test_transcripts_in_utf_16(tree):
    tree.write_alignments()
    (tree.data / "dev" / "text").write_text("c-0 sechs\nc-1 zwölf\n", encoding="utf-16")
    found = {u.id: u.transcript for u in tree.source().utterances()[0] if u.split == "dev"}
    assert found == {"c-0": "sechs", "c-1": "zwölf", "c-2": ""}


def test_what_tables_say_twice(tree):
    tree.write_alignments()
    (tree.data / "dev" / "text").write_text("c-0 one\nc-1 two\nc-0 other\nc-1 two\n")
    listed, failures = tree.source().utterances()
    assert {u.id for u in listed if u.split == "dev"} == {"c-1", "c-2"}
    [failure] = failures
    assert failure.id == "c-0" and "text: transcript is there twice" in failure.reason
    with open(tree.data / "dev" / "utt2spk", "a") as file:
        print("c-1 somebody", file=file)
    with pytest.raises(CorpusError, match="utt2spk: what it says of c-1 is there twice"):
        tree.source().utterances()


def test_gender_of_the_speakers_is_kept(tree, tmp_path):
    tree.write_alignments()
    (tree.data / "train" / "spk2gender").write_text("a f\nb m\n")
    corpus = prepare_corpus(tree.source(), tmp_path / "corpus")
    genders = {
        u["speaker"]: u["gender"] for s in ("train", "dev") for u in read_utterances(corpus, s)
    }
    assert genders == {"a": "f", "b": "m", "c": ""}
    (tree.data / "train" / "spk2gender").write_text("a female\n")
    with pytest.raises(CorpusError, match=r"spk2gender: a is 'female', not one of f, m"):
        tree.source().utterances()


def test_alignments_are_not_held_in_memory(tree):
    tree.write_alignments()
    listed, _ = tree.source().utterances()
    for utterance in listed:
        assert len(pickle.dumps(utterance)) < 1000
        ids = utterance.location.pdf_ids
        np.testing.assert_array_equal(ids.read(), tree.pdf_ids[utterance.id])


def test_cmvn_per_speaker(tree, tmp_path):
    tree.write_alignments()
    with pytest.raises(CorpusError, match=r"no cmvn\.scp"):
        tree.source(cmvn="mean").utterances()
    for split, speakers in (("train", "ab"), ("dev", "c")):
        folder = tree.data / split
        with kaldiio.WriteHelper(f"ark,scp:{folder / 'cmvn.ark'},{folder / 'cmvn.scp'}") as writer:
            for speaker in speakers:
                x = np.concatenate([f for n, f in tree.features.items() if n[0] == speaker])
                sums = np.append(x.sum(axis=0), len(x))
                writer(speaker, np.stack([sums, np.append(np.square(x).sum(axis=0), 0)]))
    corpus = prepare_corpus(tree.source(cmvn="mean_variance"), tmp_path / "corpus")
    features = np.concatenate([u["features"] for u in read_utterances(corpus, "dev")])
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-4)
    with pytest.raises(CorpusError, match="cmvn='both'"):
        tree.source(cmvn="both")


def test_relative_archives_are_found_from_the_recipe(tree, tmp_path):
    tree.write_alignments()
    for split in ("train", "dev"):
        scp = tree.data / split / "feats.scp"
        lines = scp.read_text().replace(f"{tree.data.parent}/", "").splitlines()
        # With a range of rows, all of them, and a byte-order mark.
        lines = [f"{line}[0:{len(tree.features[line.split()[0]]) - 1}]\n" for line in lines]
        scp.write_text("\ufeff" + "".join(lines))
    corpus = prepare_corpus(tree.source(), tmp_path / "corpus")
    assert corpus.document["failures"] == 0
    for split in ("train", "dev"):
        for utterance in read_utterances(corpus, split):
            np.testing.assert_array_equal(utterance["features"], tree.features[utterance["id"]])


def test_archives_that_could_be_either_of_two(tree, tmp_path, monkeypatch):
    """As where two recipes have archives of the same names."""
    tree.write_alignments()
    scp = tree.data / "train" / "feats.scp"
    scp.write_text(scp.read_text().replace(f"{tree.data}/", ""))
    monkeypatch.chdir(tree.data)
    [utterance] = [u for u in tree.source().utterances()[0] if u.id == "a-0"]
    assert utterance.location.features == "train/feats.ark:4"
    other = tmp_path / "other"
    (other / "train").mkdir(parents=True)
    monkeypatch.chdir(other)
    assert len(tree.source().utterances()[0]) == 9
    (other / "train" / "feats.ark").touch()
    with pytest.raises(CorpusError, match=r"could be .*other/train/feats\.ark or .*data/train"):
        tree.source().utterances()


def test_bad_utterances_are_listed_and_the_others_kept(tree, tmp_path):
    tree.pdf_ids["a-0"] = tree.pdf_ids["a-0"][:-3]
    tree.pdf_ids["a-1"] = tree.pdf_ids["a-1"][:-2]
    del tree.pdf_ids["a-2"]
    tree.write_alignments()
    again = " ".join(["0"] * len(tree.pdf_ids["c-0"]))
    (tree.ali / "pdf.2.txt").write_text(f"c-0 {again}\n")
    same = " ".join(map(str, tree.pdf_ids["c-1"]))
    (tree.ali / "pdf.3.txt").write_text(f"c-1 {same}\n")
    (tree.data / "dev" / "text").write_bytes(b"c-1 tr\xc3\xa8s bien\nc-2 tr\xe8s bien\n")
    scp = tree.data / "train" / "feats.scp"
    lines = dict(line.split(" ", 1) for line in scp.read_text().splitlines())
    with_nan = tree.features["b-2"].copy()
    with_nan[3, 2] = np.nan
    kaldiio.save_ark(str(tmp_path / "nan.ark"), {"b-2": with_nan})
    lines["b-2"] = f"{tmp_path / 'nan.ark'}:4"
    lines["b-0"] = "/nowhere/feats.ark:12"
    lines["b-1"] = lines["b-1"].rpartition(":")[0] + ":999999"
    text = "".join(f"{name}\t{location}\n" for name, location in lines.items())
    scp.write_bytes(f"{text}a-1 {lines['a-1']}\n".encode() + b"a-3 \xe8.ark\n")
    corpus = prepare_corpus(tree.source(), tmp_path / "corpus")
    assert [u["id"] for u in read_utterances(corpus, "train")] == ["a-1"]
    (kept,) = read_utterances(corpus, "dev")
    assert (kept["id"], kept["transcript"]) == ("c-1", "très bien")
    failures = failures_of(tmp_path / "corpus")
    for name, reasons in {
        "a-0": ["feats.ark:4: ", "frames of features but"],
        "a-1": ["twice", "feats.ark"],
        "a-2": ["no alignment"],
        "a-3": ["feats.scp: not UTF-8"],
        "b-0": ["/nowhere/feats.ark:12: the archive is missing"],
        "b-1": ["feats.ark:999999: not readable as a Kaldi matrix"],
        "b-2": ["nan.ark:4: features that are not finite"],
        "c-0": ["twice, aligned differently", "pdf.1.gz", "pdf.2.txt"],
        "c-2": ["text: transcript is not UTF-8"],
    }.items():
        line = next(line for line in failures.splitlines() if line.startswith(f"{name}\t"))
        assert all(reason in line for reason in reasons)
    assert len(failures.splitlines()) == 10


@pytest.mark.parametrize("form", ["text.gz", "binary.gz", "binary"])
def test_truncated_alignments_lose_only_what_is_cut_off(tree, tmp_path, form):
    tree.write_alignments(form)
    path = next(tree.ali.iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:-70])
    listed, failures = tree.source().utterances()
    assert len(listed) + len(failures) == 9 and failures
    assert all(path.name in failure.reason for failure in failures)


class Payload:
    """Creates a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_refused_before_they_are_read(tree, tmp_path):
    tree.write_alignments()
    archive = b"a-0 PKL" + pickle.dumps(Payload(tmp_path / "ran"))
    (tree.ali / "pdf.2.ark").write_bytes(archive)
    (tree.ali / "pdf.3.gz").write_bytes(gzip.compress(archive))
    (tmp_path / "pickled.ark").write_bytes(archive)
    for split in ("train", "dev"):
        (tree.data / split / "cmvn.scp").write_text(f"c {tmp_path}/pickled.ark:4\n")
    scp = tree.data / "train" / "feats.scp"
    scp.write_text(re.sub("(?<=a-0 ).*", f"{tmp_path}/pickled.ark:4", scp.read_text()))
    for name, cmvn in (("a-0", "none"), ("c-0", "mean")):
        source = tree.source(cmvn=cmvn)
        utterance = next(u for u in source.utterances()[0] if u.id == name)
        with pytest.raises(UtteranceError, match=r"pickled\.ark:4: .*it begins with b'PKL"):
            source.prepare(utterance)
    damage = read_alignments(str(tree.ali)).damage
    assert [path.split("/")[-1].split()[0] for path in damage] == ["pdf.2.ark", "pdf.3.gz"]
    assert all("it begins with b'PKL" in message for message in damage)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["feats.scp", "cmvn.scp"])
def test_commands_run_only_where_they_are_allowed(tree, tmp_path, file):
    tree.write_alignments()
    ran = tmp_path / "ran"
    for split, speakers in (("train", "ab"), ("dev", "c")):
        folder = tree.data / split
        statistics = {speaker: np.stack([[0.0] * 5 + [1.0]] * 2) for speaker in speakers}
        kaldiio.save_ark(str(folder / "cmvn.ark"), statistics, scp=str(folder / "cmvn.scp"))
        path, number = (folder / file).read_text().split()[1].rsplit(":", 1)
        command = f"touch {ran}; tail -c +{int(number) + 1} {path} |"
        (folder / file).write_text(
            re.sub(r"(?<= ).*:\d+$", command, (folder / file).read_text(), count=1, flags=re.M)
        )
    with pytest.raises(PipeError, match=rf"{file}, [abc].*touch .*\|' is a command.*pipes=True"):
        tree.source(cmvn="mean").utterances()
    with pytest.raises(PipeError, match="is a command"):
        load_matrix(command)
    cut = f"head -c 9 {tree.data}/dev/feats.ark | tail -c +5 |"
    with pytest.raises(UtteranceError, match=r"tail -c .*\(damaged or cut off\)$"):
        load_matrix(cut, pipes=True)
    for missing in ("nosuchtool x |", "nosuchtool x | cat |"):
        with pytest.raises(UtteranceError, match=r"the command .*nosuchtool.*not found\)$"):
            load_matrix(missing, pipes=True)
    with pytest.raises(UtteranceError, match="is missing"):  # kaldiio would run this one too.
        load_matrix(f"| touch {ran}")
    assert not ran.exists()
    corpus = prepare_corpus(tree.source(cmvn="mean", pipes=True), tmp_path / "corpus")
    assert corpus.document["failures"] == 0 and ran.exists()
    for utterance in read_utterances(corpus, "train"):
        np.testing.assert_array_equal(utterance["features"], tree.features[utterance["id"]])


def without_features(tree):
    """Makes audio of each utterance, as long as its alignment, in the place of features."""
    soundfile = pytest.importorskip("soundfile", reason="the extra 'speech' is not installed")
    generator = np.random.default_rng(1)
    for name, ids in tree.pdf_ids.items():
        samples = np.round(generator.normal(0, 2000, 400 + 160 * (len(ids) - 1))) / 32768
        split = "dev" if name[0] == "c" else "train"
        soundfile.write(tree.data / split / f"{name}.flac", samples, 16000)
    for split, speakers in (("train", "ab"), ("dev", "c")):
        folder = tree.data / split
        (folder / "feats.scp").unlink()
        names = [name for name in tree.pdf_ids if name[0] in speakers]
        lines = [f"{name} flac -c -d -s {split}/{name}.flac |\n" for name in names]
        (folder / "wav.scp").write_text("".join(lines))
    tree.write_alignments()


def test_audio_in_the_place_of_features(tree, tmp_path):
    """Paths are relative to a folder above, and FLAC needs neither the command nor a permission."""
    without_features(tree)
    corpus = prepare_corpus(tree.source(), tmp_path / "corpus")
    assert corpus.sample_rate == 16000 and corpus.features["kind"] == "LogMelFilterBank"
    assert corpus.document["failures"] == 0
    for split in ("train", "dev"):
        for utterance in read_utterances(corpus, split):
            samples = read_audio(tree.data / split / f"{utterance['id']}.flac")
            np.testing.assert_array_equal(utterance["features"], filter_bank(16000)(samples))
            np.testing.assert_array_equal(utterance["labels"], tree.pdf_ids[utterance["id"]])
    with pytest.raises(CorpusError, match=r"cmvn=mean: .* no feats\.scp"):
        tree.source(cmvn="mean").utterances()
    low = tree.source(audio_rate=8000)
    utterance = low.utterances()[0][0]
    assert low.feature_settings()["sample_rate"] == low.sample_rate == 8000
    frames = low.prepare(utterance)
    assert frames.file_rate == 16000 and len(frames.features) == utterance.location.pdf_ids.frames


def test_audio_settings_are_of_no_use_to_features(tree):
    tree.write_alignments()
    for arguments in ({"channel": 1}, {"audio_rate": 8000}):
        with pytest.raises(CorpusError, match="has features: a channel and a sampling rate are of"):
            tree.source(**arguments).utterances()


def test_segments_of_recordings(tree, tmp_path):
    without_features(tree)
    folder = tree.data / "train"
    frames = len(tree.pdf_ids["a-1"])
    (folder / "wav.scp").write_text(
        f"one {folder / 'a-0.flac'}\ntwo cat {folder / 'a-1.flac'} |\nthree {folder}/none.wav\n"
    )
    (folder / "segments").write_text(
        f"a-0 one 0.05 0.2\na-1 two 0 {(400 + 160 * (frames - 1)) / 16000} 0\n"
        "a-2 one 0 -1 1\nb-0 four 0 1\nb-1 one 0\nb-2 three 0 1\n"
    )
    tree.pdf_ids["a-0"] = tree.pdf_ids["a-0"][:13]
    tree.write_alignments()
    with pytest.raises(PipeError, match=r"wav\.scp, two: 'cat .*is a command"):
        tree.source().utterances()
    corpus = prepare_corpus(tree.source(pipes=True), tmp_path / "corpus")
    prepared = {u["id"]: u["features"] for u in read_utterances(corpus, "train")}
    whole = {name: read_audio(folder / f"{name}.flac") for name in ("a-0", "a-1")}
    assert prepared.keys() == whole.keys()
    np.testing.assert_array_equal(prepared["a-0"], filter_bank(16000)(whole["a-0"][800:3200]))
    np.testing.assert_array_equal(prepared["a-1"], filter_bank(16000)(whole["a-1"]))
    reasons = dict(line.split("\t") for line in failures_of(tmp_path / "corpus").splitlines())
    for name, reason in {
        "a-2": "channel 2 of 1",
        "b-0": "segments: 'four' is not in wav.scp",
        "b-1": "segments: 'one 0' is not a recording, its start and its end",
        "b-2": "there is no such audio file",
    }.items():
        assert reason in reasons[name]


def test_nothing_to_read(tree, tmp_path):
    with pytest.raises(CorpusError, match=r"no archive named ali\* or pdf\*"):
        tree.source().utterances()
    with pytest.raises(CorpusError, match="alignment_dir is required"):
        KaldiSource(input_dir=str(tree.data)).utterances()
    with pytest.raises(CorpusError, match=r"no feats\.scp"):
        KaldiSource(input_dir=str(tmp_path / "kaldi" / "ali"), alignment_dir="x").utterances()
    (tree.ali / "pdf.1.gz").write_bytes(b"\x1f\x8bnonsense")
    with pytest.raises(CorpusError, match=r"nothing could be read; .*pdf\.1\.gz"):
        tree.source().utterances()


def test_cmvn_of_other_dimensions():
    with pytest.raises(ValueError, match="shape"):
        apply_cmvn(np.zeros((3, 4), np.float32), np.zeros((2, 4)), True)


def test_the_detour_through_kaldi_changes_nothing(tmp_path):
    """A corpus from audio, written as a Kaldi directory and prepared again, trains the same."""
    pytest.importorskip("pocketsphinx", reason="the extra 'speech' is not installed")
    pytest.importorskip("espeakng_loader", reason="the extra 'speech' is not installed")
    direct = prepare_corpus(SyntheticSource(count=6), tmp_path / "direct")
    pdf_ids = {}
    for split in ("train", "dev"):
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        with kaldiio.WriteHelper(f"ark,scp:{folder / 'feats.ark'},{folder / 'feats.scp'}") as write:
            for utterance in reversed(list(read_utterances(direct, split))):
                write(utterance["id"], utterance["features"])
                pdf_ids[utterance["id"]] = utterance["labels"].astype(np.int32)
    (tmp_path / "ali").mkdir()
    kaldiio.save_ark(str(tmp_path / "ali" / "pdf.1.ark"), pdf_ids)
    source = KaldiSource(input_dir=str(tmp_path / "data"), alignment_dir=str(tmp_path / "ali"))
    detour = prepare_corpus(source, tmp_path / "detour")
    assert detour.num_states == direct.num_states
    np.testing.assert_allclose(detour.mean, direct.mean, rtol=1e-6)
    np.testing.assert_allclose(detour.variance, direct.variance, rtol=1e-6)
    for split in ("train", "dev"):
        both = (read_utterances(corpus, split) for corpus in (direct, detour))
        for expected, utterance in zip(*both, strict=True):
            assert utterance["id"] == expected["id"]
            np.testing.assert_array_equal(utterance["features"], expected["features"])
            np.testing.assert_array_equal(utterance["labels"], expected["labels"])


def test_transcripts_in_the_place_of_alignments(tree, tmp_path):
    for features in tree.data.rglob("feats.scp"):
        names = [line.split()[0] for line in features.read_text().splitlines()]
        said = "".join(f"{name} Abba ab\n" for name in names)
        (features.parent / "text").write_text(said)
    source = KaldiSource(input_dir=str(tree.data), labels="characters")
    corpus = prepare_corpus(source, tmp_path / "corpus")
    assert corpus.alphabet == [" ", "a", "b"]
    utterance = next(read_utterances(corpus, "dev"))
    assert utterance["labels"].tolist() == [2, 3, 3, 2, 1, 2, 3]
