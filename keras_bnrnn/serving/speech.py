"""The signatures of an acoustic model: features, samples or WAV files to scores and text."""

import keras
import tensorflow as tf

from keras_bnrnn.ctc import NEVER, greedy_labels, texts
from keras_bnrnn.data.speech.corpus import Corpus
from keras_bnrnn.data.speech.features import LogMelFilterBank, normalize_features
from keras_bnrnn.serving.runtimes import stepping, whole
from keras_bnrnn.serving.stack import (
    Endpoint,
    at_least_one_frame,
    carried_stack,
    checked,
    checked_features,
    checked_lengths,
    checked_states,
    with_mask,
)

WAV_HEADER_BYTES = 44
LOUDEST = 100.0  # Well beyond samples in -1…1, however hot, and well below 16-bit numbers.


def speech_endpoints(model: keras.Model, corpus: Corpus, reduction: int = 1) -> dict[str, Endpoint]:
    """The endpoints of an acoustic model.

    Args:
        model: without normalisation; from features `[batch, time, dimension]` and lengths
            `[batch]`, or from features with zeros in the padding; to logits
            `[batch, time, states]`. One that writes text takes lengths too and gives
            `[batch, ceil(time / reduction), states]`, sure of the blank in the padding.
        corpus: what it was trained on, for the mean, the variance and the features' set-up.
        reduction: how many frames the model joins to one.

    Returns:
        `{name: Endpoint}`.
    """
    meanings = {
        "features": (
            f"float32 [batch, time, {corpus.dimension}], normalised with the training set's mean "
            "and variance (assets/speech_model.json)"
        ),
        "lengths": "int32 [batch]: how many frames (of audio: samples) of each row count",
        "log_posteriors": f"float32 [batch, time, {corpus.num_states}], natural logarithms",
        "frames": "int32 [batch]: how many frames of each row have a meaning",
        "times": "float32 [batch, time]: the middle of each frame, in seconds",
    }
    writes = corpus.alphabet is not None
    if writes:
        meanings["log_posteriors"] += ": of the blank, then of the characters; the blank's is 0 in "
        meanings["log_posteriors"] += "the padding"
        meanings["text"] = "string [batch]: the best character of each frame, read as text, UTF-8"
        if reduction > 1:
            joined = f"the model joins {reduction} frames of the features to one"
            meanings["frames"] += f"; {joined}, but not in the signature features"
    masked = None if writes else with_mask(model)
    padding = " and lengths [batch]" if len(model.inputs) > 1 else ", zeros in the padding,"

    def answers(features, lengths):
        lengths = checked_lengths(lengths, features)
        time = _reduced(tf.shape(features)[1], reduction)
        features = at_least_one_frame(features)
        mask = tf.sequence_mask(lengths, tf.shape(features)[1])
        features = checked_features(features, mask)
        if not writes:
            logits = masked([features, mask], training=False)[:, :time]
            return {"log_posteriors": tf.nn.log_softmax(logits)}
        logits = model({"features": features, "lengths": lengths}, training=False)
        text = texts(greedy_labels(logits), corpus.alphabet)
        return {"log_posteriors": tf.nn.log_softmax(logits)[:, :time], "text": text}

    specs = [
        tf.TensorSpec([None, None, corpus.dimension], tf.float32, "features"),
        tf.TensorSpec([None], tf.int32, "lengths"),
    ]
    endpoints = {
        "serve": Endpoint(
            answers,
            specs,
            "Scores whole utterances given as features.",
            meanings,
            whole(model, f"features [batch, time, dimension]{padding} to logits"),
        )
    }
    front_end = make_front_end(corpus)
    if front_end is not None:
        endpoints |= _audio_endpoints(front_end, corpus, answers, meanings, reduction)
    blocks = reduction > 1
    stack = carried_stack(model, mask="given", blocks=blocks)
    if stack is not None:
        pieces = f"any multiple of {reduction} frames but for the last" if blocks else "any size"
        endpoints["step"] = Endpoint(
            speech_step(stack, reduction, writes),
            [*specs, *stack.state_specs],
            f"Scores the next frames of utterances that come in pieces of {pieces}.",
            {**meanings, **stack.meanings()},
            stepping(
                model, keras.ops.log_softmax, "frames [batch, time]", "log-probabilities", blocks
            ),
        )
    return endpoints


def _reduced(frames, reduction):
    """How many frames the model makes of the features'."""
    return (frames + reduction - 1) // reduction


def speech_step(stack, reduction=1, writes=False):
    """The function of `step`, for a stack that is given its mask.

    Args:
        stack: a `CarriedStack`.
        reduction: how many frames the model joins to one.
        writes: whether the model is sure of the blank in the padding.
    """

    def masked(features, lengths, states):
        lengths = checked_lengths(lengths, features)
        states = checked_states(states, tf.shape(features)[0])
        time = tf.shape(features)[1]
        features = checked_features(features, tf.sequence_mask(lengths, time))
        mask = tf.sequence_mask(_reduced(lengths, reduction), _reduced(time, reduction))
        [logits], states = stack([features], states, mask)
        if writes:
            blank = tf.one_hot(0, logits.shape[-1], on_value=0.0, off_value=NEVER)
            logits = tf.where(mask[:, :, tf.newaxis], logits, blank)
        return answers([logits], states)

    def answers(logits, states):
        return {"log_posteriors": tf.nn.log_softmax(logits[0]), **stack.named(states)}

    def step(features, lengths, *states):
        return stack.quickly(
            [features],
            states,
            answers,
            lambda: masked(features, lengths, states),
            lengths,
            tf.reduce_all(tf.math.is_finite(features)),
        )

    return step


def _audio_endpoints(front_end, corpus, answers, meanings, reduction):
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
        times = tf.broadcast_to(times, tf.shape(values)[:2])
        return {"features": values, "frames": front_end.num_frames(lengths), "times": times}

    def serve_waveform(waveform, lengths):
        heard = features(waveform, lengths)
        found = answers(heard["features"], heard["frames"])
        # The middle of the frames that are joined to one.
        later = 0.5 * (reduction - 1) * front_end.frame_shift / rate
        times = heard["times"][:, ::reduction] + later
        return {**found, "frames": _reduced(heard["frames"], reduction), "times": times}

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
