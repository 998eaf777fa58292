"""From a source to a corpus on disk, in parallel, in bounded memory, and resumable.

The utterances are listed and dealt out in parts of fixed size before anything is read. Workers
turn each part into a file of records beside a JSON file with its counts and statistics; the
latter is put in place last, by a rename, and says that the part is whole. When all parts are
there the labels are known, and runs of parts become shards. What a part or a shard holds depends
on nothing but the listing, so neither the number of workers nor a kill changes a byte. What has
changed since, by size and time, is prepared anew.
"""

import collections
import dataclasses
import hashlib
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_bnrnn.ctc import BLANK, UNKNOWN
from keras_bnrnn.data.errors import CorpusError, UtteranceError
from keras_bnrnn.data.speech.alignment import State
from keras_bnrnn.data.speech.corpus import (
    CORPUS_FILE,
    FAILURES_FILE,
    FORMAT_VERSION,
    SPLITS,
    UNLABELLED,
    file_checksum,
    load_corpus,
)
from keras_bnrnn.data.speech.jobs import Where, installed_versions, run
from keras_bnrnn.data.speech.parts import (
    FILES,
    Moments,
    disk_errors,
    finished_summary,
    make_part,
    parts_of,
    read_summary,
    this_process,
)
from keras_bnrnn.data.speech.sources import Failure
from keras_bnrnn.data.speech.splits import take_utterances
from keras_bnrnn.data.speech.transcripts import CHARACTERS, TextRules, frames_needed
from keras_bnrnn.files import (
    PARTIAL,
    local_path,
    lock_folder,
    misfit,
    write_aside,
    written_aside,
)

PLAN_FILE = "preparation.json"
PARTS_FOLDER = "parts"
SHARD_BYTES = 100_000_000
DIMENSION_SAMPLE = 9  # Utterances that say how many features there are, where the source does not.
CONTROLS = re.compile(r"[\0-\x1f\x7f]")
IN_WORDS = {"listing": "listing (utterances, speakers, transcripts, paths or alignments)"}


def prepare_corpus(
    source,
    output_dir,
    utterances=None,
    seed=0,
    workers=1,
    shard_bytes=SHARD_BYTES,
    progress=None,
    scheduler=None,
    text_rules=None,
    like=None,
):
    """Prepares a corpus; continues where an earlier, killed call stopped.

    Args:
        source: one of the sources of `keras_bnrnn.data.speech.sources`.
        output_dir: the corpus folder, made if it does not exist.
        utterances: at most how many to take, `None` for all.
        seed: of the choice and of the order of training utterances in the shards.
        workers: processes; 1 works in this one. The result is the same.
        shard_bytes: a shard is closed when it reaches this size.
        progress: called as `progress(done, total, failed)`, counted in utterances.
        scheduler: address of a Dask scheduler, whose workers do the work then. They see the same
            files under the same paths, and have the same versions of everything. The result is the
            same.
        text_rules: `TextRules` of a source whose labels are characters.
        like: a `Corpus` that a model was trained on: all utterances become the split `"test"` of a
            corpus with its labels, alphabet, mean and variance, to score the model on.

    Returns:
        The `Corpus`. If it was there already, made with the same settings, that one.

    Raises:
        CorpusError: the input or the output folder cannot be used.
    """
    if workers < 1:
        raise CorpusError(f"workers={workers}: at least 1")
    found, failures = source.utterances()
    if like is not None:
        _check_like(source, like)
        found = [dataclasses.replace(u, split="test") for u in found]
    listed = [u for u in found if _is_text(u.id + u.speaker)]
    failures += [
        Failure(u.id, "its id or speaker is not UTF-8")
        for u in found
        if not _is_text(u.id + u.speaker)
    ]
    listed = _in_shard_order(take_utterances(listed, utterances, seed), seed)
    for split in ("train", "dev") if like is None else ("test",):
        if not any(u.split == split for u in listed):
            reasons = f"; {failures[0].id}: {failures[0].reason}" if failures else ""
            if getattr(source, "splits", "") == "layout":
                reasons += "; splits can name folders or shares instead of the layout"
            raise CorpusError(f"the source has no {split} utterances{reasons}")
    try:
        output_dir = local_path(output_dir)
    except ValueError as error:
        raise CorpusError(f"output_dir: {error}") from error
    text = None
    if getattr(source, "labels", None) == CHARACTERS:
        text = _text_of(listed, text_rules or TextRules(), like)
    plan = _plan(source, listed, seed, shard_bytes, text, like)
    with disk_errors(output_dir):
        _claim(output_dir, plan)
        parts_dir = output_dir / PARTS_FOLDER
        parts, files = parts_of(parts_dir, listed, source)
        if not _is_made(output_dir, files):
            parts_dir.mkdir(exist_ok=True)
            with _lock(parts_dir):
                if not _is_made(output_dir, files):  # By another process, meanwhile.
                    where = Where(workers, scheduler)
                    how = (source, output_dir, plan, parts, failures, where)
                    _make(*how, progress, text, like)
                    _write_plan(output_dir, {**plan, FILES: files})
        # After the lock: where folders are shared, an open file's does not go away.
        shutil.rmtree(parts_dir, ignore_errors=True)
        corpus = load_corpus(output_dir)
        for split in corpus.splits:
            corpus.check_shards(split)
    return corpus


