"""Kaldi's transition models: which pdf a transition-id stands for, and whose phone's it is.

`final.mdl` begins with the transition model, in text or binary form: for each phone a topology
(of each state, where its transitions lead), and the tuples of phone, state, pdf and, where the
self-loop has one of its own, that pdf. Transition-ids number the tuples' transitions from 1.
"""

import collections
import functools
import os
import re
import struct
from dataclasses import dataclass

import numpy as np

from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.alignment import State
from keras_bnrnn.data.speech.kaldi.archives import read_table

WORD_POSITIONS = ("_B", "_E", "_I", "_S")
STRESS = re.compile(r"(?<=[A-Z])[0-2]$")


@dataclass(frozen=True)
class TransitionModel:
    """What the ids in alignments mean.

    Attributes:
        topology: `{phone: [[destination, …] of each state]}`.
        tuples: `[(phone, state, pdf, pdf of the self-loop)]`, in the order of transition-ids.
    """

    topology: dict
    tuples: list

    @functools.cached_property
    def pdf_of(self):
        """Pdf-ids indexed by transition-id, int32; the ids begin at 1."""
        pdf_of = [-1]
        for phone, state, forward, loop in self.tuples:
            for destination in self.topology[phone][state]:
                pdf_of.append(loop if destination == state else forward)
        return np.array(pdf_of, np.int32)

    @property
    def num_pdfs(self):
        """Number of pdfs."""
        return 1 + int(self.pdf_of.max())

    def pdfs(self, ids):
        """Pdf-ids of transition-ids; -1 for an impossible one, to fail with its utterance."""
        inside = (ids > 0) & (ids < len(self.pdf_of))
        return np.where(inside, self.pdf_of[np.where(inside, ids, 0)], -1).astype(np.int32)

    def states(self, names):
        """The `State` of each pdf.

        A phone's variants by place in the word (`AH_B`, `AH_E`, `AH_I`, `AH_S`) are one. So are
        phones that share a pdf: by their name without stress if they differ in it alone, else by
        all their names. Positions are known of phones whose states are passed in their order.

        Args:
            names: `{number: name}` of the phones.

        Raises:
            CorpusError: a phone has no name.
        """
        unnamed = {phone for phone, *_ in self.tuples if phone not in names}
        if unnamed:
            raise CorpusError(f"no name for the phone {min(unnamed)} of the model")
        plain = _without_word_positions(names)
        uses = collections.defaultdict(set)  # of each pdf: which states of which phones
        for phone, state, *pdfs in self.tuples:
            position = state if _in_order(self.topology[phone]) else -1
            for pdf in pdfs:
                uses[pdf].add((plain[phone], position))
        group_of = _groups({name for name, _ in used} for used in uses.values())
        found = {}
        for pdf, used in uses.items():
            positions = {position for _, position in used}
            group = group_of[next(iter(used))[0]]
            found[pdf] = (group, positions.pop() if len(positions) == 1 else -1)
        vague = {group for group, position in found.values() if position < 0}
        return [
            State(pdf, found[pdf][0], -1 if found[pdf][0] in vague else found[pdf][1])
            if pdf in found
            else State(pdf)
            for pdf in range(self.num_pdfs)
        ]


def _in_order(states):
    """Whether no transition leads back, as the silence's do in most recipes."""
    return all(destination >= k for k, leads_to in enumerate(states) for destination in leads_to)


def _without_word_positions(names):
    """The names, less the place in the word where there is one for each place."""
    known = set(names.values())

    def plain(name):
        stem = name[:-2]
        positional = name.endswith(WORD_POSITIONS)
        return stem if positional and known >= {stem + p for p in WORD_POSITIONS} else name

    return {number: plain(name) for number, name in names.items()}


def _groups(sets):
    """Names that occur in one set, directly or by way of others, joined: `{name: joint name}`."""
    group_of = {}
    for one in sets:
        joint = set(one).union(*(group_of.get(name, ()) for name in one))
        group_of.update(dict.fromkeys(joint, joint))
    return {name: _joint_name(group) for name, group in group_of.items()}


def _joint_name(group):
    plain = {STRESS.sub("", name) for name in group} if len(group) > 1 else group
    return "/".join(sorted(plain if len(plain) == 1 else group))


def read_phone_names(path):
    """`{number: name}` of a `phones.txt`, without disambiguation symbols.

    Raises:
        CorpusError: a line is not a name and a number.
    """
    try:
        return {
            int(number): name
            for name, number in read_table(path, repeated=True)
            if not name.startswith(("<eps>", "#"))
        }
    except ValueError as error:
        raise CorpusError(f"{path}: not a list of phones and their numbers ({error})") from error


