"""The task of train_ctc.py: the text of each utterance, learnt from text alone."""

import json

from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import CORPUS_FILE, read_utterances
from keras_bnrnn.data.speech.transcripts import frames_needed
from keras_bnrnn.metrics import WordErrorRate
from recipes import measures
from recipes.ctc_model import build_ctc_model, compile_ctc_model, ctc_metrics, reduced
from recipes.speech_task import SpeechTask
from recipes.training import check_config

MOST_NAMED = 3


class CtcTask(SpeechTask):
    """Connectionist temporal classification of a corpus of characters."""

    name = "ctc"
    script = "train_ctc.py"
    measures = measures.CTC
    labels = "characters"
    title, also_described = "Model that writes text", "what became of its transcripts"
    setting_names = (
        *("model", "cell", "normalization", "reduction", "layers", "units", "bidirectional"),
        *("batch_size", "max_frames", "augment", "mixed_precision", "synchronized"),
        *("learning_rate", "momentum", "seed"),
    )

    def build_model(self, replicas, **options):
        settings = self.settings
        model = build_ctc_model(
            self.corpus.dimension,
            self.corpus.num_states,
            reduction=settings.reduction,
            normalized=settings.model == "batch_norm",
            cell=settings.cell,
            layers=settings.layers,
            units=settings.units,
            bidirectional=settings.bidirectional,
            normalization=settings.normalization,
            renorm=settings.renorm,
            momentum=settings.momentum,
            synchronized=settings.synchronized and replicas > 1,
        )
        compile_ctc_model(model, settings.learning_rate, self.corpus.alphabet, **options)
        return model

    def metrics(self):
        return ctc_metrics(self.corpus.alphabet)

    def rate_by_speaker(self):
        return WordErrorRate(self.corpus.alphabet)

    def files(self):
        return {CORPUS_FILE: lambda: json.dumps(self.corpus.document, indent=1) + "\n"}

    def trivial_scores(self):
        return {}

    def plan(self):
        yield from self.plan_of_data(f"{len(self.corpus.alphabet)} characters")
        for split in self.corpus.splits:
            yield from self.too_short(split)
            unknown = self.corpus.split(split).get("unknown_characters")
            if unknown:
                shown = ", ".join(f"{one!r} ({times})" for one, times in unknown.items())
                yield f"Characters of {split} that training lacks, each an error: {shown}."

    def too_short(self, split):
        """A line on the utterances whose text does not fit into their frames, if there are any."""
        reduction, found = self.settings.reduction, []
        for utterance in read_utterances(self.corpus, split):
            frames = reduced(len(utterance["features"]), reduction)
            needed = frames_needed(utterance["labels"].tolist())
            if needed > frames:
                found.append(f"{utterance['id']} ({frames} frames for {needed})")
        if not found:
            return
        total = self.corpus.split(split)["utterances"]
        if split == "train" and len(found) == total:
            raise CorpusError(
                f"{self.corpus.path}: no training utterance has the frames that its text needs at "
                f"--reduction={reduction}: {found[0]}"
            )
        named = ", ".join(found[:MOST_NAMED]) + (", …" if len(found) > MOST_NAMED else "")
        yield (
            f"Too short for their text at --reduction={reduction}, so that they do not count in "
            f"the loss: {len(found)} of {total} {split} utterances: {named}."
        )

    def model_title(self):
        settings = self.settings
        return f"{super().model_title()}, {settings.cell}, 1/{settings.reduction} of the frames"

    @staticmethod
    def described(run_dir, corpus, config):
        check_config(run_dir, config, {"reduction": int})
        return {"text": corpus.document["text"], "reduction": config["reduction"]}
