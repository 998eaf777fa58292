"""A stream, one frame at a time: the same outputs as for the whole sequence at once.

    python examples/streaming.py

A model learns to say, frame by frame, which way a noisy random walk has drifted so far. It is
trained on whole sequences; for use, its weights move to a `stateful` twin that is given one frame a
call and carries its states from call to call. At inference every frame is normalised with the
population statistics, which are constants: nothing depends on the frames yet to come.

Streams want the shared statistics, `max_timesteps=None`: the step index of per-step statistics is
0 at the start of each call, so that each frame of a stream would be taken for a first frame. The
last line printed shows what that does.
"""

import keras
import numpy as np

from keras_bnrnn import BatchNormLSTM

TIMESTEPS, FEATURES, STREAMS = 40, 4, 8


def drift(count, generator):
    """Steps of noisy walks `[count, TIMESTEPS, FEATURES]`; whether each sum is > 0 so far."""
    slope = generator.normal(0, 0.3, (count, 1, 1))
    steps = (slope + generator.normal(3, 1, (count, TIMESTEPS, FEATURES))).astype("float32")
    drifted = np.cumsum(np.mean(steps, axis=-1, keepdims=True) - 3, axis=1) > 0
    return steps, drifted


def make_model(max_timesteps=None, stateful=False):
    # "frame": a frame's normalisation must not use later frames in training either.
    recurrent_layer = BatchNormLSTM(
        24,
        normalization="frame",
        normalize_recurrent=True,
        max_timesteps=max_timesteps,
        gamma_initializer=keras.initializers.Constant(0.1),
        momentum=0.9,
        return_sequences=True,
        stateful=stateful,
    )
    layers = [recurrent_layer, keras.layers.Dense(1, activation="sigmoid")]
    if stateful:  # Its states have a row for each stream; the number of frames a call is free.
        layers.insert(0, keras.Input(batch_shape=(STREAMS, None, FEATURES)))
    return keras.Sequential(layers)


def largest_deviation(max_timesteps, generator):
    """Trains a model, and compares its two ways to read the same streams."""
    model = make_model(max_timesteps)
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"])
    model.fit(*drift(1000, generator), batch_size=50, epochs=3, verbose=0)
    steps, drifted = drift(STREAMS, generator)
    at_once = model.predict(steps, verbose=0)

    stream = make_model(max_timesteps, stateful=True)
    stream.set_weights(model.get_weights())
    stream.layers[0].reset_states()
    frames = [steps[:, t : t + 1] for t in range(TIMESTEPS)]
    one_by_one = np.concatenate([stream.predict_on_batch(frame) for frame in frames], axis=1)

    accuracy = np.mean((one_by_one > 0.5) == drifted)
    return np.max(np.abs(one_by_one - at_once)), accuracy


def main():
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    print(f"{STREAMS} streams of {TIMESTEPS} frames, one frame a call against all at once")
    deviations = {}
    for name, max_timesteps in (("shared", None), ("per-step", TIMESTEPS)):
        deviations[name], accuracy = largest_deviation(max_timesteps, generator)
        print(
            f"{name + ' statistics:':21} largest deviation {deviations[name]:.1e}, "
            f"accuracy of the stream {accuracy:.2f}",
            flush=True,
        )
    return deviations


if __name__ == "__main__":
    main()
