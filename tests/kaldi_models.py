"""A transition model of Kaldi's for the tests, in text form, and what makes it binary."""

import itertools
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


def write_recipe(folder, num_pdfs):
    """`tri/final.mdl` and the folder `tri/graph`: a word W0, W1, … for each pdf.

    Words last four frames or more and follow each other in any order.
    """
    import kaldifst

    graph = folder / "tri" / "graph"
    graph.mkdir(parents=True)
    entry = "<ForPhones> {} </ForPhones> <State> 0 <PdfClass> 0 <Transition> 0 .5 <Transition> 1 .5"
    entry = f"<TopologyEntry> {entry} </State> <State> 1 </State> </TopologyEntry>"
    model = ["<TransitionModel>", "<Topology>", *(entry.format(k + 1) for k in range(num_pdfs))]
    model += ["</Topology>", f"<Triples> {num_pdfs}", *(f"{k + 1} 0 {k}" for k in range(num_pdfs))]
    model += ["</Triples>", "<LogProbs>", " [ 0 ]", "</LogProbs>", "</TransitionModel>", ""]
    (graph.parent / "final.mdl").write_text("\n".join(model))
    (graph / "words.txt").write_text("".join(f"W{k} {k + 1}\n" for k in range(num_pdfs)))
    lines = ["0"]
    for k in range(num_pdfs):
        states = [0, *range(3 * k + 1, 3 * k + 4), 0]
        for source, target in itertools.pairwise(states):
            lines.append(f"{source} {target} {2 * k + 1} {0 if source else k + 1}")
        lines.append(f"{states[1]} {states[1]} {2 * k + 1} 0")
    fst = kaldifst.compile("\n".join([*lines, ""]), fst_type="const")
    fst.write(str(graph / "HCLG.fst"))
    return graph
