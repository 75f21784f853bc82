# SPDX-License-Identifier: MIT
"""The files below a folder or in an uncompressed tar, by names with slashes."""

from __future__ import annotations

import functools
import io
import os
import posixpath
from typing import BinaryIO, Protocol

from training.errors import DataError
from training.tar_index import index_tar


class Files(Protocol):
    """Files that any process may read in any order."""

    name: str

    def names(self, folder: str) -> frozenset[str]:
        """The files directly in `folder` ("" for the root), by their names there; none where there is no folder."""

    def folders(self) -> list[str]:
        """The folders directly below the root."""

    def open(self, name: str) -> BinaryIO:
        """The file `name`. Raises DataError if it cannot be read."""


class FolderFiles:
    """Files of a folder."""

    def __init__(self, root: str):
        self.name = root
        self._listed: dict[str, frozenset[str]] = {}

    def names(self, folder: str) -> frozenset[str]:
        """See `Files.names`."""
        if folder not in self._listed:
            try:
                with os.scandir(os.path.join(self.name, folder)) as entries:
                    self._listed[folder] = frozenset(entry.name for entry in entries if entry.is_file())
            except (FileNotFoundError, NotADirectoryError):
                self._listed[folder] = frozenset()
            except OSError as error:
                raise DataError(f"cannot list {os.path.join(self.name, folder)}: {error.strerror}") from error
        return self._listed[folder]

    def folders(self) -> list[str]:
        """See `Files.folders`."""
        with os.scandir(self.name) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())

    def open(self, name: str) -> BinaryIO:
        """See `Files.open`."""
        try:
            return open(os.path.join(self.name, name), "rb")
        except OSError as error:
            raise DataError(f"cannot read {os.path.join(self.name, name)}: {error.strerror}") from error


class TarFiles:
    """Files of an uncompressed tar, read in place."""

    def __init__(self, path: str):
        self.name = path
        self._members = {member.name: member for member in index_tar(path) if not member.is_folder}
        self._descriptor: int | None = None

    @functools.cached_property
    def _by_folder(self) -> dict[str, frozenset[str]]:
        found: dict[str, set[str]] = {}
        for name in self._members:
            folder, file = posixpath.split(name)
            found.setdefault(folder, set()).add(file)
        return {folder: frozenset(names) for folder, names in found.items()}

    def names(self, folder: str) -> frozenset[str]:
        """See `Files.names`."""
        return self._by_folder.get(folder, frozenset())

    def folders(self) -> list[str]:
        """See `Files.folders`."""
        return sorted({name.split("/")[0] for name in self._members if "/" in name})

    def open(self, name: str) -> BinaryIO:
        """See `Files.open`."""
        if name not in self._members:
            raise DataError(f"{self.name} has no file {name}")
        if self._descriptor is None:
            self._descriptor = os.open(self.name, os.O_RDONLY)
        member = self._members[name]
        # pread leaves the file position alone, so forked workers may share one descriptor
        return io.BytesIO(os.pread(self._descriptor, member.size, member.offset))


def open_files(flag: str, path: str) -> Files:
    """The files at `path`; `flag` is what a message calls it.

    Raises:
        DataError: there is neither a folder nor an uncompressed tar.
    """
    if os.path.isdir(path):
        return FolderFiles(path)
    if os.path.isfile(path):
        return TarFiles(path)
    raise DataError(f"{flag} {path}: there is no such folder or tar")
