"""Every layer in every mode against the independent NumPy models of `reference`, in float64.

Outputs, final states, population statistics after several training steps, and gradients with
respect to the inputs, the initial states and every trainable weight. Run as a program, it prints
the largest deviation per layer and mode:

    python tests/test_against_numpy.py         # of all cases
    python tests/test_against_numpy.py renorm  # of those with it in their name
"""

import itertools
import sys

import numpy as np
import pytest

import conformance
import reference
from conformance import BATCH, CASES, FEATURES, TIME, UNITS

MASKS = tuple(conformance.masks())
TOLERANCE = 1e-10  # of values and gradients of order 1 to 10, in float64


def deviations(case, mask_name, training, with_state):
    """Largest absolute deviations of a layer from the NumPy model, by what deviates."""
    rng = np.random.default_rng(MASKS.index(mask_name) + 10 * training)
    weights = case.weights(rng)
    mask = conformance.masks()[mask_name]
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    states = conformance.random_states(case, rng) if with_state else None
    layer = case.built(weights)
    outputs, final, gradients = conformance.call_and_differentiate(
        layer, x, mask, states, training=training
    )
    expected = reference.layer(case.options, weights, x, mask, states, training)

    def loss(arguments):
        start = [arguments[f"state_{i}"] for i in range(len(states))] if with_state else None
        moved = {name: arguments.get(name, value) for name, value in weights.items()}
        result = reference.layer(case.options, moved, arguments["x"], mask, start, training)
        return conformance.projection(result.outputs, result.states)

    arguments = {"x": x, **{f"state_{i}": s for i, s in enumerate(states or [])}}
    trainable = {
        name: value for name, value in weights.items() if not name.endswith(reference.STATISTICS)
    }
    expected_gradients = reference.gradients(loss, arguments | trainable)
    assert set(gradients) == set(expected_gradients)
    statistics = conformance.statistics(case, layer)
    return {
        "outputs": _largest([outputs], [expected.outputs]),
        "states": _largest(final, expected.states),
        "statistics": _largest(
            statistics.values(), [expected.statistics[name] for name in statistics]
        ),
        "gradients": _largest(gradients.values(), [expected_gradients[name] for name in gradients]),
    }


def _largest(actual, expected):
    pairs = list(zip(actual, expected, strict=True))
    for left, right in pairs:
        assert np.shape(left) == np.shape(right)
    return max((float(np.abs(left - right).max()) for left, right in pairs), default=0.0)


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("case", "training"),
    conformance.parameters(
        itertools.product(CASES, [False, True]),
        [
            *((case, True) for case in CASES),
            *((conformance.find(name), False) for name in conformance.REPRESENTATIVES),
        ],
    ),
    ids=str,
)
def test_outputs_states_statistics_and_gradients(case, training, record_property):
    # Masks and initial states go round instead of through every combination.
    turn = CASES.index(case)
    mask_name = MASKS[(turn + 2 * training) % len(MASKS)]
    with_state = bool((turn // len(MASKS) + training) % 2)
    found = deviations(case, mask_name, training, with_state)
    record_property(f"largest deviation, {mask_name}", max(found.values()))
    assert max(found.values()) < TOLERANCE, (mask_name, with_state, found)


@pytest.mark.by_route
@pytest.mark.parametrize("case", [c for c in CASES if c.normalized], ids=str)
def test_population_statistics_after_several_training_steps(case):
    rng = np.random.default_rng(3)
    weights = case.weights(rng)
    layer = case.built(weights, momentum=0.7)
    options = reference.dataclasses.replace(case.options, momentum=0.7)
    for mask in conformance.masks().values():
        x = rng.normal(rng.normal(), 2.0, size=(BATCH, TIME, FEATURES))
        layer(x, mask=mask, training=True)
        weights |= reference.layer(options, weights, x, mask, training=True).statistics
    assert set(conformance.statistics(case, layer)) == set(case.options.statistics())
    conformance.assert_statistics(case, layer, weights, TOLERANCE)


@pytest.mark.every_case
@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_follow_the_namesakes_then_each_normalisation(case):
    layer = case.layer()
    layer.build((None, None, FEATURES))
    assert [weight.name for weight in layer.weights] == list(
        case.options.weight_shapes(FEATURES, UNITS)
    )
    assert [weight.shape for weight in layer.weights] == list(
        case.options.weight_shapes(FEATURES, UNITS).values()
    )


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", [c for c in CASES if c.mode in ("none", "frame_steps")], ids=str)
def test_last_output_is_that_of_the_sequence(case, training):
    rng = np.random.default_rng(0)
    weights = case.weights(rng)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    layer = case.built(weights, return_sequences=False, return_state=False)
    for mask in conformance.masks().values():
        conformance.set_weights(layer, weights)
        output = layer(x, mask=mask, training=training)
        expected = reference.layer(case.options, weights, x, mask, training=training)
        np.testing.assert_allclose(output, expected.last_output, rtol=0, atol=TOLERANCE)


def test_representatives_have_every_mode_and_variation():
    def parts(cases):
        return {part for case in cases for part in (case.mode, *case.name.split("-")[2:])}

    cases = [conformance.find(name) for name in conformance.REPRESENTATIVES]
    assert parts(cases) == parts(CASES)


def main():
    """Prints the largest deviations per layer and mode, over masks and initial states, and of all.

    An argument chooses the cases whose name it is part of.
    """
    columns = ("outputs", "states", "statistics", "gradients")
    part = "".join(sys.argv[1:])
    print(f"| layer and mode | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")

    def line(title, found):
        print(f"| {title} | {' | '.join(f'{one:.1e}' for one in found)} |", flush=True)

    largest = []
    for case in CASES:
        if part not in case.name:
            continue
        found = [
            deviations(case, mask_name, training, with_state)
            for mask_name in MASKS
            for training in (False, True)
            for with_state in (False, True)
        ]
        largest.append([max(f[column] for f in found) for column in columns])
        line(case, largest[-1])
    line(f"largest of {len(largest)}", map(max, *largest, largest[0]))


if __name__ == "__main__":
    main()
