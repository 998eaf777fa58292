"""Which value belongs to which variable, and what is not taken for a checkpoint."""

from functools import partial

import keras
import numpy as np
import pytest

from keras_bnrnn.fit import FitError, Worker, checkpoints
from keras_bnrnn.fit.checkpoints import Checkpoints


def compiled(*layers, name="model", batch_size=None):
    model = keras.Sequential([keras.Input((2, 3), batch_size=batch_size), *layers], name=name)
    model.compile(keras.optimizers.Adam(), "mse")
    model.optimizer.build(model.trainable_variables)
    for number, variable in enumerate([*model.variables, *model.optimizer.variables]):
        variable.assign(np.full(variable.shape, number, variable.dtype))
    return model


def values(model):
    return {
        path: np.asarray(variable)
        for variables in (checkpoints.shared_variables, checkpoints.local_variables)
        for path, variable in checkpoints.by_path(variables(model)).items()
    }


def zeros(model):
    for variable in [*model.variables, *model.optimizer.variables]:
        variable.assign(np.zeros(variable.shape, variable.dtype))
    return model


def carried(folder, one, other):
    """Saves one model and restores it into another, which held zeros."""
    Checkpoints(folder, Worker()).save(one, 1, 0, {})
    Checkpoints(folder, Worker()).restore(zeros(other))
    return values(other)


def dense(name):
    return keras.layers.Dense(3, name=name)


def test_variables_in_another_order_are_found(tmp_path):
    one = compiled(dense("a"), keras.layers.BatchNormalization(name="norm"), dense("b"))
    other = compiled(keras.layers.BatchNormalization(name="norm"), dense("b"), dense("a"))
    found = carried(tmp_path, one, other)
    assert list(found) != list(values(one))
    for path, value in values(one).items():
        # The optimizer's name is Keras's count of such optimizers.
        same = path.replace(one.optimizer.name, other.optimizer.name)
        np.testing.assert_array_equal(found[same], value)


def test_keras_counts_its_layers_and_that_means_nothing(tmp_path):
    def build():
        return compiled(
            keras.layers.Dropout(0.5),
            keras.layers.Bidirectional(keras.layers.GRU(3, return_sequences=True, dropout=0.1)),
            keras.layers.Dense(3),
            keras.layers.Dense(3),
        )

    one, other = build(), build()
    found, expected = carried(tmp_path, one, other), values(one)
    assert list(found) != list(expected)
    for value, same in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_array_equal(value, same)


def test_states_that_share_a_path_are_told_apart(tmp_path):
    model = compiled(keras.layers.LSTM(3, stateful=True, name="lstm"), batch_size=2)
    model.predict(np.ones((2, 2, 3)), verbose=0)
    [lstm] = model.layers
    expected = [np.asarray(state) for state in lstm.states]
    Checkpoints(tmp_path, Worker()).save(model, 1, 0, {})
    lstm.reset_states()
    Checkpoints(tmp_path, Worker()).restore(model)
    for state, value in zip(lstm.states, expected, strict=True):
        np.testing.assert_array_equal(state, value)
        assert np.abs(value).max() > 0


def test_bfloat16_weights_come_back(tmp_path):
    build = partial(compiled, keras.layers.Dense(3, dtype="bfloat16", name="dense"))
    one = build()
    one.layers[0].bias.assign([0.5, 1.5, 2.5])
    found = carried(tmp_path, one, build())
    assert list(found["model/dense/bias"].astype("float32")) == [0.5, 1.5, 2.5]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([dense("a"), dense("c")], "model/b/kernel is in the checkpoint only"),
        ([dense("a")], "model/b/bias is in the checkpoint only"),
        ([dense("a"), dense("b"), dense("c")], "model/c/bias is in the model only"),
        ([dense("b"), keras.layers.Dense(4, name="a")], r"model/a/kernel is \[3, 3\] there and"),
    ],
)
def test_what_differs_is_named_and_nothing_is_assigned(tmp_path, monkeypatch, layers, message):
    monkeypatch.setattr(checkpoints, "MOST_DIFFERENCES_SHOWN", 99)
    other = compiled(*layers)
    with pytest.raises(FitError, match=message) as error:
        carried(tmp_path, compiled(dense("a"), dense("b")), other)
    assert error.value.argument == "output_dir"
    assert not any(value.any() for value in values(other).values())