def read_transition_model(path):
    """Reads the transition model that a model file begins with, in text or binary form.

    Raises:
        CorpusError: the file is not of this form.
    """
    try:
        with open(path, "rb") as file:
            if file.read(2) == b"\0B":
                return _read_binary(_Binary(file))
            file.seek(0)
            # Line by line: the Gaussians that follow may be of hundreds of megabytes.
            return _read_text(token.decode("utf-8") for line in file for token in line.split())
    except (StopIteration, ValueError, LookupError, struct.error) as error:
        reason = f" ({error})" if isinstance(error, ValueError) else ""
        raise CorpusError(f"{path}: not a transition model that is understood{reason}") from error


def _read_text(tokens):
    topology, tuples = {}, []
    for token in tokens:
        if token == "<TopologyEntry>":
            _read_topology_entry(tokens, topology)
        elif token in ("<Triples>", "<Tuples>"):
            width = 3 if token == "<Triples>" else 4
            for _ in range(int(next(tokens))):
                tuples.append([int(next(tokens)) for _ in range(width)])
            break
    return _checked(topology, tuples)


def _read_topology_entry(tokens, topology):
    """Adds `{phone: [[destination, …] of each state]}` of one `<TopologyEntry>`."""
    phones, states = [], []
    for token in tokens:
        if token == "<ForPhones>":
            while (token := next(tokens)) != "</ForPhones>":
                phones.append(int(token))
        elif token == "<State>":
            if int(next(tokens)) != len(states):
                raise ValueError("states out of order")
            states.append([])
        elif token == "<Transition>":
            states[-1].append(int(next(tokens)))
            next(tokens)  # its probability
        elif token == "</TopologyEntry>":
            break
    topology.update(dict.fromkeys(phones, states))


def _read_binary(file):
    file.expect("<TransitionModel>", "<Topology>")
    phones, entry_of = file.integers(), file.integers()
    entries = file.integer()
    # A mark that self-loops have pdfs of their own, as in chain models.
    own_loops = entries == -1
    if own_loops:
        entries = file.integer()
    states_of = [[file.transitions(own_loops) for _ in file.count()] for _ in range(entries)]
    form = "<Tuples>" if own_loops else "<Triples>"
    file.expect("</Topology>", form)
    width = 4 if own_loops else 3
    tuples = [[file.integer() for _ in range(width)] for _ in file.count()]
    file.expect(form.replace("<", "</"), "<LogProbs>")
    topology = {phone: states_of[entry_of[phone]] for phone in phones}
    model = _checked(topology, tuples)
    if file.length_of_floats() != len(model.pdf_of):
        raise ValueError("transitions without a probability")
    file.expect("</LogProbs>", "</TransitionModel>")
    return model


def _checked(topology, tuples):
    """The model of these; an exception where they make none."""
    if not tuples or min(map(min, tuples)) < 0:
        raise ValueError("no transition states, or impossible ones")
    model = TransitionModel(
        topology, [(phone, state, pdf, *(own or [pdf])) for phone, state, pdf, *own in tuples]
    )
    if len(model.pdf_of) == 1:
        raise ValueError("no transitions")
    return model


class _Binary:
    """Kaldi's tokens and numbers in binary form; ValueError where something else stands."""

    def __init__(self, file):
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def expect(self, *tokens):
        for token in tokens:
            found = self._file.read(len(token) + 1)
            if found != f"{token} ".encode():
                raise ValueError(f"{found!r} in the place of {token}")

    def integer(self):
        self._width(4)
        return struct.unpack("<i", self._file.read(4))[0]

    def integers(self):
        self._width(4)
        [count] = struct.unpack("<i", self._file.read(4))
        return struct.unpack(f"<{count}i", self._file.read(4 * self._within(count)))

    def count(self):
        return range(self._within(self.integer()))

    def transitions(self, own_loops):
        """Destinations of a state's transitions."""
        for _ in range(1 + own_loops):
            self.integer()  # class of the pdf
        destinations = []
        for _ in self.count():
            destinations.append(self.integer())
            self._file.read(self._width(4, 8))  # its probability
        return destinations

    def length_of_floats(self):
        """Passes over a vector."""
        token = self._file.read(3)
        width = {b"FV ": 4, b"DV ": 8}[token]
        count = self.integer()
        self._file.seek(width * self._within(count), os.SEEK_CUR)
        return count

    def _width(self, *allowed):
        [width] = self._file.read(1) or [0]
        if width not in allowed:
            raise ValueError(f"a number of {width} bytes")
        return width

    def _within(self, count):
        if not 0 <= count <= self._size:
            raise ValueError(f"{count} numbers")
        return count
