"""What the signatures of an exported model compute: plain TensorFlow around a folded model.

An endpoint's function takes and returns named tensors. Nothing in it needs keras_bnrnn, so
whoever loads the SavedModel needs TensorFlow alone (and tensorflow_text, where strings are
tokenised).
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_bnrnn.data.speech.features import LogMelFilterBank, normalize_features
from keras_bnrnn.data.text import EOS, UNKNOWN, tokenize

WAV_HEADER_BYTES = 44
LOUDEST = 100.0  # Well beyond samples in -1…1, however hot, and well below 16-bit numbers.


class Endpoint(NamedTuple):
    """A signature to be.

    Attributes:
        function: from tensors in the order of `inputs` to a dictionary of tensors.
        inputs: `tf.TensorSpec`s with names.
        purpose: a sentence for MODEL_CARD.md.
        meanings: what each input and output is, by name.
    """

    function: Callable
    inputs: list
    purpose: str
    meanings: dict


class CarriedStack:
    """A stack of layers whose recurrent ones start from given states and return theirs.

    Args:
        layers: the folded model's layers from its input to its output, one after the other.
        unroll: without a loop, for sequences of a fixed length.
    """

    def __init__(self, layers, unroll=False):
        self.layers = [
            keras.layers.RNN(layer.cell, return_sequences=True, return_state=True, unroll=unroll)
            if isinstance(layer, keras.layers.RNN)
            else layer
            for layer in layers
        ]
        self.state_specs = [
            tf.TensorSpec([None, size], tf.float32, f"{layer.name}_{name}")
            for layer in layers
            if isinstance(layer, keras.layers.RNN)
            for name, size in zip("hc", keras.tree.flatten(layer.cell.state_size), strict=False)
        ]

    def __call__(self, values, states, mask=None):
        """Runs the stack; returns its output and the new states, as many as came."""
        states, new = list(states), []
        for layer in self.layers:
            if isinstance(layer, keras.layers.RNN):
                count = len(keras.tree.flatten(layer.cell.state_size))
                before, states = states[:count], states[count:]
                before = [keras.ops.cast(state, layer.compute_dtype) for state in before]
                values, *after = layer(values, initial_state=before, mask=mask, training=False)
                new.extend(keras.ops.cast(state, "float32") for state in after)
            else:
                values = layer(values)
        return values, new

    def named(self, states):
        """The states as a dictionary, under the names of the inputs they are for."""
        return {spec.name: state for spec, state in zip(self.state_specs, states, strict=True)}

    def meanings(self):
        return {
            spec.name: f"float32 [batch, {spec.shape[1]}], a state: zeros to begin with, then what "
            "the last call returned"
            for spec in self.state_specs
        }


def plain_stack(model):
    """The model's layers in order if it is a stack that reads forwards, else `None`.

    Input layers, masks and dropout are left out: they do nothing to live frames at inference.
    """
    passive = (keras.layers.InputLayer, keras.layers.Masking, keras.layers.Dropout)
    layers = [layer for layer in model.layers if not isinstance(layer, passive)]
    kinds = (keras.layers.RNN, keras.layers.Dense, keras.layers.Embedding)
    forwards = all(isinstance(layer, kinds) for layer in layers) and not any(
        getattr(layer, "go_backwards", False) for layer in layers
    )
    return layers if forwards else None


def checked(value, *demands):
    """`value`, once all demands, `(condition, message, *what was received)`, are met."""
    asserts = [tf.debugging.Assert(condition, list(data)) for condition, *data in demands]
    with tf.control_dependencies(asserts):
        return tf.identity(value)


def checked_lengths(lengths, values):
    """The lengths, if `values`, `[batch, time, …]`, can have them."""
    batch, time = tf.shape(values)[0], tf.shape(values)[1]
    return checked(
        lengths,
        (
            tf.reduce_all(tf.shape(lengths) == [batch]),
            "lengths needs one number for each row. Rows, and shape received:",
            batch,
            tf.shape(lengths),
        ),
        (
            tf.reduce_all((lengths >= 0) & (lengths <= time)),
            "lengths must lie between 0 and what each row holds. Held, and received:",
            time,
            lengths,
        ),
    )


def checked_features(features, mask):
    """The features `[batch, time, dimension]`, zeros where `mask` is not set."""
    features = tf.where(mask[:, :, tf.newaxis], features, 0.0)
    finite = tf.reduce_all(tf.math.is_finite(features))
    return checked(features, (finite, "features holds values that are not finite"))


def checked_states(states, batch):
    sizes = tf.stack([tf.shape(state)[0] for state in states])
    message = "the states are of another number of rows than the input. Rows, and received:"
    demand = (tf.reduce_all(sizes == batch), message, batch, sizes)
    return [checked(state, demand) for state in states]


def speech_step(stack):
    """The function of the endpoint `step` of an acoustic model, a `CarriedStack`."""

    def step(features, lengths, *states):
        lengths = checked_lengths(lengths, features)
        states = checked_states(states, tf.shape(features)[0])
        time = tf.shape(features)[1]
        features = at_least_one_frame(features)
        mask = tf.sequence_mask(lengths, tf.shape(features)[1])
        logits, states = stack(checked_features(features, mask), states, mask)
        scores = tf.nn.log_softmax(tf.cast(logits, tf.float32))[:, :time]
        return {"log_posteriors": scores, **stack.named(states)}

    return step


def at_least_one_frame(values):
    """`[batch, time, …]` with a frame of zeros if there is none, with which Keras's layers fail."""
    missing = tf.cast(tf.shape(values)[1] < 1, tf.int32)
    return tf.pad(values, [[0, 0], [0, missing]] + [[0, 0]] * (len(values.shape) - 2))


