"""Which split an utterance belongs to: what folders say, or shares that are dealt out.

`splits` is `"layout"` (folders whose names begin with train, dev or test), the names of folders
(`"train=train_si284,dev=test_dev93"`), shares (`"train=0.9,dev=0.1"`), or `"test"`: all is test.
"""

import collections
import functools
import math
import random
from dataclasses import replace

from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import SPLITS
from keras_bnrnn.data.speech.folders import find_files

MAX_LISTED = 5


def split_of_folders(names, splits="layout"):
    """The split that folders' names, outermost first, speak of, or an empty string."""
    chosen = named_folders(splits)
    if chosen:
        places = ("/".join(names[:depth]) for depth in range(len(names), 0, -1))
        return next((chosen[place] for place in places if place in chosen), "")
    for name in names:
        for split in SPLITS:
            if name == split or name.startswith((f"{split}-", f"{split}_")):
                return split
    return ""


@functools.lru_cache(maxsize=1)
def named_folders(splits):
    """`{folder: split}` of `"train=train_si284,dev=test_dev93"`; empty if `splits` is no such.

    A split of several folders is given for each: `"train=one,train=other,dev=third"`.
    """
    pairs = [[side.strip() for side in item.partition("=")[::2]] for item in splits.split(",")]
    folders = [folder.strip("/") for _, folder in pairs]
    if not all(folders) or any(map(_is_number, folders)) or len({*folders}) < len(folders):
        return {}
    found = [split for split, _ in pairs]
    known = {"train"} <= {*found} <= {*SPLITS} or {*found} == {"test"}
    return dict(zip(folders, found, strict=True)) if known else {}


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def find_chosen_files(root, splits, derived=None):
    """`find_files` of a folder, less those in folders that `splits` does not name.

    Raises:
        CorpusError: it names a folder that is not there.
    """
    chosen = named_folders(splits)
    for folder in chosen:
        if not (root / folder).is_dir():
            there = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
            raise CorpusError(
                f"splits={splits!r}: there is no folder {folder} in {root}; it has "
                f"{', '.join(there[:MAX_LISTED]) or 'none'}{', …' if there[MAX_LISTED:] else ''}"
            )
    files, unread = find_files(root, derived)
    if not chosen:
        return files, unread

    def is_chosen(path):
        return split_of_folders(path.relative_to(root).parts, splits) != ""

    return list(filter(is_chosen, files)), {p: why for p, why in unread.items() if is_chosen(p)}


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
            f"splits={splits!r} is neither 'layout', nor shares of {', '.join(SPLITS)} that add up "
            "to 1, such as 'train=0.9,dev=0.1', nor names of folders, such as "
            "'train=train_si284,dev=test_dev93'"
        )
    return shares


def assign_splits(utterances, splits, seed):
    """Gives every utterance a split.

    Args:
        utterances: a list of `Utterance`, whose `split` is what the source's layout says.
        splits: as for the source. Shares deal out whole speakers; utterances of unknown speakers
            are dealt out one by one.
        seed: of the deal.

    Raises:
        CorpusError: the layout is silent for some, or there are fewer speakers than splits.
    """
    if splits == "layout" or named_folders(splits):
        silent = [u.id for u in utterances if not u.split]
        if silent:
            raise CorpusError(
                f"splits={splits}, but nothing says to which split {len(silent)} utterances belong "
                f"({', '.join(silent[:MAX_LISTED])}, …): give shares, such as "
                "train=0.9,dev=0.1, or names of folders, such as train=train_si284,dev=test_dev93"
            )
        return utterances
    if splits == "test":
        return [replace(u, split="test") for u in utterances]
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