def _is_made(output_dir, files):
    """Whether the corpus is there, made of the files that are there now."""
    if not (output_dir / CORPUS_FILE).exists():
        return False
    # Plans of before say nothing of files.
    return _read_plan(output_dir).get(FILES, files) == files


@dataclasses.dataclass(frozen=True)
class _Text:
    """How transcripts become labels: each character is a state, as pdf-ids and phones are.

    Attributes:
        rules: `TextRules`.
        alphabet: the characters of the training transcripts.
        changes: what the rules do to all transcripts, for `corpus.json`.
    """

    rules: TextRules
    alphabet: tuple
    changes: dict

    def labelled(self, frames, utterance):
        """`LabelledFrames` with a state for each character; raises UtteranceError."""
        text = self.rules.normalized(utterance.transcript)
        if not text:
            raise UtteranceError("an empty transcript: no character is left of it")
        if frames_needed(text) > len(frames.features):
            raise UtteranceError(
                f"audio shorter than its text: {len(frames.features)} frames for {len(text)} "
                "characters"
            )
        known = set(self.alphabet)
        states = [State(phone=one if one in known else UNKNOWN) for one in text]
        return dataclasses.replace(frames, states=states)

    def labels(self):
        """`{State: label}`: of each character, and beyond them of what is unknown."""
        names = (BLANK, *self.alphabet, UNKNOWN)
        return {State(phone=name): label for label, name in enumerate(names)}

    def document(self):
        """`"states"` and `"text"` of `corpus.json`."""
        return {
            "states": [{"name": name} for name in (BLANK, *self.alphabet)],
            "text": self.changes,
        }

    def unknown(self, transcripts):
        """`{character: times}` of what the alphabet lacks."""
        found = collections.Counter(
            one for transcript in transcripts for one in self.rules.normalized(transcript)
        )
        return {one: found[one] for one in sorted(set(found) - set(self.alphabet))}


def _check_like(source, like):
    """Raises a CorpusError where a source's corpus would be of another kind than `like`."""
    like.require_labels(CHARACTERS if getattr(source, "labels", None) == CHARACTERS else "frames")
    own = source.feature_settings()
    others = [key for key, value in own.items() if like.features.get(key) != value]
    if others:
        told = ", ".join(f"{key}={own[key]} instead of {like.features.get(key)}" for key in others)
        raise CorpusError(f"features that are not those of {like.path}: {told}")


def _text_of(listed, rules, like):
    """The `_Text` of listed utterances."""
    if like is not None:
        changes = like.text_rules.changes(u.transcript for u in listed)
        return _Text(like.text_rules, tuple(like.alphabet), changes)
    alphabet = rules.alphabet(u.transcript for u in listed if u.split == "train")
    if not alphabet:
        raise CorpusError("the source's training utterances have no transcripts")
    return _Text(rules, tuple(alphabet), rules.changes(u.transcript for u in listed))


