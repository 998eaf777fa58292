"""Transition models in both forms, and the phones that pdfs are named after."""

import dataclasses

import pytest

from kaldi_models import MODEL, binary_model
from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.kaldi.models import (
    TransitionModel,
    read_phone_names,
    read_transition_model,
)

OWN_LOOPS = MODEL.replace("<Triples> 3\n1 0 2\n2 0 0\n2 1 4\n</Triples>", "<Tuples> 1\n2 1 4 6\n")


def read(tmp_path, contents):
    path = tmp_path / "final.mdl"
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    return read_transition_model(path)


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_pdf_of_a_transition(tmp_path, binary):
    model = read(tmp_path, MODEL)
    if binary:
        text, model = model, read(tmp_path, binary_model(model))
        assert model == text
    assert model.pdf_of.tolist() == [-1, 2, 2, 0, 0, 4, 4] and model.num_pdfs == 5


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_self_loops_with_pdfs_of_their_own(tmp_path, binary):
    model = read(tmp_path, OWN_LOOPS)
    if binary:
        model = read(tmp_path, binary_model(model, own_loops=True))
    assert model.pdf_of.tolist() == [-1, 6, 4]


@pytest.mark.parametrize("text", ["", "<Topology>", MODEL[:300], MODEL.replace("2 1 4", "3 1 4")])
def test_texts_that_cannot_be_read(tmp_path, text):
    with pytest.raises(CorpusError, match=r"final\.mdl: not a transition model"):
        read(tmp_path, text)


def test_binary_forms_that_cannot_be_read(tmp_path):
    whole = binary_model(read(tmp_path, MODEL))
    assert read(tmp_path, whole)
    damaged = [whole[:length] for length in range(2, whole.index(b"<DIMENSION>"), 7)]
    # Another token, numbers of eight bytes, a count beyond the file, an impossible pdf, too few
    # probabilities.
    damaged += [whole.replace(b"<Triples>", b"<Quadruples>"), whole.replace(b"\4", b"\10", 1)]
    damaged += [whole.replace(b"\2\0\0\0", b"\2\0\0\x7f", 1)]
    damaged += [whole.replace(b"FV \4\7\0\0\0", b"FV \4\6\0\0\0")]
    model = read(tmp_path, MODEL)
    damaged.append(binary_model(dataclasses.replace(model, tuples=[(1, 0, -2, -2)])))
    for contents in damaged:
        assert contents != whole
        with pytest.raises(CorpusError, match=r"final\.mdl: not a transition model"):
            read(tmp_path, contents)


def names_of(tuples, names, backwards=()):
    """Names of the pdfs' states, where all phones have three states."""
    forwards = [[0, 1], [1, 2], [2, 3], []]
    topology = dict.fromkeys(names, forwards)
    topology |= {phone: [[0, 1], [1, 0, 2], []] for phone in backwards}
    model = TransitionModel(topology, [(*one, one[2]) for one in tuples])
    return [state.name for state in model.states(names)]


def test_phones_and_positions_of_pdfs():
    tuples = [(1, 0, 0), (1, 1, 1), (1, 2, 2), (2, 0, 3), (2, 1, 3)]
    assert names_of(tuples, {1: "AH", 2: "SIL"}, [2]) == ["AH.0.0", "AH.1.1", "AH.2.2", "SIL.3"]
    # Where a state is not known of one pdf, it is of none of the phone's.
    assert names_of([*tuples, (1, 1, 0)], {1: "AH", 2: "SIL"})[:3] == ["AH.0", "AH.1", "AH.2"]
    assert names_of([(1, 0, 1)], {1: "AH"}) == ["pdf-0", "AH.0.1"]


def test_variants_of_a_phone():
    in_word = {k: f"AH_{place}" for k, place in enumerate("BEIS", start=1)}
    tuples = [(k, 0, k - 1) for k in in_word]
    assert names_of(tuples, in_word) == ["AH.0.0", "AH.0.1", "AH.0.2", "AH.0.3"]
    # S has all variants, but SIL is none of them.
    silence = {k: f"S_{place}" for k, place in enumerate("BEIS", start=1)} | {5: "SIL"}
    assert names_of([(1, 0, 0), (5, 0, 1)], silence) == ["S.0.0", "SIL.0.1"]
    assert names_of([(1, 0, 0)], {1: "r_S"}) == ["r_S.0.0"]
    stressed = {1: "AH0", 2: "AH1", 3: "B", 4: "IH0", 5: "IH1", 6: "SPN", 7: "NSN"}
    tuples = [
        (1, 0, 0),
        (2, 0, 0),
        (2, 1, 1),
        (3, 0, 2),
        (4, 0, 3),
        (5, 0, 4),
        (6, 0, 5),
        (7, 0, 5),
    ]
    assert names_of(tuples, stressed) == (
        ["AH.0.0", "AH.1.1", "B.0.2", "IH0.0.3", "IH1.0.4", "NSN/SPN.0.5"]
    )


def test_lists_of_phones(tmp_path):
    path = tmp_path / "phones.txt"
    path.write_text("<eps> 0\nSIL 1\nAH 2\n#0 3\n")
    assert read_phone_names(path) == {1: "SIL", 2: "AH"}
    path.write_text("SIL one\n")
    with pytest.raises(CorpusError, match=r"phones\.txt: not a list of phones"):
        read_phone_names(path)
