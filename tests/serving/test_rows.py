"""Every input and output has a row for each example, as REST's rows and a server's batches need."""

import numpy as np
import pytest
import tensorflow as tf

from untrained import noise, wav

ROWS = 2
FIRST = {"speech": "serve", "language": "score"}


def examples(tmp_path):
    """A row for each of two examples, by the inputs' names; states are added."""
    rng = np.random.default_rng(0)
    return {
        "features": rng.normal(size=(ROWS, 5, 123)).astype("float32"),
        "lengths": [5, 5],
        "waveform": np.stack([noise(4000), noise(4000, 1)]),
        "audio": [wav(noise(4000), tmp_path), wav(noise(3000), tmp_path)],
        "sentences": ["the statement", "an error is"],
        "prefix": ["the", "an error"],
        "k": [3, 1],
        "tokens": [[2, 3, 4], [5, 6, 7]],
    }


def called(signature, given):
    specs = signature.structured_input_signature[1]
    values = {name: tf.constant(value, specs[name].dtype) for name, value in given.items()}
    return {name: value.numpy() for name, value in signature(**values).items()}


@pytest.mark.parametrize("kind", ["speech", "language"])
def test_a_batch_is_its_rows(request, kind, tmp_path):
    exported, values = request.getfixturevalue(kind), examples(tmp_path)
    for name, signature in exported.signatures.items():
        given = {}
        for one, spec in signature.structured_input_signature[1].items():
            assert spec.shape.rank is None or spec.shape[0] is None, f"{one} of {name} has no rows"
            state = np.full((ROWS, *spec.shape[1:]), 0.1) if one not in values else None
            given[one] = values.get(one, state)
        if "waveform" in given:
            given["lengths"] = [4000, 4000]
        whole = called(signature, given)
        for row in range(ROWS):
            alone = called(signature, {one: value[row : row + 1] for one, value in given.items()})
            for one, [value] in alone.items():
                here = whole[one][row][tuple(slice(size) for size in value.shape)]
                if value.dtype.kind == "f":
                    np.testing.assert_allclose(here, value, atol=1e-4, err_msg=f"{name}.{one}")
                else:
                    np.testing.assert_array_equal(here, value, f"{name}.{one}")


@pytest.mark.parametrize("kind", ["speech", "language"])
def test_the_first_signature_is_the_default(request, kind):
    signatures = request.getfixturevalue(kind).signatures
    default, first = (signatures[name] for name in ("serving_default", FIRST[kind]))
    assert default.structured_input_signature == first.structured_input_signature
    assert default.structured_outputs.keys() == first.structured_outputs.keys()