def speech_endpoints(model, corpus):
    """The endpoints of an acoustic model.

    Args:
        model: folded, from features `[batch, time, dimension]` and lengths `[batch]`, or from
            features with zeros in the padding, to logits `[batch, time, states]`.
        corpus: the `Corpus` it was trained on, for its mean, variance and feature set-up.

    Returns:
        `{name: Endpoint}`, and a list of the Keras objects that they use.
    """
    meanings = {
        "features": (
            f"float32 [batch, time, {corpus.dimension}], normalised with the training set's mean "
            "and variance (assets/speech_model.json)"
        ),
        "lengths": "int32 [batch]: how many frames (of audio: samples) of each row count",
        "log_posteriors": f"float32 [batch, time, {corpus.num_states}], natural logarithms",
        "frames": "int32 [batch]: how many frames of each row have a meaning",
        "times": "float32 [time]: the middle of each frame, in seconds",
    }

    def log_posteriors(features, lengths):
        lengths = checked_lengths(lengths, features)
        time = tf.shape(features)[1]
        features = at_least_one_frame(features)
        live = tf.sequence_mask(lengths, tf.shape(features)[1])
        features = checked_features(features, live)
        inputs = {"features": features, "lengths": lengths} if len(model.inputs) > 1 else features
        logits = model(inputs, training=False)
        return tf.nn.log_softmax(tf.cast(logits, tf.float32))[:, :time]

    features_spec = tf.TensorSpec([None, None, corpus.dimension], tf.float32, "features")
    lengths_spec = tf.TensorSpec([None], tf.int32, "lengths")
    endpoints = {
        "serve": Endpoint(
            lambda features, lengths: {"log_posteriors": log_posteriors(features, lengths)},
            [features_spec, lengths_spec],
            "Scores whole utterances given as features.",
            meanings,
        )
    }
    tracked = [model]
    front_end = make_front_end(corpus)
    if front_end is not None:
        tracked.append(front_end)
        endpoints |= _audio_endpoints(front_end, corpus, log_posteriors, meanings)
    layers = plain_stack(model)
    if layers is not None:
        stack = CarriedStack(layers)
        tracked.extend(stack.layers)
        endpoints["step"] = Endpoint(
            speech_step(stack),
            [features_spec, lengths_spec, *stack.state_specs],
            "Scores the next frames of utterances that come in pieces of any size.",
            {**meanings, **stack.meanings()},
        )
    return endpoints, tracked


