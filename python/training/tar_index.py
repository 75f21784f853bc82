# SPDX-License-Identifier: MIT
"""Index of an uncompressed tar, so that its files are read in place; a damaged tar is an error."""

from __future__ import annotations

import dataclasses
import functools
import os
import posixpath
import tarfile
from typing import BinaryIO

from training.errors import DataError
from training.image_decoding import is_image_name

CHUNK = 2**20


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Member:
    """A file or folder in a tar, its name without a leading `./`."""

    name: str
    offset: int
    size: int
    is_folder: bool


@functools.lru_cache(maxsize=4)
def index_tar(path: str) -> list[Member]:
    """The files and folders of an uncompressed tar; of several with one name the last, as when it is unpacked.

    Raises:
        DataError: the tar is compressed, cut short or damaged, or a link in it leaves out images.
    """
    members: dict[str, Member] = {}
    links: dict[str, str] = {}
    length = os.path.getsize(path)
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # tarfile keeps every header; ImageNet's would need gigabytes
                name = posixpath.normpath(info.name).lstrip("/")
                if info.issparse():
                    raise DataError(f"{path}: {name} is stored with holes; make the tar without --sparse")
                if info.offset_data + info.size > length:
                    raise DataError(f"{path} is cut short: {name} reaches beyond its end")
                if info.issym():
                    links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), info.linkname))
                elif info.islnk():
                    links[name] = posixpath.normpath(info.linkname).lstrip("/")
                elif info.isreg() or info.isdir():
                    members[name] = Member(name, info.offset_data, info.size, info.isdir())
            _check_end(path, file, tar.offset)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read as an uncompressed tar: {error}") from error
    _refuse_links(path, links, members)
    return list(members.values())


def _check_end(path: str, file: BinaryIO, offset: int) -> None:
    """Refuse a tar whose headers stop at `offset` without the zeros that end it: tarfile takes any stop for its end."""
    file.seek(offset)
    if not (block := file.read(tarfile.BLOCKSIZE)):
        raise DataError(f"{path} is cut short: it stops at byte {offset} without the zeros that end a tar")
    if any(block):
        raise DataError(f"{path} is damaged: at byte {offset} there is neither a header nor the end of a tar")
    while block := file.read(CHUNK):
        if any(block):
            raise DataError(
                f"{path}: the tar ends at byte {offset}, but other data follows, which would be left out; "
                "join tars with tar --concatenate"
            )


def _refuse_links(path: str, links: dict[str, str], members: dict[str, Member]) -> None:
    """Links to files that are no images are all that can be left out."""
    for name, target in links.items():
        if is_hidden(name):
            continue
        member = members.get(target)
        if member is None or member.is_folder or is_image_name(name):
            raise DataError(f"{path}: {name} is a link; make the tar with --dereference --hard-dereference")


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder it is in, starts with a dot."""
    return any(part.startswith(".") for part in name.split("/"))