def test_numbered_arrays_must_be_as_many_as_the_variables():
    [one] = keras.layers.Dense(1, use_bias=False, name="one").build((None, 2)) or [
        keras.Variable(np.zeros(2), name="one")
    ]
    pairs, differences = checkpoints.pair({"0": np.ones(2)}, [one])
    assert pairs[0][0] is one and differences == []
    assert checkpoints.pair({"0": np.ones(2), "1": np.ones(2)}, [one]) == (
        [],
        ["it has 2 values for the model's 1 variables"],
    )


def test_other_versions_are_said_where_something_does_not_fit():
    with pytest.raises(FitError, match="saved with {'keras': '1'}, this is .*3"):
        checkpoints.refuse(["a is here"], "epoch-0001", {"keras": "1"})


def test_names_that_are_exactly_ours():
    for epochs, steps in ((0, 1), (3, 0), (12345, 1234567)):
        assert checkpoints.parse(checkpoints.name_of(epochs, steps)) == (epochs, steps)
    for name in ("epoch-0002.bak", "epoch-0002-backup", "epoch-2", "epoch-00002", "epoch-0001-st"):
        assert checkpoints.parse(name) is None


def test_values_are_dealt_out_to_other_replicas():
    state = keras.Variable(np.zeros((2, 3)))
    rows = np.arange(12.0).reshape(1, 4, 3)
    np.testing.assert_array_equal(
        checkpoints.deal_out(rows, 2, state, np.mean), rows.reshape(2, 2, 3)
    )
    np.testing.assert_array_equal(
        checkpoints.deal_out(rows.reshape(4, 1, 3), 2, state, np.mean), rows.reshape(2, 2, 3)
    )
    statistic = keras.Variable(np.zeros(3))
    two = np.array([[0.0, 1, 2], [2, 3, 4]])
    np.testing.assert_array_equal(checkpoints.deal_out(two, 1, statistic, np.mean), [[1, 2, 3]])
    total = keras.Variable(0.0)
    np.testing.assert_array_equal(
        checkpoints.deal_out(np.array([1.0, 2.0]), 3, total, np.sum), [3.0, 0.0, 0.0]
    )
    seed = keras.Variable(np.zeros(2), dtype="uint32")
    np.testing.assert_array_equal(
        checkpoints.deal_out(np.array([[1, 2]], "uint32"), 2, seed, np.mean), [[1, 2], [1, 2]]
    )


def test_a_checkpoint_without_a_workers_part_is_not_whole(tmp_path, capsys):
    model = compiled(dense("a"))
    for steps in (1, 2):
        workers = [Checkpoints(tmp_path, Worker(index, 2)) for index in range(2)]
        workers[0].want(0, steps)
        for worker in workers:
            worker.save(model, 0, steps, {"steps": steps})
    assert [one.restore(model)[1] for one in workers] == [2, 2]
    # What was asked for is forgotten once there is something newer.
    assert [workers[1].is_wanted(0, steps) for steps in (1, 2)] == [False, True]
    (tmp_path / "checkpoints" / "epoch-0000-step-000002" / "worker-1.npz").unlink()
    assert [one.restore(model)[1:3] for one in workers] == [(1, {"steps": 1})] * 2
    assert "worker-1.npz is missing" in capsys.readouterr().err
    workers[0].set_damaged_aside()
    assert [path.name for path in tmp_path.glob("checkpoints/damaged-*")] == [
        "damaged-epoch-0000-step-000002-1"
    ]