def _audio_endpoints(front_end, corpus, log_posteriors, meanings):
    rate = corpus.sample_rate
    # Frame t is centred on this time plus t times the shift.
    first = 0.5 * (front_end.frame_length if front_end.snip_edges else front_end.frame_shift) / rate

    def features(waveform, lengths):
        lengths = checked_lengths(lengths, waveform)
        live = tf.sequence_mask(lengths, tf.shape(waveform)[1])
        level = tf.abs(tf.where(live, waveform, 0.0))
        message = "waveform must hold finite samples in -1…1 (16-bit numbers: divide by 32768)"
        waveform = checked(waveform, (tf.reduce_all(level <= LOUDEST), message))
        heard = front_end(waveform, lengths)
        values = normalize_features(heard, corpus.mean, corpus.variance)
        shift = front_end.frame_shift / rate
        times = first + shift * tf.cast(tf.range(tf.shape(values)[1]), tf.float32)
        return {"features": values, "frames": front_end.num_frames(lengths), "times": times}

    def serve_waveform(waveform, lengths):
        heard = features(waveform, lengths)
        scores = log_posteriors(heard.pop("features"), heard["frames"])
        return {"log_posteriors": scores, **heard}

    def decode(contents):
        samples, file_rate = tf.audio.decode_wav(contents)
        message = tf.strings.format(
            "the audio has {} samples a second, the model was trained on {}: resample it",
            (file_rate, rate),
        )
        # What writes to a pipe may leave a length of zero in the header.
        told = (tf.shape(samples)[0] > 0) | (tf.strings.length(contents) <= WAV_HEADER_BYTES)
        untold = "the header of the audio says that no samples follow, but bytes do"
        with tf.control_dependencies(
            [
                tf.debugging.Assert(file_rate == rate, [message]),
                tf.debugging.Assert(told, [untold]),
            ]
        ):
            return tf.reduce_mean(samples, axis=1)

    def serve_audio(audio):
        rows = tf.map_fn(decode, audio, fn_output_signature=tf.RaggedTensorSpec([None]))
        return serve_waveform(rows.to_tensor(), tf.cast(rows.row_lengths(), tf.int32))

    samples_specs = [
        tf.TensorSpec([None, None], tf.float32, "waveform"),
        tf.TensorSpec([None], tf.int32, "lengths"),
    ]
    meanings = {
        **meanings,
        "waveform": f"float32 [batch, samples] in -1…1, {rate} samples a second",
        "audio": f"string [batch]: the bytes of 16-bit WAV files, {rate} samples a second; "
        "channels are averaged",
    }
    return {
        "features": Endpoint(
            features, samples_specs, "Turns samples into the features of `serve`.", meanings
        ),
        "serve_waveform": Endpoint(
            serve_waveform,
            samples_specs,
            "Scores whole utterances given as samples.",
            meanings,
        ),
        "serve_audio": Endpoint(
            serve_audio,
            [tf.TensorSpec([None], tf.string, "audio")],
            "Scores whole utterances given as WAV files.",
            meanings,
        ),
    }


def make_front_end(corpus):
    """The corpus's `LogMelFilterBank`, or `None` where its features were computed elsewhere."""
    names = ("sample_rate", "num_mel_bins", "use_energy", "delta_order", "snip_edges")
    if any(name not in corpus.features for name in names):
        return None
    front_end = LogMelFilterBank(**{name: corpus.features[name] for name in names})
    front_end.build((None, None))
    return front_end


