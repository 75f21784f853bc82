# SPDX-License-Identifier: MIT
"""The files of class folders: links are followed, each folder is entered once, and a link to nothing is an error."""

from __future__ import annotations

import os
from collections.abc import Iterator

from training.errors import DataError

Identity = tuple[int, int]  # device and inode: what two paths to one folder share


class FolderWalk:
    """Walks through the folders below `root`. Hidden files and folders are passed over.

    `repeated` names links to folders that were entered already and are not entered again: to one that holds the link,
    which would have no end, or to another of the same class, whose images would count twice.
    """

    def __init__(self, root: str):
        self.root = root
        self.repeated: list[str] = []
        self._above = _identities_above(root)

    def top_level(self) -> tuple[list[str], list[os.DirEntry]]:
        """The names of the class folders in `root`, and what else lies there.

        Raises:
            DataError: `root` cannot be read, or holds a link to nothing.
        """
        folders, files = [], []
        for entry in _entries(self.root):
            if not entry.is_dir():
                files.append(entry)
            elif not self._is_repeated(entry, self._above):
                folders.append(entry.name)
        return folders, files

    def files(self, folder: str) -> Iterator[os.DirEntry]:
        """Entries that are no folder in the class `folder` and below it.

        Raises:
            DataError: a folder cannot be read, or holds a link to nothing.
        """
        waiting = [os.path.join(self.root, folder)]
        entered = self._above | {_identity(os.stat(waiting[0]))}
        while waiting:
            for entry in _entries(waiting.pop()):
                if not entry.is_dir():
                    yield entry
                elif not self._is_repeated(entry, entered):
                    entered.add(_identity(entry.stat()))
                    waiting.append(entry.path)

    def _is_repeated(self, entry: os.DirEntry, entered: set[Identity]) -> bool:
        if _identity(entry.stat()) not in entered:
            return False
        self.repeated.append(entry.path)
        return True


def _entries(folder: str) -> list[os.DirEntry]:
    """Sorted, without hidden ones."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
    for entry in entries:
        if entry.is_symlink():
            refuse_broken_link(entry.path)
    return entries


def refuse_broken_link(path: str) -> None:
    """Raises DataError if `path` is a link to nothing: what it should lead to would be left out without a word."""
    if os.path.islink(path) and not os.path.exists(path):
        raise DataError(f"{path} is a link to {os.readlink(path)}, which cannot be reached")


def _identities_above(root: str) -> set[Identity]:
    """Of `root` and every folder that holds it."""
    folder, identities = os.path.realpath(root), set()
    while True:
        identities.add(_identity(os.stat(folder)))
        if folder == (parent := os.path.dirname(folder)):
            return identities
        folder = parent


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino
