"""A Kaldi recipe's decoding graph, `HCLG.fst`, on an acoustic model of its pdf-ids.

Its input labels are transition-ids, whose pdf-ids `final.mdl` tells; its output labels are numbers
of `words.txt`. When words begin and end is known by `phones/word_boundary.int`; without it, a word
lasts from its label to the next.
"""

import os
import struct
from pathlib import Path

import numpy as np

from command_line import CommandError
from recipes.word_graph import MAGIC, WordGraph, wheels

ARC = np.dtype("<i4, <i4, <f4, <i4")
IN_WORDS = {"begin", "internal", "end", "singleton"}
KALDI_SCALE = 0.1


def kaldi_graph(graph, transition_model, model_states, **options):
    """The `WordGraph` of a recipe.

    Args:
        graph: `HCLG.fst`, or its folder; `words.txt` stands beside it.
        transition_model: a `final.mdl` of the tree that the acoustic model's pdf-ids are of; `None`
            is the one beside the graph or in the folder above.
        model_states: what each of the acoustic model's outputs is, as in `corpus.json`.
        **options: of the `WordGraph`.
    """
    from keras_bnrnn.data.errors import CorpusError
    from keras_bnrnn.data.speech.kaldi.archives import read_table
    from keras_bnrnn.data.speech.kaldi.models import read_transition_model

    path = Path(graph) / "HCLG.fst" if Path(graph).is_dir() else Path(graph)
    folder = path.parent
    if transition_model is None:
        places = [folder / "final.mdl", folder.resolve().parent / "final.mdl"]
        transition_model = next((one for one in places if one.exists()), None)
        if transition_model is None:
            raise CommandError(
                f"--graph={graph}: no final.mdl beside it or in the folder above; name it by "
                "--transition_model"
            )
    boundaries = folder / "phones" / "word_boundary.int"
    if not (folder / "words.txt").exists():
        raise CommandError(f"--graph={graph}: no words.txt beside it")
    try:
        model = read_transition_model(transition_model)
        words = {int(number): word for word, number in read_table(folder / "words.txt", True)}
        kinds = {int(phone): kind for phone, kind in read_table(boundaries).items()}
    except (CorpusError, ValueError) as error:
        raise CommandError(f"--graph={graph}: {error}") from None
    numbers = [one.get("pdf", one.get("senone")) for one in model_states]
    if numbers != list(range(model.num_pdfs)):
        raise CommandError(
            f"--graph={graph} is for a model of the {model.num_pdfs} pdf-ids of "
            f"{transition_model}; this one has {len(numbers)} outputs, of another tree or kind"
        )
    fst, inputs, outputs = read_graph(path)
    transitions = len(model.pdf_of) - 1
    if not 0 <= inputs.min() <= inputs.max() <= transitions:
        raise CommandError(
            f"{path} has labels from {inputs.min()} to {inputs.max()}, and {transition_model} "
            f"transition-ids from 1 to {transitions}: one was made with another tree, or it is no "
            "HCLG"
        )
    unnamed = set(np.unique(outputs).tolist()) - words.keys() - {0}
    if unnamed:
        raise CommandError(f"{folder / 'words.txt'} lacks the label {min(unnamed)} of {path}")
    states = [
        (phone, state) for phone, state, *_ in model.tuples for _ in model.topology[phone][state]
    ]

    def spans(labels, ends):
        return word_spans([states[k - 1] for k in labels], ends, kinds)

    return WordGraph(fst, words, model.pdf_of[1:], spans, **options)


def read_graph(path):
    """A graph of kaldifst, and the input and the output labels of its arcs.

    Raises:
        CommandError: it is no FST that a decoder takes, or damaged.
    """
    kaldifst, _ = wheels()
    with open(path, "rb") as file:
        try:
            [magic] = struct.unpack("<i", file.read(4))
            kind, weights = (file.read(min(*struct.unpack("<i", file.read(4)), 99)) for _ in "12")
            count = struct.unpack("<iiQqqq", file.read(40))[-1]
        except (struct.error, ValueError):
            magic = None
    if magic != MAGIC:
        raise CommandError(f"{path} is no binary FST; fstcompile makes one of OpenFst's text")
    if kind not in (b"vector", b"const") or weights != b"standard":
        found = b" of ".join([kind, weights]).decode("ascii", "replace")
        raise CommandError(
            f"{path} is an FST of the kind {found}; fstconvert --fst_type=const makes one of kind "
            "const, and its arcs must be standard"
        )
    fst = kaldifst.StdFst.read(str(path))
    if fst is None or fst.start < 0:
        raise CommandError(f"{path} is {'damaged or cut off' if fst is None else 'empty'}")
    if kind == b"const":  # Its file ends with its arcs.
        arcs = np.memmap(path, ARC, "r", os.path.getsize(path) - count * ARC.itemsize)
        return fst, arcs["f0"], arcs["f1"]
    arcs = [
        (arc.ilabel, arc.olabel)
        for state in kaldifst.StateIterator(fst)
        for arc in kaldifst.ArcIterator(fst, state)
    ]
    inputs, outputs = np.array(arcs or [(0, 0)]).T
    return fst, inputs, outputs


def word_spans(states, ends, kinds):
    """When words are spoken.

    Args:
        states: `(phone, state)` of each frame.
        ends: of each word, the frame after that of its label.
        kinds: `{phone: its place in a word}`; the words cannot be told apart by other phones.

    Returns:
        `[(start, end)]`, frames.
    """
    spans, before = [], (None, 0)
    for frame, (phone, state) in enumerate(states):
        anew = phone != before[0] or state < before[1]
        if anew and kinds.get(phone) in ("begin", "singleton"):
            spans.append((frame, frame + 1))
        elif spans and kinds.get(phone) in IN_WORDS:
            spans[-1] = spans[-1][0], frame + 1
        before = phone, state
    if len(spans) != len(ends):  # Without kinds, or words of noise.
        starts = [max(end - 1, 0) for end in ends]
        spans = list(zip(starts, [*starts[1:], len(states)], strict=True)) if ends else []
    return spans
