"""Which split an utterance belongs to: what folders say, or shares that are dealt out."""

import collections
import math
import random
from dataclasses import replace

from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import SPLITS

MAX_LISTED = 5


def split_of_folders(names):
    """The split that folder names speak of, or an empty string."""
    for name in names:
        for split in SPLITS:
            if name == split or name.startswith((f"{split}-", f"{split}_")):
                return split
    return ""


def parse_shares(splits):
    """`"train=0.9,dev=0.1"` as a dictionary.

    Raises:
        CorpusError: it is not of this form, or the shares do not add up to 1.
    """
    shares = {}
    try:
        for item in splits.split(","):
            name, _, share = item.partition("=")
            shares[name.strip()] = float(share)
    except ValueError:
        shares = {}
    if (
        not set(shares) <= set(SPLITS)
        or "train" not in shares
        or min(shares.values()) <= 0
        or not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6)
    ):
        raise CorpusError(
            f"splits={splits!r} is neither 'layout' nor shares of {', '.join(SPLITS)} that add up "
            "to 1, such as 'train=0.9,dev=0.1'"
        )
    return shares


def assign_splits(utterances, splits, seed):
    """Gives every utterance a split.

    Args:
        utterances: a list of `Utterance`, whose `split` is what the source's layout says.
        splits: `"layout"`, or shares. Shares deal out whole speakers; utterances of unknown
            speakers are dealt out one by one.
        seed: of the deal.

    Raises:
        CorpusError: the layout is silent for some, or there are fewer speakers than splits.
    """
    if splits == "layout":
        silent = [u.id for u in utterances if not u.split]
        if silent:
            raise CorpusError(
                f"splits=layout, but nothing says to which split {len(silent)} utterances belong "
                f"({', '.join(silent[:MAX_LISTED])}, …): give shares, such as "
                "train=0.9,dev=0.1"
            )
        return utterances
    shares = parse_shares(splits)

    def group_of(utterance):
        return utterance.speaker or f"\0{utterance.id}"

    groups = collections.Counter(map(group_of, utterances))
    if len(groups) < len(shares):
        raise CorpusError(
            f"splits={splits!r} deals out whole speakers, but there are only {len(groups)}"
        )
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    small_first = sorted(shares, key=shares.get)
    wanted = {name: shares[name] * len(utterances) for name in small_first}
    split_of = {}
    for position, group in enumerate(names):
        # Every split gets one speaker before any gets a second; then the one furthest behind.
        if position < len(small_first):
            split = small_first[position]
        else:
            split = max(small_first, key=wanted.get)
        wanted[split] -= groups[group]
        split_of[group] = split
    return [replace(u, split=split_of[group_of(u)]) for u in utterances]


def take_utterances(utterances, count, seed):
    """At most `count` utterances, each split in proportion, in their order."""
    if count is None or count >= len(utterances):
        return utterances
    by_split = {}
    for number, utterance in enumerate(utterances):
        by_split.setdefault(utterance.split, []).append(number)
    if count < len(by_split):
        raise CorpusError(f"utterances={count}: at least one for each of {', '.join(by_split)}")
    generator = random.Random(seed)
    kept = set()
    for numbers in by_split.values():
        share = max(1, count * len(numbers) // len(utterances))
        kept.update(generator.sample(numbers, min(share, len(numbers))))
    return [utterance for number, utterance in enumerate(utterances) if number in kept]
