# SPDX-License-Identifier: MIT
"""Images with boxes in Pascal VOC's format: an xml for each image in Annotations/, the images in JPEGImages/.

Boxes of VOC count pixels from 1 and include the last one: xmin 1, xmax 1 is one pixel. `difficult` objects are treated
as COCO's crowds: not trained on, and ignored in evaluation.
"""

from __future__ import annotations

import math
import posixpath
from xml.etree import ElementTree

import numpy
from PIL import Image

from tasks.detection.annotations import Category, Objects
from tasks.detection.coco import read_upright
from tasks.detection.files import Files
from tasks.detection.problems import Problem, refuse, remarks
from training.errors import DataError

ANNOTATIONS, IMAGES, LISTS = "Annotations", "JPEGImages", "ImageSets/Main"


class VocSource:
    """The images that ImageSets/Main/`part`.txt lists, or of all xml files where `part` is None.

    `categories`: those of the training part; by default the names that occur, sorted.

    Raises:
        DataError: a file cannot be read, or has fatal problems (unless `check_only`).
    """

    has_masks = False

    def __init__(
        self, files: Files, part: str | None, categories: list[Category] | None = None, check_only: bool = False
    ):
        self.files = files
        self.name = (
            posixpath.join(files.name, LISTS, f"{part}.txt") if part else posixpath.join(files.name, ANNOTATIONS)
        )
        self.problems: list[Problem] = []
        self._names: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self._paths: list[str] = []
        found = []
        for name in self._listed(part):
            read = self._read_xml(name)
            if read is not None:
                path, size, objects = read
                self._names.append(name)
                self._paths.append(path)
                self._sizes.append(size)
                found.append(objects)
        names = sorted({kind for objects in found for kind, *_ in objects})
        self.categories = categories or [Category(number, kind) for number, kind in enumerate(names)]
        index_of = {category.name: index for index, category in enumerate(self.categories)}
        for kind in names:
            if kind not in index_of:
                self._problem(f"object {kind!r}", "the training part has no such objects", True)
        self._objects = [[o for o in objects if o[0] in index_of] for objects in found]
        self._index_of = index_of
        if not self._names:
            self._problem("images", "there are none", True)
        if not check_only:
            refuse(self.problems)
        self.remarks = remarks(self.problems)

    def __len__(self) -> int:
        return len(self._names)

    def image_id(self, index: int) -> int:
        """See `Source.image_id`: VOC has names alone, so the place among them."""
        return index

    def image_name(self, index: int) -> str:
        """See `Source.image_name`."""
        return posixpath.join(self.files.name, self._paths[index])

    def size(self, index: int) -> tuple[int, int]:
        """See `Source.size`."""
        return self._sizes[index]

    def read(self, index: int) -> tuple[Image.Image, Objects]:
        """See `Source.read`."""
        return read_upright(self.files, self._paths[index], self._sizes[index]), self.objects(index)

    def objects(self, index: int) -> Objects:
        """See `Source.objects`."""
        objects = self._objects[index]
        boxes = numpy.array([box for _, box, _ in objects], dtype=numpy.float32).reshape(-1, 4)
        return Objects(
            boxes=boxes,
            labels=numpy.array([self._index_of[kind] for kind, *_ in objects], dtype=numpy.int64),
            masks=None,
            area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            crowd=numpy.array([difficult for *_, difficult in objects], dtype=bool),
        )

    def _problem(self, entry: str, kind: str, fatal: bool) -> None:
        self.problems.append(Problem(self.name, entry, kind, fatal))

    def _listed(self, part: str | None) -> list[str]:
        if part is None:
            return sorted(name[:-4] for name in self.files.names(ANNOTATIONS) if name.endswith(".xml"))
        with self.files.open(f"{LISTS}/{part}.txt") as file:
            lines = [line.split()[0] for line in file.read().decode().splitlines() if line.strip()]
        repeated = sorted({name for name in lines if lines.count(name) > 1}) if len(set(lines)) < len(lines) else []
        for name in repeated:
            self._problem(f"image {name}", "it is listed twice", True)
        return list(dict.fromkeys(lines))

    def _read_xml(self, name: str) -> tuple[str, tuple[int, int], list[tuple[str, tuple, bool]]] | None:
        """Path and (height, width) of an image, and (kind, box, difficult) of its objects."""
        try:
            with self.files.open(f"{ANNOTATIONS}/{name}.xml") as file:
                root = ElementTree.parse(file).getroot()
            size = (int(root.findtext("size/height", "")), int(root.findtext("size/width", "")))
            if min(size) < 1:
                raise ValueError(f"its size is {size[1]}×{size[0]}")
        except (DataError, ElementTree.ParseError, ValueError) as error:
            self._problem(f"{ANNOTATIONS}/{name}.xml", f"it cannot be read: {error}", True)
            return None
        file_name = root.findtext("filename") or f"{name}.jpg"
        candidates = [file_name, *(f"{name}{ending}" for ending in (".jpg", ".jpeg", ".png"))]
        path = next((f"{IMAGES}/{c}" for c in candidates if c in self.files.names(IMAGES)), None)
        if path is None:
            self._problem(
                f"image {name}", f"there is no {file_name} in {posixpath.join(self.files.name, IMAGES)}", True
            )
            return None
        objects = [self._read_object(f"{name}, object {n}", node, size) for n, node in enumerate(root.iter("object"))]
        return path, size, [read for read in objects if read is not None]

    def _read_object(self, label: str, node: ElementTree.Element, size: tuple[int, int]):
        kind = (node.findtext("name") or "").strip()
        try:
            sides = [float(node.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            sides = [math.nan]
        if not kind or not all(map(math.isfinite, sides)):
            self._problem(label, "it has no name, or its bndbox is not four finite numbers", True)
            return None
        left, top, right, bottom = sides[0] - 1, sides[1] - 1, sides[2], sides[3]
        box = (max(left, 0.0), max(top, 0.0), min(right, float(size[1])), min(bottom, float(size[0])))
        if box[0] >= box[2] or box[1] >= box[3]:
            self._problem(label, "its box is empty or outside of the image: left out", False)
            return None
        if box != (left, top, right, bottom):
            self._problem(label, "its box reaches out of the image: cut off", False)
        difficult = (node.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            self._problem(label, f"its difficult is neither 0 nor 1: {difficult}", True)
            return None
        return kind, box, difficult == "1"