def language_endpoints(model, vocabulary, tokenization):
    """The endpoints of a language model.

    Args:
        model: folded, from tokens `[batch, time]` to logits `[batch, time, words]`.
        vocabulary: the words; `vocabulary[k]` is the word of token k.
        tokenization: how the training text was cut into words; see `keras_bnrnn.data.text`.

    Returns:
        `{name: Endpoint}`, and a list of the objects that they use.
    """
    stack = CarriedStack(plain_stack(model))
    words = tf.constant(vocabulary)
    numbers = tf.range(len(vocabulary), dtype=tf.int32)
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(words, numbers), vocabulary.index(UNKNOWN)
    )
    end = vocabulary.index(EOS)

    def zeros(batch):
        return [tf.zeros([batch, spec.shape[1]]) for spec in stack.state_specs]

    def read(sentences):
        """Tokens of sentences, a ragged `[batch, (words)]`."""
        return tf.ragged.map_flat_values(table.lookup, tokenize(sentences, tokenization))

    def log_probabilities(tokens, states):
        batch, time = tf.unstack(tf.shape(tokens))
        states = checked_states(states, batch)
        tokens = checked(
            tokens,
            (
                tf.reduce_all((tokens >= 0) & (tokens < len(vocabulary))),
                f"tokens must lie between 0 and {len(vocabulary) - 1}. Received:",
                tokens,
            ),
        )
        tokens = at_least_one_frame(tokens)
        mask = tf.sequence_mask(tf.fill([batch], time), tf.shape(tokens)[1])
        logits, states = stack(tokens, states, mask)
        return tf.nn.log_softmax(tf.cast(logits, tf.float32))[:, :time], states

    def score(sentences):
        tokens = read(sentences)
        batch = tf.shape(sentences)[0]
        ends = tf.fill([batch, 1], end)
        targets = tf.concat([tokens, ends], axis=1)
        counts = tf.cast(targets.row_lengths(), tf.int32)
        inputs = tf.concat([ends, tokens], axis=1).to_tensor(end)
        scores, _ = log_probabilities(inputs, zeros(batch))
        targets = targets.to_tensor(end)
        chosen = tf.gather(scores, targets, batch_dims=2)
        live = tf.sequence_mask(counts, tf.shape(targets)[1])
        total = tf.reduce_sum(tf.where(live, chosen, 0.0), axis=1)
        return {
            "tokens": counts,
            "log_probability": total,
            "perplexity": tf.exp(-total / tf.cast(counts, tf.float32)),
        }

    def next_token(prefix, k):
        tokens = read(prefix)
        batch = tf.shape(prefix)[0]
        inputs = tf.concat([tf.fill([batch, 1], end), tokens], axis=1)
        lengths = inputs.row_lengths()
        scores, _ = log_probabilities(inputs.to_tensor(end), zeros(batch))
        last = tf.gather(scores, lengths - 1, batch_dims=1)
        k = checked(k, (k >= 1, "k must be 1 or more. Received:", k))
        best, chosen = tf.math.top_k(last, tf.minimum(k, len(vocabulary)))
        return {"words": tf.gather(words, chosen), "probabilities": tf.exp(best)}

    def step(tokens, *states):
        scores, states = log_probabilities(tokens, states)
        return {"log_probabilities": scores, **stack.named(states)}

    meanings = {
        "sentences": "string [batch]; words that are not in the vocabulary count as <unk>",
        "prefix": "string [batch]: the beginnings of sentences; empty for the first word",
        "k": "int32 []: how many words to return, 1 or more (at most all there are)",
        "tokens": "int32 [batch, time] numbers of words; of `score`, [batch]: how many tokens were "
        "scored, the end of the sentence included",
        "log_probability": "float32 [batch]: sum over the tokens, natural logarithm",
        "perplexity": "float32 [batch]: exp(-log_probability / tokens)",
        "words": "string [batch, k], the likeliest first",
        "probabilities": "float32 [batch, k]",
        "log_probabilities": f"float32 [batch, time, {len(vocabulary)}] of each next word",
        **stack.meanings(),
    }
    strings = "Needs `import tensorflow_text` in the process that loads the model."
    endpoints = {
        "score": Endpoint(
            score,
            [tf.TensorSpec([None], tf.string, "sentences")],
            f"How likely whole sentences are. {strings}",
            meanings,
        ),
        "next_token": Endpoint(
            next_token,
            [tf.TensorSpec([None], tf.string, "prefix"), tf.TensorSpec([], tf.int32, "k")],
            f"The likeliest next words. {strings}",
            meanings,
        ),
        "step": Endpoint(
            step,
            [tf.TensorSpec([None, None], tf.int32, "tokens"), *stack.state_specs],
            "The next words of texts that come in pieces of any size.",
            meanings,
        ),
    }
    return endpoints, [model, table, *stack.layers]
