"""A transition model of Kaldi's for the tests, in text form, and what makes it binary."""

import struct

# Two phones: 1 is a silence of one state, 2 has two; in the order of Kaldi's text form.
MODEL = """<TransitionModel>
<Topology>
<TopologyEntry>
<ForPhones> 1 </ForPhones>
<State> 0 <PdfClass> 0 <Transition> 0 0.9 <Transition> 1 0.1 </State>
<State> 1 </State>
</TopologyEntry>
<TopologyEntry>
<ForPhones>
2
</ForPhones>
<State> 0 <PdfClass> 0 <Transition> 0 0.5 <Transition> 1 0.5 </State>
<State> 1 <PdfClass> 1 <Transition> 1 0.5 <Transition> 2 0.5 </State>
<State> 2 </State>
</TopologyEntry>
</Topology>
<Triples> 3
1 0 2
2 0 0
2 1 4
</Triples>
<LogProbs>
 [ 0 -0.1 -2.3 -0.7 -0.7 -0.7 -0.7 ]
</LogProbs>
</TransitionModel>
"""


def binary_model(model, own_loops=False):
    """A `TransitionModel` as Kaldi writes it without `--binary=false`.

    Args:
        own_loops: in the form whose self-loops have pdfs of their own.
    """

    def integers(*numbers):
        return b"".join(b"\4" + struct.pack("<i", number) for number in numbers)

    def vector(numbers):
        return integers(len(numbers)) + struct.pack(f"<{len(numbers)}i", *numbers)

    entries = [*model.topology.values()]
    entry_of = [-1] * (max(model.topology) + 1)
    for number, phone in enumerate(model.topology):
        entry_of[phone] = number
    parts = [b"\0B<TransitionModel> <Topology> ", vector([*model.topology]), vector(entry_of)]
    parts.append(integers(*[-1] * own_loops, len(entries)))
    for states in entries:
        parts.append(integers(len(states)))
        for number, destinations in enumerate(states):
            pdf_class = number if destinations else -1
            parts.append(integers(*[pdf_class] * (1 + own_loops), len(destinations)))
            for destination in destinations:
                parts.append(integers(destination) + b"\4" + struct.pack("<f", 0.5))
    form = b"Tuples" if own_loops else b"Triples"
    parts += [b"</Topology> <", form, b"> ", integers(len(model.tuples))]
    for one in model.tuples:
        parts.append(integers(*one[: 3 + own_loops]))
    count = len(model.pdf_of)
    parts += [b"</", form, b"> <LogProbs> FV ", integers(count), bytes(4 * count)]
    parts.append(b"</LogProbs> </TransitionModel> <DIMENSION> ")
    return b"".join(parts)
