"""Kaldi's alignments of a whole recipe: pdf-ids per utterance, kept in a file."""

import atexit
import contextlib
import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_bnrnn.data.errors import CorpusError, UtteranceError
from keras_bnrnn.data.speech.alignment import State
from keras_bnrnn.data.speech.corpus import SPLITS
from keras_bnrnn.data.speech.folders import find_files
from keras_bnrnn.data.speech.kaldi.archives import read_integer_vectors
from keras_bnrnn.data.speech.kaldi.models import read_phone_names, read_transition_model
from keras_bnrnn.data.speech.sources.base import require_folder
from keras_bnrnn.data.speech.splits import split_of_folders

MODEL_FILES = ("final.mdl", "final.mdl.txt", "final.txt")
PHONES_FILE = "phones.txt"
NOT_ALIGNMENTS = (".scp", ".log", ".mdl", ".counts")
CHOOSE = "name the folders to take, separated by commas"
# What split_data.sh makes of a folder: its list, again, in pieces.
DERIVED = re.compile(r"split\d+(utt)?")


@dataclass(frozen=True, repr=False)
class PdfIds:
    """Where in a file of int32 an utterance's pdf-ids are, and their checksum."""

    file: str
    offset: int
    frames: int
    sha256: str

    def __repr__(self):
        return self.sha256

    def read(self):
        """`[frames]`, int32."""
        try:
            return np.fromfile(self.file, np.int32, self.frames, offset=self.offset)
        except FileNotFoundError as error:
            raise CorpusError(
                f"{self.file} is not on this machine: on a cluster set TMPDIR to a folder that all "
                "workers share"
            ) from error


class Alignments:
    """Pdf-ids per utterance, and what could not be read.

    Attributes:
        states: the `State` of each pdf: those of the model, or up to the largest id seen.
        damage: messages, one for each archive that could not be read to its end.
    """

    def __init__(self):
        self.states = []
        self.damage = []
        self._found = {}
        self._bad_lines = {}

    def __len__(self):
        return len(self._found)

    def add(self, name, split, path, pdf_ids):
        """Adds what the archive `path`, in a folder of `split` if any, says of an utterance.

        `pdf_ids` is an `UtteranceError` where it says nothing that can be read.
        """
        if isinstance(pdf_ids, UtteranceError):
            self._bad_lines[name, split] = str(pdf_ids)
        else:
            self._found.setdefault((name, split), {})[pdf_ids] = path

    def find(self, name, split):
        """The `PdfIds` of an utterance, those in a folder of its split before others.

        Returns:
            `None` if there are none and all archives are whole.

        Raises:
            CorpusError: folders differ, so that one must be chosen.
            UtteranceError: there are several in a folder, or what there is cannot be read.
        """
        for candidates in ([split], [""], SPLITS):
            found, bad = {}, []
            for candidate in candidates:
                found |= self._found.get((name, candidate), {})
                bad += filter(None, [self._bad_lines.get((name, candidate))])
            if len({pdf_ids.sha256 for pdf_ids in found}) > 1:
                folders = sorted({str(path.parent) for path in found.values()})
                if len(folders) > 1 and len(candidates) == 1:
                    raise CorpusError(
                        f"alignment_dir: {' and '.join(folders)} align {name} differently: {CHOOSE}"
                    )
                places = ", ".join(map(str, found.values()))
                raise UtteranceError(f"the id occurs twice, aligned differently: in {places}")
            if found:
                return next(iter(found))
            if bad:
                raise UtteranceError(bad[0])
        if self.damage:
            raise UtteranceError("; ".join(["no alignment of this utterance", *self.damage]))
        return None


def read_alignments(alignment_dir, lang_dir=None, split_of=split_of_folders):
    """Reads every alignment archive of one or more folders and below.

    Archives `ali*` hold transition-ids of the model in their own folder, `pdf*` pdf-ids.

    Args:
        alignment_dir: a folder, or several separated by commas.
        lang_dir: a folder whose `phones.txt` names the phones where none lies beside a model.
        split_of: the split, or an empty string, that a list of folders' names speaks of.

    Raises:
        CorpusError: there is none, or it cannot be told what the ids mean.
    """
    alignments, archives = Alignments(), []
    folders = folders_of(alignment_dir)
    for folder in folders:
        files, unread = find_files(folder, DERIVED)
        # Links that lead nowhere are common in recipes that were moved; these would be missed.
        missed = (path for path in unread if not path.suffix or _is_archive(path))
        alignments.damage += map(unread.get, missed)
        for path in filter(_is_archive, files):
            names = path.relative_to(folder).parts[:-1]
            # One of several folders speaks by its own name, too.
            archives.append((path, split_of([folder.name, *names] if len(folders) > 1 else names)))
    if not archives:
        raise CorpusError(
            "; ".join(
                [
                    f"alignment_dir={alignment_dir}: no archive named ali* or pdf* in it or below",
                    *alignments.damage,
                ]
            )
        )
    model, alignments.states = _model_of([path for path, _ in archives], lang_dir)
    largest = _read_archives(archives, model, alignments)
    if not len(alignments):
        raise CorpusError(
            f"alignment_dir={alignment_dir}: nothing could be read; {'; '.join(alignments.damage)}"
        )
    if model is None:
        alignments.states = [State(pdf) for pdf in range(largest + 1)]
    return alignments


