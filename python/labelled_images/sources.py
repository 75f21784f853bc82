# SPDX-License-Identifier: MIT
"""Sources of labelled images: a folder of class folders, a tar of one, or scikit-learn's handwritten digits.

The layout is torchvision's ImageFolder: the first folder below the root names the class, classes are numbered as text
unless told otherwise, hidden files are ignored and other files that are no images counted (`docs/data.md`).
"""

from __future__ import annotations

import collections
import hashlib
import io
import os
import posixpath
import tarfile
from typing import Protocol

import numpy
from PIL import Image

from labelled_images.class_order import sort_classes
from labelled_images.folder_walk import FolderWalk, refuse_broken_link
from training.errors import DataError
from training.image_decoding import decode_image, is_image_name
from training.tar_index import Member, index_tar, is_hidden

VALIDATION_NAMES = ("val", "validation", "test")


class Source(Protocol):
    """Labelled images, readable in any order by any process."""

    name: str
    classes: list[str]
    labels: list[int]
    remarks: list[str]  # what was passed over
    in_memory: bool  # whether reading decodes nothing

    def read(self, index: int) -> Image.Image:
        """Decode image `index` as RGB. Raises DataError, naming the file, if that is not possible."""

    def identify(self, index: int) -> tuple[str, int]:
        """Facts that tell image `index` from others without decoding it: its name below the root, and its bytes."""


class FolderSource:
    """Images in `root/<class>/**`."""

    in_memory = False

    def __init__(self, root: str, class_order: str = "text"):
        self.name = root
        walk, passed_over = FolderWalk(root), collections.Counter()
        folders, stray = walk.top_level()
        passed_over.update(_kind(entry.name) for entry in stray)
        tree: dict[str, list[str]] = {}
        for folder in folders:
            files = tree[folder] = []
            for entry in walk.files(folder):
                if is_image_name(entry.name) and entry.is_file():
                    files.append(entry.path)
                else:
                    passed_over[_kind(entry.name)] += 1
            files.sort()
        self.remarks = describe_passed_over(root, passed_over, walk.repeated)
        self.classes, self.labels, self.files = _number(tree, root, class_order, self.remarks)

    def read(self, index: int) -> Image.Image:
        """See `Source.read`."""
        return decode_image(self.files[index], self.files[index])

    def identify(self, index: int) -> tuple[str, int]:
        """See `Source.identify`."""
        file = self.files[index]
        try:
            size = os.path.getsize(file)
        except OSError as error:
            raise DataError(f"cannot read the image {file}: {error.strerror}") from error
        return os.path.relpath(file, self.name).replace(os.sep, "/"), size


class TarSource:
    """Images in an uncompressed tar, below `prefix`; read in place, nothing is unpacked."""

    in_memory = False

    def __init__(self, path: str, prefix: str = "", class_order: str = "text"):
        self.path, self.prefix, self.name = path, prefix, posixpath.join(path, prefix) if prefix else path
        tree: dict[str, list[Member]] = {}
        passed_over = collections.Counter()
        for member in index_tar(path):
            name = _below(member.name, prefix)
            if not name or is_hidden(name):
                continue
            top, slash, _ = name.partition("/")
            if member.is_folder or slash:
                images = tree.setdefault(top, [])
            if member.is_folder:
                continue
            if slash and is_image_name(name):
                images.append(member)
            else:
                passed_over[_kind(name)] += 1
        for images in tree.values():
            images.sort()
        self.remarks = describe_passed_over(self.name, passed_over)
        self.classes, self.labels, self.members = _number(tree, self.name, class_order, self.remarks)
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
        self.remarks = []
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


