"""Which files a data folder holds: links are followed, what is hidden is no data."""

import os
from pathlib import Path

from keras_bnrnn.data.errors import CorpusError, UtteranceError


def find_files(root, derived=None):
    """Finds the files of a folder and of all below it.

    Links to folders are followed, except to a folder that they themselves are in. Files and
    folders whose names begin with a dot are left out.

    Args:
        root: `Path` of the folder.
        derived: a compiled pattern: folders of such names below `root` repeat what others hold,
            and are left out.

    Returns:
        A sorted list of `Path`, and a dictionary from what could not be read to the reason.

    Raises:
        CorpusError: the folder itself cannot be read.
    """
    files, unread = [], {}

    def visit(folder, above):
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            unread[folder] = f"{folder}: cannot be read ({error.strerror})"
            return
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_symlink():
                    path.stat()
                if not entry.is_dir():
                    files.append(path)
                    continue
            except OSError as error:
                unread[path] = f"{path}: the link leads nowhere ({error.strerror})"
                continue
            real = Path(os.path.realpath(path))
            cycle = any(real in (one, *one.parents) for one in above)
            if not cycle and not (derived and derived.fullmatch(entry.name)):
                visit(path, [*above, real])

    visit(root, [Path(os.path.realpath(root))])
    if root in unread:
        raise CorpusError(unread[root])
    return sorted(files), unread


def and_unread(unread):
    """What `find_files` could not read, to be put after what was not found."""
    return "".join(f"; {reason}" for reason in unread.values())


def only_one(paths):
    """The one of these files; `None` if there is none, UtteranceError if several could be meant."""
    if len(paths) > 1:
        raise UtteranceError(
            f"either of {' and '.join(map(str, paths))} could be meant: leave one of them"
        )
    return paths[0] if paths else None
