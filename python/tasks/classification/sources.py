# SPDX-License-Identifier: MIT
"""Where labelled images come from: a folder of class folders, a tar of one, or scikit-learn's handwritten digits.

The layout is torchvision's ImageFolder: the first folder below the root names the class, classes are numbered in
sorted order, hidden files and files that are no images are ignored.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
import posixpath
import tarfile
from typing import Protocol

import numpy
from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions
from training.errors import DataError

VALIDATION_NAMES = ("val", "validation", "test")


class Source(Protocol):
    """Labelled images, readable in any order by any process."""

    name: str
    classes: list[str]
    labels: list[int]
    in_memory: bool  # whether reading decodes nothing

    def read(self, index: int) -> Image.Image:
        """Decode image `index` as RGB. Raises DataError, naming the file, if that is not possible."""

    def identify(self, index: int) -> tuple[str, int]:
        """What tells image `index` from others without decoding it: its name below the root, and its bytes."""


class FolderSource:
    """Images in `root/<class>/**`."""

    in_memory = False

    def __init__(self, root: str):
        self.name = root
        tree: dict[str, list[str]] = {}
        for entry in os.scandir(root):
            if entry.is_dir() and not entry.name.startswith("."):
                tree[entry.name] = sorted(_walk_images(entry.path))
        self.classes, self.labels, self.files = _number(tree, root)

    def read(self, index: int) -> Image.Image:
        """See `Source.read`."""
        return decode_image(self.files[index], self.files[index])

    def identify(self, index: int) -> tuple[str, int]:
        """See `Source.identify`."""
        file = self.files[index]
        return os.path.relpath(file, self.name).replace(os.sep, "/"), os.path.getsize(file)


class TarSource:
    """Images in an uncompressed tar, below `prefix`; read in place, nothing is unpacked."""

    in_memory = False

    def __init__(self, path: str, prefix: str = ""):
        self.path, self.prefix, self.name = path, prefix, posixpath.join(path, prefix) if prefix else path
        tree: dict[str, list[_Member]] = {}
        for member in index_tar(path):
            top, slash, rest = _below(member.name, prefix).partition("/")
            if not top or top.startswith("."):
                continue
            if member.is_folder or slash:
                images = tree.setdefault(top, [])
                if not member.is_folder and _is_image(posixpath.basename(rest)):
                    images.append(member)
        for images in tree.values():
            images.sort()
        self.classes, self.labels, self.members = _number(tree, self.name)
        self._descriptor = None

    def read(self, index: int) -> Image.Image:
        """See `Source.read`."""
        member = self.members[index]
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        # pread leaves the file position alone, so forked workers may share one descriptor
        content = os.pread(self._descriptor, member.size, member.offset)
        return decode_image(io.BytesIO(content), f"{member.name} in {self.path}")

    def identify(self, index: int) -> tuple[str, int]:
        """See `Source.identify`."""
        member = self.members[index]
        return _below(member.name, self.prefix), member.size

    def __getstate__(self):
        return {**self.__dict__, "_descriptor": None}


class DigitsSource:
    """scikit-learn's 1,797 handwritten digits, 8×8; a fixed quarter of every class is held out for testing."""

    in_memory = True

    def __init__(self, train: bool):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        split = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)
        images, labels = (split[0], split[2]) if train else (split[1], split[3])
        self.name = f"scikit-learn's handwritten digits ({'training' if train else 'held-out'} part)"
        self.classes = [str(digit) for digit in range(10)]
        self.labels = labels.tolist()
        self._pixels = numpy.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(numpy.uint8)

    def read(self, index: int) -> Image.Image:
        """See `Source.read`."""
        return Image.fromarray(self._pixels[index]).convert("RGB")

    def identify(self, index: int) -> tuple[str, int]:
        """See `Source.identify`."""
        return str(index), self._pixels[index].nbytes


def digest_images(source: Source) -> str:
    """The same for the same images, whether they are in a folder or a tar and whatever its path."""
    digest = hashlib.sha256(repr(source.classes).encode())
    for index, label in enumerate(source.labels):
        digest.update(repr((label, *source.identify(index))).encode())
    return digest.hexdigest()


def open_training_sources(data_path: str | None, val_path: str | None) -> tuple[Source, Source]:
    """The training and the validation images of --data-path and --val-path (digits without a path).

    A folder holds `train` and one of `val`, `validation`, `test` (in this order), each a folder or, with `.tar`, a tar
    of class folders; a tar holds them as folders. With --val-path, --data-path may be the training tree itself.

    Raises:
        DataError: a path is missing, a split or class is empty, or the two have different classes.
    """
    if data_path is None:
        return DigitsSource(train=True), DigitsSource(train=False)
    train = _find_split("--data-path", data_path, ("train",))
    if val_path is not None:
        val = _find_split("--val-path", val_path, VALIDATION_NAMES) or _open_tree("--val-path", val_path)
        train = train or _open_tree("--data-path", data_path)
    else:
        val = _find_split("--data-path", data_path, VALIDATION_NAMES)
        if train is None or val is None:
            missing = "train" if train is None else " or ".join(VALIDATION_NAMES)
            raise DataError(
                f"--data-path {data_path} holds no {missing}; expected {os.path.join(data_path, 'train')} and "
                f"{os.path.join(data_path, 'val')} (folders or tars), or name the validation images with --val-path"
            )
    if train.classes != val.classes:
        raise DataError(
            f"{train.name} and {val.name} have different classes: only in the first: "
            f"{enumerate_names(sorted(set(train.classes) - set(val.classes)))}; only in the second: "
            f"{enumerate_names(sorted(set(val.classes) - set(train.classes)))}"
        )
    return train, val


def open_validation_source(data_path: str | None, val_path: str | None = None) -> Source:
    """The images to evaluate on: --val-path, or the validation split of --data-path, or --data-path itself.

    Raises:
        DataError: a path is missing, or a class is empty.
    """
    if data_path is None and val_path is None:
        return DigitsSource(train=False)
    name, path = ("--data-path", data_path) if val_path is None else ("--val-path", val_path)
    return _find_split(name, path, VALIDATION_NAMES) or _open_tree(name, path)


def _find_split(option: str, path: str, names: tuple[str, ...]) -> Source | None:
    _require_readable(option, path)
    if os.path.isdir(path):
        for name in names:
            candidate = os.path.join(path, name)
            if os.path.isdir(candidate):
                return FolderSource(candidate)
            if os.path.isfile(candidate + ".tar"):
                return TarSource(candidate + ".tar")
        return None
    folders = {member.name.partition("/")[0] for member in index_tar(path)}
    return next((TarSource(path, name) for name in names if name in folders), None)


def _open_tree(option: str, path: str) -> Source:
    _require_readable(option, path)
    return FolderSource(path) if os.path.isdir(path) else TarSource(path)


def _require_readable(option: str, path: str) -> None:
    if not os.path.exists(path):
        raise DataError(f"{option} {path} does not exist")
    if os.path.isfile(path) and not tarfile.is_tarfile(path):
        raise DataError(f"{option} {path} is neither a folder nor a tar")


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class _Member:
    name: str
    offset: int
    size: int
    is_folder: bool


@functools.lru_cache(maxsize=4)
def index_tar(path: str) -> list[_Member]:
    """Name, offset and size of everything in an uncompressed tar, names without a leading `./`.

    Raises:
        DataError: the tar is compressed, cut short, or holds an image as a link.
    """
    members = []
    length = os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # tarfile keeps every header; ImageNet's would need gigabytes
                name = posixpath.normpath(info.name).lstrip("/")
                if (info.issym() or info.islnk()) and _is_image(posixpath.basename(name)):
                    raise DataError(f"{path}: {name} is a link; make the tar with --dereference --hard-dereference")
                if info.offset_data + info.size > length:
                    raise DataError(f"{path} is cut short: {name} reaches beyond its end")
                if info.isreg() or info.isdir():
                    members.append(_Member(name, info.offset_data, info.size, info.isdir()))
    except tarfile.ReadError as error:
        raise DataError(f"{path} cannot be read as an uncompressed tar: {error}") from error
    return members


def _below(name: str, prefix: str) -> str:
    if not prefix:
        return name if name != "." else ""
    return name[len(prefix) + 1 :] if name.startswith(prefix + "/") else ""


def _walk_images(folder: str):
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(parent, name) for name in files if _is_image(name))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in get_img_extensions(as_set=True)


def _number(tree: dict[str, list], root: str) -> tuple[list[str], list[int], list]:
    """Class names, and for all images their class numbers and items."""
    classes = sorted(tree)
    if len(classes) < 2:
        raise DataError(
            f"{root}: expected one folder per class and two classes or more, found {enumerate_names(classes)}"
        )
    empty = [name for name in classes if not tree[name]]
    if empty:
        raise DataError(f"{root}: no images in class {enumerate_names(empty)}")
    labels = [number for number, name in enumerate(classes) for _ in tree[name]]
    return classes, labels, [item for name in classes for item in tree[name]]


def enumerate_names(names: list[str], at_most: int = 10) -> str:
    """The names in a message, shortened if there are many."""
    shown = ", ".join(names[:at_most]) or "none"
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"


def decode_image(file, name: str) -> Image.Image:
    """The image in `file`, a path or an open file, as RGB. Raises DataError, with `name`, if that is not possible."""
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {name}: {error}") from error