def folders_of(alignment_dir):
    """The folders that are meant, a list of `Path`; CorpusError if one is not given or there."""
    if not alignment_dir or Path(alignment_dir).is_dir():
        return [require_folder(alignment_dir, "alignment_dir")]
    parts = [part.strip() for part in alignment_dir.split(",")]
    return [require_folder(part, "alignment_dir") for part in parts]


def _is_archive(path):
    named = path.name.startswith(("ali", "pdf")) or path.suffix in (".ali", ".pdf")
    return named and path.suffix not in NOT_ALIGNMENTS


def _holds_transition_ids(path):
    return not path.name.startswith("pdf") and path.suffix != ".pdf"


def _model_of(paths, lang_dir):
    """The `TransitionModel` of all archives and the `State` of each of its pdfs.

    `None` and no states where there are pdf-ids only, and no model beside them.
    """
    models, names = {}, {}
    for folder in dict.fromkeys(path.parent for path in paths):
        needed = [p.name for p in paths if p.parent == folder and _holds_transition_ids(p)]
        model = _model_in(folder, needed)
        if model is not None:
            models[folder] = model
            if (folder / PHONES_FILE).is_file():
                names[folder / PHONES_FILE] = read_phone_names(folder / PHONES_FILE)
    if not models:
        return None, []
    model = _agreed(models, f"the models differ, and so do the meanings of their ids: {CHOOSE}")
    if not names and lang_dir and (lang_dir / PHONES_FILE).is_file():
        names[lang_dir / PHONES_FILE] = read_phone_names(lang_dir / PHONES_FILE)
    if not names:
        return model, [State(pdf) for pdf in range(model.num_pdfs)]
    phones = _agreed(names, f"the names of phones differ: {CHOOSE}")
    try:
        return model, model.states(phones)
    except CorpusError as error:
        raise CorpusError(f"{next(iter(names))}: {error}") from None


def _agreed(found, otherwise):
    """The value that all keys have; CorpusError names two that have not, and says `otherwise`."""
    (first, value), *others = found.items()
    for key, other in others:
        if other != value:
            raise CorpusError(f"alignment_dir: {first} and {key}: {otherwise}")
    return value


def _model_in(folder, transition_ids):
    """The model of a folder, `None` if there is none that can be read and none is needed.

    Args:
        folder: `Path`.
        transition_ids: names of the archives that need one.
    """
    found, reasons = {}, []
    for path in (folder / name for name in MODEL_FILES):
        if path.is_file():
            try:
                found[path] = read_transition_model(path)
            except CorpusError as error:
                reasons.append(str(error))
    if found:
        return _agreed(found, "the models differ: leave that of the alignments")
    if not transition_ids:
        return None
    raise CorpusError(
        f"alignment_dir: {folder / transition_ids[0]} holds transition-ids, and "
        f"{'; '.join(reasons) or f'there is no final.mdl in {folder}'}. Put the model of these "
        "alignments beside them (in binary form, or as text: gmm-copy --binary=false final.mdl "
        "final.mdl.txt), or pdf-ids in their place: ali-to-pdf final.mdl "
        '"ark:gunzip -c ali.*.gz|" ark,t:pdf.txt. If these are pdf-ids, name them pdf*'
    )


def _read_archives(archives, model, alignments):
    """Adds all vectors to `alignments`; returns the largest pdf-id."""
    largest = -1
    # In a file, because the alignments of a thousand hours would take gigabytes of memory.
    with tempfile.NamedTemporaryFile(prefix="pdf-ids-", delete=False) as file:
        atexit.register(_remove, file.name)
        for path, split in archives:
            try:
                for name, vector in read_integer_vectors(path):
                    if isinstance(vector, UtteranceError):
                        alignments.add(name, split, path, vector)
                        continue
                    if _holds_transition_ids(path):
                        vector = model.pdfs(vector)
                    largest = max(largest, int(vector.max(initial=-1)))
                    contents = np.asarray(vector, np.int32).tobytes()
                    checksum = hashlib.sha256(contents).hexdigest()
                    pdf_ids = PdfIds(file.name, file.tell(), len(vector), checksum)
                    alignments.add(name, split, path, pdf_ids)
                    file.write(contents)
            except (OSError, ValueError) as error:
                alignments.damage.append(f"{path} cannot be read to its end ({error})")
    return largest


def _remove(path):
    with contextlib.suppress(OSError):
        os.unlink(path)