def open_training_sources(
    data_path: str | None, val_path: str | None, class_order: str = "text"
) -> tuple[Source, Source]:
    """The training and the validation images of --data-path and --val-path (digits without a path).

    A folder holds `train` and one of `val`, `validation`, `test` (in this order), each a folder or, with `.tar`, a tar
    of class folders; a tar holds them as folders. With --val-path, --data-path may be the training tree itself.

    Raises:
        DataError: a path is missing, a split or class is empty, or the two have different classes.
    """
    if data_path is None:
        return DigitsSource(train=True), DigitsSource(train=False)
    train = _find_split("--data-path", data_path, ("train",), class_order)
    if val_path is not None:
        val = open_validation_source(None, val_path, class_order)
        train = train or _open_tree(data_path, class_order)
    else:
        val = _find_split("--data-path", data_path, VALIDATION_NAMES, class_order)
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


def open_validation_source(data_path: str | None, val_path: str | None = None, class_order: str = "text") -> Source:
    """The images to evaluate on: --val-path, or the validation split of --data-path, or --data-path itself.

    Raises:
        DataError: a path is missing, or a class is empty.
    """
    if data_path is None and val_path is None:
        return DigitsSource(train=False)
    name, path = ("--data-path", data_path) if val_path is None else ("--val-path", val_path)
    return _find_split(name, path, VALIDATION_NAMES, class_order) or _open_tree(path, class_order)


def _find_split(option: str, path: str, names: tuple[str, ...], class_order: str) -> Source | None:
    _require_readable(option, path)
    if os.path.isfile(path):
        folders = {member.name.partition("/")[0] for member in index_tar(path)}
        return next((TarSource(path, name, class_order) for name in names if name in folders), None)
    for name in names:
        for candidate in (os.path.join(path, name), os.path.join(path, name + ".tar")):
            refuse_broken_link(candidate)
            if os.path.isdir(candidate) or (os.path.isfile(candidate) and candidate.endswith(".tar")):
                return _open_tree(candidate, class_order)
    return None


def _open_tree(path: str, class_order: str) -> Source:
    return FolderSource(path, class_order) if os.path.isdir(path) else TarSource(path, class_order=class_order)


def _require_readable(option: str, path: str) -> None:
    if not os.path.exists(path):
        raise DataError(f"{option} {path} does not exist")
    if os.path.isfile(path) and not tarfile.is_tarfile(path):
        raise DataError(f"{option} {path} is neither a folder nor a tar")


def _below(name: str, prefix: str) -> str:
    if not prefix:
        return name if name != "." else ""
    return name[len(prefix) + 1 :] if name.startswith(prefix + "/") else ""


def _kind(name: str) -> str:
    return posixpath.splitext(name)[1].lower() or "without suffix"


def describe_passed_over(name: str, passed_over: collections.Counter[str], repeated: list[str] = ()) -> list[str]:
    """Lines about what lies below `name` and does not count as an image there."""
    remarks = []
    if passed_over:
        kinds = [f"{count} {kind}" for kind, count in passed_over.most_common()]
        remarks.append(f"{name}: passed over what is no image in a class folder: {enumerate_names(kinds)}")
    if repeated:
        remarks.append(f"{name}: links to folders that are read already were not followed: {enumerate_names(repeated)}")
    return remarks


def _number(
    tree: dict[str, list], root: str, class_order: str, remarks: list[str]
) -> tuple[list[str], list[int], list]:
    """Class names, and for all images their class numbers and items."""
    classes = sort_classes(tree, class_order)
    if len(classes) < 2:
        raise DataError(
            f"{root}: expected one folder per class and two classes or more, found {enumerate_names(classes)}"
        )
    empty = [name for name in classes if not tree[name]]
    if empty:
        raise DataError("\n".join([f"{root}: no images in class {enumerate_names(empty)}", *remarks]))
    labels = [number for number, name in enumerate(classes) for _ in tree[name]]
    return classes, labels, [item for name in classes for item in tree[name]]


def enumerate_names(names: list[str], at_most: int = 10) -> str:
    """The names in a message, shortened if there are many."""
    shown = ", ".join(names[:at_most]) or "none"
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"
