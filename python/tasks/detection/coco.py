# SPDX-License-Identifier: MIT
"""Images with objects in COCO's format: a json of images, annotations and categories beside the images.

What is put right is counted in `remarks`: boxes are clipped to their image, and left out where nothing is left. What
would be silently wrong (an annotation of an unknown image or category, a number given twice, an image that is not
there) is an error that names the file and the entry.
"""

from __future__ import annotations

import collections
import json
import math
import posixpath
from collections.abc import Iterator
from typing import Any

import numpy
from PIL import Image

from tasks.detection.annotations import Category, Objects
from tasks.detection.files import Files
from tasks.detection.problems import Problem, refuse, remarks
from tasks.detection.segmentation import as_rle, decode_rle
from training.errors import DataError
from training.image_decoding import decode_image

Entry = dict[str, Any]


class CocoSource:
    """The images of `json_name`, which are sought in `folders` of `files`, the first that has them.

    Raises:
        DataError: the json cannot be read, or has fatal problems (unless `check_only`).
    """

    def __init__(self, files: Files, json_name: str, folders: tuple[str, ...], check_only: bool = False):
        self.files = files
        self.json_name, self.name = json_name, posixpath.join(files.name, json_name)
        self.problems: list[Problem] = []
        content = self._load()
        self.categories, index_of = self._read_categories(content["categories"])
        self.images = self._read_images(content["images"], folders)
        self._objects = self._read_annotations(content["annotations"], index_of)
        self.images = [image for image in self.images if image["path"] is not None]
        annotated = [entry for entries in self._objects.values() for entry in entries]
        self.has_masks = bool(annotated) and all("rle" in entry for entry in annotated)
        if not check_only:
            refuse(self.problems)
        self.remarks = remarks(self.problems)

    def __len__(self) -> int:
        return len(self.images)

    def image_id(self, index: int) -> int:
        """See `Source.image_id`."""
        return self.images[index]["id"]

    def image_name(self, index: int) -> str:
        """See `Source.image_name`."""
        return posixpath.join(self.files.name, self.images[index]["path"])

    def size(self, index: int) -> tuple[int, int]:
        """See `Source.size`."""
        return self.images[index]["height"], self.images[index]["width"]

    def read(self, index: int) -> tuple[Image.Image, Objects]:
        """See `Source.read`."""
        return read_upright(self.files, self.images[index]["path"], self.size(index)), self.objects(index)

    def objects(self, index: int) -> Objects:
        """See `Source.objects`."""
        entries, (height, width) = self._objects[self.image_id(index)], self.size(index)
        masks = None
        if self.has_masks:
            masks = numpy.zeros((len(entries), height, width), dtype=bool)
            for mask, entry in zip(masks, entries, strict=True):
                mask[:] = decode_rle(entry["rle"])
        return Objects(
            boxes=numpy.array([entry["box"] for entry in entries], dtype=numpy.float32).reshape(-1, 4),
            labels=numpy.array([entry["label"] for entry in entries], dtype=numpy.int64),
            masks=masks,
            area=numpy.array([entry["area"] for entry in entries], dtype=numpy.float32),
            crowd=numpy.array([entry["crowd"] for entry in entries], dtype=bool),
        )

    def _load(self) -> dict[str, list[Entry]]:
        with self.files.open(self.json_name) as file:
            try:
                content = json.load(file)
            except (ValueError, UnicodeDecodeError) as error:
                raise DataError(f"{self.name} is not valid json: {error}") from error
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise DataError(f"{self.name}: expected COCO's format, a list {key!r}; there is none")
        return content

    def _problem(self, entry: str, kind: str, fatal: bool) -> None:
        self.problems.append(Problem(self.name, entry, kind, fatal))

    def _read_categories(self, entries: list[Entry]) -> tuple[list[Category], dict[int, int]]:
        categories, index_of = [], {}
        for position, entry in self._objects_of("categories", entries):
            if not _is_whole(entry.get("id")) or not isinstance(entry.get("name"), str):
                self._problem(f"categories[{position}]", "it has no number 'id' or no text 'name'", True)
            elif entry["id"] in index_of:
                self._problem(f"category {entry['id']}", "its id is given twice", True)
            else:
                index_of[entry["id"]] = len(categories)
                categories.append(Category(entry["id"], entry["name"]))
        if not entries:
            self._problem("categories", "there are none", True)
        return categories, index_of

    def _read_images(self, entries: list[Entry], folders: tuple[str, ...]) -> list[Entry]:
        """Those whose file is missing, too, with path None: their objects are not to blame."""
        images, known = [], set()
        for position, entry in self._objects_of("images", entries):
            name = entry.get("file_name")
            sides = (entry.get("height"), entry.get("width"))
            if not _is_whole(entry.get("id")) or not isinstance(name, str):
                self._problem(f"images[{position}]", "it has no number 'id' or no text 'file_name'", True)
                continue
            label = f"image {entry['id']} ({name})"
            if not all(_is_whole(side) and side > 0 for side in sides):
                self._problem(label, "its height or width is no positive number", True)
                continue
            if entry["id"] in known:
                self._problem(label, "its id is given twice", True)
                continue
            path = self._find(name, folders)
            if path is None:
                searched = [f"{folder}/" for folder in folders if folder and self.files.names(folder)]
                where = " and its ".join([self.files.name, *([", ".join(searched)] if searched else [])])
                self._problem(label, f"there is no such file in {where}", True)
            known.add(entry["id"])
            images.append({"id": entry["id"], "path": path, "height": sides[0], "width": sides[1]})
        if not images:
            self._problem("images", "there are none", True)
        return images

    def _find(self, name: str, folders: tuple[str, ...]) -> str | None:
        for folder in folders:
            path = posixpath.normpath(posixpath.join(folder, name))
            if posixpath.basename(path) in self.files.names(posixpath.dirname(path)):
                return path
        return None

    def _read_annotations(self, entries: list[Entry], index_of: dict[int, int]) -> dict[int, list[Entry]]:
        sizes = {image["id"]: (image["height"], image["width"]) for image in self.images}
        objects: dict[int, list[Entry]] = collections.defaultdict(list)
        known = set()
        for position, entry in self._objects_of("annotations", entries):
            number, category, image = (entry.get(key) for key in ("id", "category_id", "image_id"))
            label = f"annotation {number}" if number is not None else f"annotations[{position}]"
            if number is not None and not _is_whole(number):
                self._problem(f"annotations[{position}]", f"its id is no whole number: {number!r}", True)
                continue
            if number is not None and number in known:
                self._problem(label, "its id is given twice", True)
                continue
            known.add(number)
            if not _is_whole(category) or category not in index_of:
                self._problem(label, f"its category {category!r} is not among the categories", True)
            elif not _is_whole(image) or image not in sizes:
                self._problem(label, f"its image {image!r} is not among the images", True)
            elif (read := self._read_object(label, entry, sizes[image])) is not None:
                objects[image].append({**read, "label": index_of[category]})
        return objects

    def _objects_of(self, key: str, entries: list[Any]) -> Iterator[tuple[int, Entry]]:
        """Place and content of the entries that are json objects."""
        for position, entry in enumerate(entries):
            if isinstance(entry, dict):
                yield position, entry
            else:
                self._problem(f"{key}[{position}]", f"it is no object with names: {str(entry)[:40]}", True)

    def _read_object(self, label: str, entry: Entry, size: tuple[int, int]) -> Entry | None:
        """Box, area, crowd and, where there is one, the mask of an annotation; None where nothing is left of it."""
        height, width = size
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
            self._problem(label, f"its bbox is not four finite numbers: {box!r}", True)
            return None
        x, y, w, h = box
        left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
        # as float32, in which a box that is thin enough has no inside
        corners = numpy.array([left, top, right, bottom], dtype=numpy.float32)
        if w <= 0 or h <= 0 or not (corners[:2] < corners[2:]).all():
            self._problem(label, "its box is empty or outside of the image: left out", False)
            return None
        if (left, top, right, bottom) != (x, y, x + w, y + h) and _is_outside(box, size):
            self._problem(label, "its box reaches out of the image: cut off", False)
        area, crowd = entry.get("area"), entry.get("iscrowd", 0)
        if crowd not in (0, 1) or isinstance(crowd, float):
            self._problem(label, f"its iscrowd is neither 0 nor 1: {crowd!r}", True)
            return None
        if area is None or not _is_finite(area) or area <= 0:
            if area is not None:
                self._problem(label, "its area is no number above 0: the box's is taken", False)
            area = (right - left) * (bottom - top)
        read = {"box": (left, top, right, bottom), "area": float(area), "crowd": bool(crowd)}
        if entry.get("segmentation"):
            try:
                read["rle"] = as_rle(entry["segmentation"], size)
            except ValueError as error:
                self._problem(label, f"its segmentation cannot be read: {error}", True)
        return read


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_outside(box: list[float], size: tuple[int, int]) -> bool:
    """By more than rounding: many files have boxes that reach a hundredth of a pixel beyond an edge."""
    x, y, w, h = box
    return min(x, y) < -0.05 or x + w > size[1] + 0.05 or y + h > size[0] + 0.05


def read_upright(files: Files, path: str, size: tuple[int, int]) -> Image.Image:
    """The image at `path` in the orientation that its annotations, of an image of `size` (height, width), were made in:
    as its pixels are stored or, if only that fits, turned as its EXIF orientation says.

    Raises:
        DataError: it cannot be read, or has another size.
    """
    name = posixpath.join(files.name, path)
    with files.open(path) as file:
        image = decode_image(file, name)
        if image.size == size[::-1]:
            return image
        file.seek(0)
        turned = decode_image(file, name, upright=True)
    if turned.size == size[::-1]:
        return turned
    raise DataError(
        f"{name} is {image.width}×{image.height}, its annotations are of an image of {size[1]}×{size[0]} (w × h)"
    )
