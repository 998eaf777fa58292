# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Speech in ten minutes
#
# From sentences to a model that says, for every hundredth of a second, which sound it hears.
# The speech is synthetic, so nothing is downloaded. Recordings of your own take the same way:
# another source, the rest stays.
#
# It takes under three minutes on a CPU and needs `pip install '.[speech,train]'`.

# %%
import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Audio, display

from keras_bnrnn import BatchNormLSTM, Bidirectional
from keras_bnrnn.data import read_utterances, sequence_mask, speech_dataset
from keras_bnrnn.data.speech.preparation import prepare_corpus
from keras_bnrnn.data.speech.sources import SyntheticSource
from keras_bnrnn.losses import FrameMeanCrossEntropy
from keras_bnrnn.metrics import FrameErrorRate

UTTERANCES = 180
EPOCHS = 10

keras.utils.set_random_seed(0)
source = SyntheticSource(count=UTTERANCES, labels="phones", sample_rate=8000)

# %% [markdown]
# ## Listen
#
# eSpeak NG speaks sentences of a small grammar in ten voices. Two other voices are kept for
# validation.

# %%
listed, _ = source.utterances()
for utterance in (listed[0], listed[1], listed[-1]):
    print(f"{utterance.split}, voice {utterance.speaker}: {utterance.transcript}")
    display(Audio(source.waveform(utterance), rate=source.sample_rate))

# %% [markdown]
# ## Prepare
#
# An aligner finds which sound each frame of 10 ms belongs to. The features of a frame are the
# logarithms of the energy in 40 bands of frequency, and their differences from frame to frame:
# 123 numbers.

# %%
folder = tempfile.mkdtemp()
corpus = prepare_corpus(source, folder)
print(f"{corpus.splits['train']['utterances']} utterances to train, ", end="")
print(f"{corpus.splits['dev']['utterances']} to validate, {corpus.num_states} sounds")

heard = next(read_utterances(corpus, "dev"))
figure, axes = plt.subplots(2, 1, figsize=(10, 4.5), sharex=True, layout="constrained")
axes[0].imshow(heard["features"][:, 1:41].T, origin="lower", aspect="auto")
axes[0].set(ylabel="band", title=heard["transcript"])
axes[1].step(range(len(heard["labels"])), heard["labels"], where="mid")
axes[1].set(xlabel="frame (10 ms)", ylabel="sound's number")
plt.show()

# %% [markdown]
# ## Train
#
# Two bidirectional layers. Whole utterances are at hand, so the default,
# `normalization="sequence"`, fits.

# %%
features = keras.Input((None, corpus.dimension), name="features")
lengths = keras.Input((), dtype="int32", name="lengths")
mask = sequence_mask(features, lengths)
hidden = features
for _ in range(2):
    layer = BatchNormLSTM(64, return_sequences=True, momentum=0.9)
    hidden = Bidirectional(layer)(hidden, mask=mask)
logits = keras.layers.Dense(corpus.num_states)(hidden)
model = keras.Model({"features": features, "lengths": lengths}, logits)
model.compile(
    keras.optimizers.Adam(0.005, global_clipnorm=1.0),
    FrameMeanCrossEntropy(from_logits=True),
    weighted_metrics=[FrameErrorRate()],
)

history = {"loss": [], "fer": [], "val_loss": [], "val_fer": []}
for epoch in range(EPOCHS):
    batches = speech_dataset(corpus, "train", 12, first_epoch=epoch)
    valid = speech_dataset(corpus, "dev", 12)
    logs = model.fit(batches, validation_data=valid, shuffle=False, verbose=0).history
    for name, values in history.items():
        values += logs[name]
    print(f"epoch {epoch + 1:2}: of the dev frames {history['val_fer'][-1]:.1%} are wrong")

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for axis, log, title in zip(
    axes, ("loss", "fer"), ("cross-entropy (nats)", "frame error rate"), strict=True
):
    axis.plot(range(1, EPOCHS + 1), history[log], "o--", label="training")
    axis.plot(range(1, EPOCHS + 1), history[f"val_{log}"], "o-", label="validation")
    axis.set(title=title, xlabel="epoch")
    axis.grid(alpha=0.3)
axes[0].legend()
plt.show()

# %% [markdown]
# ## Recognise
#
# A sentence and a voice that training did not have. Bright is what the model finds likely.

# %%
spoken = next(one for one in listed if one.id == heard["id"])
display(Audio(source.waveform(spoken), rate=source.sample_rate))

normal = (heard["features"] - corpus.mean) / np.sqrt(corpus.variance)
scores = model.predict(
    {"features": normal[np.newaxis], "lengths": np.array([len(normal)])}, verbose=0
)
posteriors = keras.ops.convert_to_numpy(keras.ops.softmax(scores[0]))
figure, axis = plt.subplots(figsize=(10, 5), layout="constrained")
axis.imshow(posteriors.T, origin="lower", aspect="auto", interpolation="none")
axis.plot(heard["labels"], "r.", markersize=3, label="the aligner's")
axis.set(xlabel="frame (10 ms)", title=heard["transcript"])
axis.set_yticks(range(corpus.num_states), [s["name"] for s in corpus.states], fontsize=6)
axis.legend()
plt.show()

print("aligner:", " ".join(corpus.phones(heard["labels"])))
print("model:  ", " ".join(corpus.phones(posteriors.argmax(axis=-1))))

# %% [markdown]
# ## Next
#
# `make demo` trains such models on letters, without times: a plain LSTM and a normalised one.
# It exports the better one, which writes down a sentence that it has not heard. The guide
# *Speech, from recordings to text* has the same for recordings of your own.