def _make(source, output_dir, plan, parts, failures, where, progress, text, like):
    shards = set()
    # Without a checksum of its files, the process that made it was killed when all was done.
    if (output_dir / CORPUS_FILE).exists() and _read_plan(output_dir).get(FILES):
        print(
            f"{output_dir}: files have changed since it was prepared; preparing it anew", flush=True
        )
        corpus = load_corpus(output_dir)
        shards = {Path(path) for split in corpus.splits for path in corpus.shard_paths(split)}
    _make_parts(source, parts, where, len(failures), progress, text, like)
    summaries = [finished_summary(part) for part in parts]
    _write_corpus(source, output_dir, plan, parts, summaries, failures, where, text, like)
    corpus = load_corpus(output_dir)
    for path in shards.difference(
        Path(path) for split in corpus.splits for path in corpus.shard_paths(split)
    ):
        path.unlink(missing_ok=True)
    for path in output_dir.glob(f"*{PARTIAL}*"):
        path.unlink(missing_ok=True)


def _in_shard_order(listed, seed):
    """Training utterances shuffled, so that a shard is a sample of all speakers.

    The order in which the source lists them has no say: the same speech trains the same from audio
    and by way of Kaldi.
    """
    ordered = []
    for split in SPLITS:
        members = sorted((u for u in listed if u.split == split), key=lambda u: u.id)
        if split == "train":
            random.Random(seed).shuffle(members)
        ordered.extend(members)
    return ordered


def _plan(source, listed, seed, shard_bytes, text=None, like=None):
    """Everything that decides the corpus's bytes."""
    digest = hashlib.sha256()
    for u in listed:
        digest.update(repr((u.id, u.speaker, u.gender, u.split, u.transcript, u.location)).encode())
    lexicon = getattr(source, "lexicon", None)
    names = source.phone_names()
    return {
        "format_version": FORMAT_VERSION,
        "source": source.name,
        "settings": dataclasses.asdict(source),
        "lexicon": file_checksum(lexicon) if lexicon else None,
        "phone_names": hashlib.sha256(repr(names).encode()).hexdigest() if names else None,
        "seed": seed,
        "shard_bytes": shard_bytes,
        "utterances": len(listed),
        "listing": digest.hexdigest(),
        "versions": installed_versions(),
        **({} if text is None else {"text": dataclasses.asdict(text.rules)}),
        **({} if like is None else {"like": like.checksum}),
    }


def _claim(output_dir, plan):
    """Makes the folder this plan's, or refuses if it is another one's."""
    plan = json.loads(json.dumps(plan))
    if (output_dir / PLAN_FILE).exists():
        there = _read_plan(output_dir)
        # Older plans say nothing of the lexicon, nor of newer settings.
        settings = there.get("settings", {})
        there["settings"] = plan["settings"] | (settings if isinstance(settings, dict) else {})
        changed = sorted(key for key in plan if there.get(key, plan[key]) != plan[key])
        if changed:
            told = ", ".join(IN_WORDS.get(key, key) for key in changed)
            raise CorpusError(
                f"output_dir={output_dir} holds a preparation with another {told}: choose another "
                "folder or delete this one"
            )
        return
    if output_dir.exists() and any(PARTIAL not in one.suffixes for one in output_dir.iterdir()):
        raise CorpusError(f"output_dir={output_dir} is not empty and holds no preparation")
    output_dir.mkdir(parents=True, exist_ok=True)
    _write_plan(output_dir, {**plan, FILES: ""})


def _read_plan(output_dir):
    path = output_dir / PLAN_FILE
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorpusError(f"{path}: not readable as JSON ({error})") from error
    wrong = misfit(plan, dict)
    if wrong:
        raise CorpusError(f"{path} {wrong}; put a copy of it back, or choose another folder")
    return plan


