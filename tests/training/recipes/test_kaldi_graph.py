"""A graph of Kaldi's kind, made by hand, against every path through it."""

import numpy as np
import pytest

import kaldi_models
from command_line import CommandError
from recipes.phone_model import Segment

kaldifst = pytest.importorskip("kaldifst", reason="the extra 'decode' is not installed")
from recipes.kaldi_graph import kaldi_graph  # noqa: E402

# Silence, then the phones of words; each has a state or two, whose pdfs are all different.
PHONES = {1: "nonword", 2: "begin", 3: "end", 4: "singleton"}
PDFS = {(1, 0): 4, (2, 0): 0, (2, 1): 3, (3, 0): 1, (4, 0): 2}
WORDS = {"two": (1, [2, 3]), "one": (2, [4])}
STATES = [{"name": f"pdf-{k}", "pdf": k} for k in range(5)]
ANY = 0.5  # What a word costs.


def topology(phone):
    states = sum(one == phone for one, _ in PDFS)
    lines = [f"<TopologyEntry> <ForPhones> {phone} </ForPhones>"]
    for k in range(states):
        lines.append(
            f"<State> {k} <PdfClass> {k} <Transition> {k} .5 <Transition> {k + 1} .5 </State>"
        )
    return "\n".join([*lines, f"<State> {states} </State> </TopologyEntry>"])


def model_text():
    triples = [f"{phone} {state} {pdf}" for (phone, state), pdf in PDFS.items()]
    return "\n".join(
        ["<TransitionModel>", "<Topology>", *map(topology, PHONES), "</Topology>"]
        + [
            f"<Triples> {len(triples)}",
            *triples,
            "</Triples>",
            "<LogProbs>",
            "[ 0 ]",
            "</LogProbs>",
        ]
    )


def arcs_of_graph():
    """`(source, target, transition-id, word, cost)`: words in any order, silence between them."""
    ids = {pair: 2 * number + 1 for number, pair in enumerate(PDFS)}  # Of the loop; then onwards.
    arcs, states = [], 1
    for label, phones, cost in [*((*word, ANY) for word in WORDS.values()), (0, [1], 0.1)]:
        chain = [pair for phone in phones for pair in PDFS if pair[0] == phone]
        source = 0
        for number, pair in enumerate(chain):
            # A state of its own for the self-loop, entered without a frame.
            here, states = states, states + 1
            first = number == 0
            arcs.append((source, here, 0, label if first else 0, cost if first else 0.0))
            arcs.append((here, here, ids[pair], 0, 0.0))
            source, states = (0, states) if number == len(chain) - 1 else (states, states + 1)
            arcs.append((here, source, ids[pair] + 1, 0, 0.0))
    return arcs


@pytest.fixture
def recipe(tmp_path):
    """`exp/tri/graph` with the graph, and `exp/tri/final.mdl`."""
    folder = tmp_path / "exp" / "tri" / "graph"
    (folder / "phones").mkdir(parents=True)
    (folder.parent / "final.mdl").write_text(model_text())
    (folder / "words.txt").write_text("<eps> 0\ntwo 1\none 2\n#0 3\n")
    kinds = "".join(f"{phone} {kind}\n" for phone, kind in PHONES.items())
    (folder / "phones" / "word_boundary.int").write_text(kinds)
    write_graph(folder / "HCLG.fst")
    return folder


def write_graph(path, arcs=None, final="0\n", **kind):
    lines = "".join("{} {} {} {} {}\n".format(*arc) for arc in arcs or arcs_of_graph())
    kaldifst.compile(lines + final, **kind).write(str(path))


def best_of_all(scores):
    """The words of the best path, and its cost."""
    pdfs = [pdf for pdf in PDFS.values() for _ in "12"]
    best = (np.inf, None)
    ways = [(0, 0, 0.0, ())]
    while ways:
        state, time, cost, words = ways.pop()
        if state == 0 and time == len(scores):
            best = min(best, (cost, words))
        for source, target, label, word, price in arcs_of_graph():
            if source == state and time + bool(label) <= len(scores):
                acoustic = scores[time, pdfs[label - 1]] if label else 0.0
                said = (*words, word) if word else words
                # Silence again and again takes no frame here: words and silences do.
                if label or target != 0:
                    ways.append((target, time + bool(label), cost + price - acoustic, said))
    return best


