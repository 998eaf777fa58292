"""What an epoch of a run is measured by: the columns of history.csv, and how they are shown."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A measure of an epoch.

    Attributes:
        title: of its panel in a picture.
        name: what the columns of history.csv end in, e.g. `"fce"`.
        split: the validation split, which the columns of validation begin with.
        metric: the name of Keras's metric; not given: `name`.
        percent: whether it is a share.
        logarithmic: whether it falls by factors.
    """

    title: str
    name: str
    split: str = "valid"
    metric: str | None = None
    percent: bool = False
    logarithmic: bool = False

    @property
    def training(self):
        return f"train_{self.name}"

    @property
    def validation(self):
        return f"{self.split}_{self.name}"

    @property
    def test(self):
        return f"test_{self.name}"

    @property
    def key(self):
        """The key of Keras's logs."""
        return self.metric or self.name

    def text(self, value):
        if value is None:
            return "-"
        if self.percent:
            return f"{value:.1%}"
        return f"{value:.3f}" if value < 10 else f"{value:.1f}"


# The validation column of a task's first measure is the criterion.
SPEECH = (
    Measure("Frame-wise cross-entropy (nats)", "fce", "dev"),
    Measure("Frame error rate", "fer", "dev", percent=True),
)
CTC = (
    Measure("Character error rate", "cer", "dev", percent=True),
    Measure("Word error rate", "wer", "dev", percent=True),
    Measure("CTC loss (nats per utterance)", "ctc_loss", "dev", logarithmic=True),
)
LANGUAGE = (Measure("Perplexity", "perplexity", logarithmic=True),)
PIXELS = (
    Measure("Cross-entropy (nats)", "loss", metric="cross_entropy", logarithmic=True),
    Measure("Error rate", "error", percent=True),
)


def columns(measures):
    """`{column of history.csv: key of Keras's epoch logs}`."""
    training = {one.training: one.key for one in measures}
    return training | {one.validation: f"val_{one.key}" for one in measures}