def _write_plan(output_dir, plan):
    text = json.dumps(plan, indent=1, sort_keys=True) + "\n"
    write_aside(output_dir / PLAN_FILE, text.encode())


def _lock(parts_dir):
    try:
        return lock_folder(parts_dir)
    except TimeoutError as error:
        raise CorpusError(f"{error}, or choose another output_dir") from None


def _dimension(source, parts):
    """Features per frame: what the source says, or what most of a few utterances have."""
    told = source.feature_settings().get("dimension")
    if told:
        return told
    train = [u for part in parts if part.split == "train" for u in part.utterances]
    some = train[:: len(train) // DIMENSION_SAMPLE or 1][:DIMENSION_SAMPLE]
    counts = collections.Counter(
        frames.features.shape[-1]
        for frames in source.prepare_all(some)
        if not isinstance(frames, UtteranceError)
    )
    return max(counts, key=counts.get, default=None)


def _make_parts(source, parts, where, failed, progress, text, like):
    total = sum(len(part.utterances) for part in parts)
    done = 0
    pending = []
    for part in parts:
        summary = read_summary(part)
        if summary is None:
            pending.append(part)
        else:
            done += len(part.utterances)
            failed += len(summary["failures"])
    if like is not None:
        dimension = like.dimension
    else:
        dimension = _dimension(source, parts) if pending else None

    def report(summary, part):
        nonlocal done, failed
        done += len(part.utterances)
        failed += len(summary["failures"])
        if progress:
            progress(done, total, failed)

    if progress:
        progress(done, total, failed)
    jobs = [(part, source, dimension, text) for part in pending]
    for (part, *_), summary in run(make_part, jobs, where):
        report(summary, part)


def _write_corpus(source, output_dir, plan, parts, summaries, failures, where, text, like):
    failures = [[failure.id, failure.reason] for failure in failures]
    failures += [failure for summary in summaries for failure in summary["failures"]]
    _write_failures(output_dir / FAILURES_FILE, failures)

    unknown_states = collections.Counter()
    if text is None:
        occurring = {State.from_entry(entry) for s in summaries for entry in s["states"]}
        if like is None:
            states = source.all_states(occurring)
            labels = {"states": [source.described(state).entry() for state in states]}
            label_of = {state: label for label, state in enumerate(states)}
        else:
            labels = {"states": like.states}
            known = {one["name"]: label for label, one in enumerate(like.states)}
            names = {state: source.described(state).name for state in occurring}
            label_of = {state: known.get(name, UNLABELLED) for state, name in names.items()}
    else:
        label_of, labels = text.labels(), text.document()

    moments = Moments()
    splits, jobs = {}, []
    for split in SPLITS:
        members = [
            (part, summary)
            for part, summary in zip(parts, summaries, strict=True)
            if part.split == split
        ]
        if not members:
            continue
        frames = [length for _, summary in members for length in summary["lengths"]]
        if not frames:
            raise CorpusError(
                f"none of the {len(failures)} failed utterances left anything for {split}; "
                f"the first: {failures[0][0]}: {failures[0][1]} (all in "
                f"{output_dir / FAILURES_FILE})"
            )
        # What is unknown comes last.
        state_frames = np.zeros(len(labels["states"]) + 1, np.int64)
        for _, summary in members:
            for entry, count in zip(summary["states"], summary["state_frames"], strict=True):
                label = label_of[State.from_entry(entry)]
                state_frames[label] += count
                if label == UNLABELLED:
                    unknown_states[State.from_entry(entry).name] += count
            if split == "train":
                moments.merge(Moments(*summary["moments"]))
        lengths, counts = np.unique(frames, return_counts=True)
        splits[split] = {
            "utterances": len(frames),
            "frames": int(sum(frames)),
            "lengths": dict(zip(map(str, lengths.tolist()), counts.tolist(), strict=True)),
            "state_frames": state_frames[:-1].tolist(),
            "shards": [],
        }
        if unknown_states:
            splits[split]["unknown_states"] = dict(sorted(unknown_states.items()))
        if text is not None:
            failed = {name for _, summary in members for name, _ in summary["failures"]}
            unknown = text.unknown(
                u.transcript for part, _ in members for u in part.utterances if u.id not in failed
            )
            if unknown:
                splits[split]["unknown_characters"] = unknown
        unlabelled = sum(summary.get("unlabelled", 0) for _, summary in members)
        if unlabelled:
            splits[split]["unlabelled"] = unlabelled
        groups = _group_by_bytes(members, plan["shard_bytes"])
        for number, group in enumerate(groups):
            file = f"{split}-{number:05d}-of-{len(groups):05d}.tfrecord"
            pieces = [
                (part.path, [label_of[State.from_entry(e)] for e in summary["states"]])
                for part, summary in group
            ]
            jobs.append((output_dir / file, pieces))
            lengths = [length for _, summary in group for length in summary["lengths"]]
            splits[split]["shards"].append(
                {"file": file, "utterances": len(lengths), "frames": int(sum(lengths))}
            )
    written = {job[0].name: result for job, result in run(_write_shard, jobs, where)}
    for entry in splits.values():
        for shard in entry["shards"]:
            shard.update(written[shard["file"]])

    document = {
        "format_version": FORMAT_VERSION,
        "source": source.name,
        "settings": plan["settings"],
        "seed": plan["seed"],
        "sample_rate": source.sample_rate,
        "features": source.feature_settings(),
        **labels,
        "splits": splits,
        "failures": len(failures),
        **(_statistics(moments) if like is None else _statistics_of(like)),
        "versions": plan["versions"],
    }
    document["features"]["dimension"] = len(document["mean"])
    rates = sum(
        (collections.Counter(s.get("file_rates", {})) for s in summaries), collections.Counter()
    )
    if rates:
        document["recordings"] = {
            "sample_rates": {rate: rates[rate] for rate in sorted(rates, key=int)},
            "mixed": sum(s.get("mixed", 0) for s in summaries),
        }
    write_aside(output_dir / CORPUS_FILE, (json.dumps(document, indent=1) + "\n").encode())


def _statistics(moments):
    """The mean and the variance that features are normalised with."""
    return {
        "mean": moments.mean.tolist(),
        "variance": (moments.squares / moments.count).tolist(),
    }


def _statistics_of(like):
    """Those of another corpus, and which it is."""
    own = {key: like.document[key] for key in ("mean", "variance")}
    return {**own, "like": {"source": like.source, "sha256": like.checksum}}


def _group_by_bytes(members, limit):
    groups, size = [[]], 0
    for part, summary in members:
        if groups[-1] and size >= limit:
            groups.append([])
            size = 0
        groups[-1].append((part, summary))
        size += summary["bytes"]
    return groups


def _write_shard(path, pieces):
    """Joins parts to a shard, giving their labels the corpus's numbers."""
    with (
        disk_errors(path),
        written_aside(path, this_process()) as aside,
        tf.io.TFRecordWriter(str(aside)) as writer,
    ):
        for part_path, label_of in pieces:
            try:
                for record in tf.data.TFRecordDataset(str(part_path)):
                    example = tf.train.Example.FromString(record.numpy())
                    labels = example.features.feature["labels"].int64_list
                    labels.value[:] = [
                        label if label == UNLABELLED else label_of[label] for label in labels.value
                    ]
                    writer.write(example.SerializeToString(deterministic=True))
            except tf.errors.DataLossError as error:
                raise CorpusError(
                    f"{part_path} is damaged ({error.message}): delete it and run the same "
                    "command again"
                ) from error
    return {"bytes": path.stat().st_size, "sha256": file_checksum(str(path))}


def _write_failures(path, failures):
    rows = ["id\treason"]
    rows += [
        "\t".join(CONTROLS.sub("\ufffd", " ".join(str(cell).split())) for cell in failure)
        for failure in sorted(failures)
    ]
    text = "\n".join(rows) + "\n"
    # Names of files are not always UTF-8.
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    write_aside(path, text.encode())


def _is_text(name):
    """Whether a file's name is UTF-8; other bytes stand in it as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