@pytest.mark.parametrize("kind", ["const", "vector"])
def test_the_best_path_of_all(recipe, kind):
    write_graph(recipe / "HCLG.fst", fst_type=kind)
    names = {number: word for word, (number, _) in WORDS.items()}
    priors = np.log([0.1, 0.2, 0.3, 0.25, 0.15])
    graph = kaldi_graph(recipe, None, STATES, log_priors=priors, acoustic_scale=0.7, beam=100.0)
    rng, found = np.random.default_rng(0), set()
    for _ in range(10):
        scores = rng.normal(size=(7, 5)) * 2.0
        search = graph.search()
        search.extend(scores[:4])
        search.extend(scores[4:])
        words = tuple(word for word, *_ in search.finish())
        _, expected = best_of_all(0.7 * (scores - priors))
        assert words == tuple(names[number] for number in expected)
        assert search.complete
        found.update(words)
    assert found == set(WORDS)


def scores_of(pdfs):
    return np.where(np.arange(5) == np.array(pdfs)[:, np.newaxis], 0.0, -9.0)


def spoken(graph, pdfs):
    search = graph.search()
    search.extend(scores_of(pdfs))
    return search.finish()


def test_when_words_are_spoken(recipe):
    pdfs = [4, 4, 0, 3, 3, 1, 1, 2, 4, 4, 4, 2, 2, 0, 0, 3, 1, 4]
    graph = kaldi_graph(recipe / "HCLG.fst", recipe.parent / "final.mdl", STATES)
    assert spoken(graph, pdfs) == [
        *(Segment("two", 2, 7), Segment("one", 7, 8), Segment("one", 11, 13)),
        Segment("two", 13, 17),
    ]
    assert spoken(graph, []) == [] and spoken(graph, [4, 4]) == []
    (recipe / "phones" / "word_boundary.int").unlink()
    words = spoken(kaldi_graph(recipe, None, STATES), pdfs)
    assert [word for word, *_ in words] == ["two", "one", "one", "two"]
    starts = [start for _, start, _ in words]
    np.testing.assert_allclose(starts, [2, 7, 11, 13], atol=1)
    assert [end for *_, end in words] == [*starts[1:], len(pdfs)]


def test_the_recipes_files_are_looked_for(recipe):
    (recipe / "final.mdl").write_text(kaldi_models.MODEL)
    states = [{"name": f"SIL.0.{k}", "phone": "SIL", "senone": k} for k in range(5)]
    # The transition-ids of the graph are more than that model's.
    with pytest.raises(CommandError, match=r"labels from 0 to 10, and .*from 1 to 6: one was"):
        kaldi_graph(recipe, None, states)
    (recipe / "final.mdl").unlink()
    kaldi_graph(recipe, None, states)
    (recipe.parent / "final.mdl").unlink()
    with pytest.raises(CommandError, match=r"no final\.mdl beside it .*--transition_model"):
        kaldi_graph(recipe, None, states)


@pytest.mark.parametrize("name", ["HCLG.fst", "words.txt", "phones/word_boundary.int"])
def test_files_that_are_something_else(recipe, name):
    (recipe / name).write_text("no such file\n")
    with pytest.raises(CommandError, match=r"no binary FST|--graph=.*invalid literal"):
        kaldi_graph(recipe, None, STATES)


def test_bad_graphs(recipe):
    graph = recipe / "HCLG.fst"

    def assert_refused(message, states=STATES):
        with pytest.raises(CommandError, match=message):
            kaldi_graph(recipe, None, states)

    assert_refused("is for a model of the 5 pdf-ids of .* this one has 4 outputs", STATES[:4])
    assert_refused("this one has 5 outputs", [{"name": "AH", "phone": "AH"}] * 5)
    for kind in ("const", "vector"):
        write_graph(graph, fst_type=kind)
        whole = graph.read_bytes()
        for length in (0, 3, 20, 60, len(whole) // 2, len(whole) - 1):
            graph.write_bytes(whole[:length])
            assert_refused("is no binary FST|is damaged or cut off")
    graph.write_bytes(whole.replace(b"standard", b"log64___"))
    assert_refused("an FST of the kind vector of log64___")
    write_graph(graph, [(0, 0, 11, 0, 0.0)])
    assert_refused("labels from 11 to 11, and .*transition-ids from 1 to 10")
    write_graph(graph, [(0, 0, 1, 4, 0.0)])
    assert_refused(r"words\.txt lacks the label 4 of")
    (recipe / "words.txt").unlink()
    assert_refused(r"no words\.txt beside it")
    (recipe / "words.txt").write_text("a 1\n")
    kaldifst.compile("").write(str(graph))
    assert_refused("is empty")
