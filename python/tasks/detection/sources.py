# SPDX-License-Identifier: MIT
"""From --data-path to a training and a validation source: which layout a folder or a tar has."""

from __future__ import annotations

import posixpath

from tasks.detection.annotations import Category, Source
from tasks.detection.coco import CocoSource
from tasks.detection.files import Files, open_files
from tasks.detection.voc import ANNOTATIONS, LISTS, VocSource
from training.errors import DataError

VALIDATION_NAMES = ("val", "valid", "validation", "test")
ROBOFLOW_JSON = "_annotations.coco.json"


def open_source(
    flag: str,
    path: str,
    train: bool,
    categories: list[Category] | None = None,
    check_only: bool = False,
    of_one_part: bool = False,
) -> Source:
    """The training or the validation part of the folder or tar at `path`.

    COCO: `annotations/*.json`, of which the one whose name has the word train, or val; the images are in the root, in
    `images`, or in a folder of the part, as train2017. Or: an `_annotations.coco.json` in the folder of each part, or
    in the root `of_one_part`.
    Pascal VOC: `Annotations`, `JPEGImages`, and the lists of `ImageSets/Main`.

    Args:
        flag: the option that gave the path, for messages.
        categories: those of the training part, which the validation part must have, too.
        check_only: keep fatal problems in `problems` instead of raising.
        of_one_part: the other part is elsewhere.

    Raises:
        DataError: there is no such part, or it has mistakes.
    """
    files = open_files(flag, path)
    names = ("train",) if train else VALIDATION_NAMES
    if files.names(ANNOTATIONS) and any(name.endswith(".xml") for name in files.names(ANNOTATIONS)):
        return VocSource(files, _voc_part(files, names), categories, check_only)
    alone = of_one_part and ROBOFLOW_JSON in files.names("")
    found = (ROBOFLOW_JSON, ("",)) if alone else _coco_json(files, names)
    if found is None:
        wanted = "train" if train else "val"
        raise DataError(
            f"{flag} {path}: expected annotations/*{wanted}*.json or {wanted}*/{ROBOFLOW_JSON} (COCO), "
            f"or {ANNOTATIONS}/*.xml (Pascal VOC)"
        )
    source = CocoSource(files, *found, check_only)
    if categories is not None and source.categories != categories:
        raise DataError(f"{source.name} has other categories than the training part")
    return source


def check_files(data_path: str, val_path: str | None) -> None:
    """Print every mistake of both parts, and how many images and objects are left.

    Raises:
        DataError: there are fatal ones, or a part is missing.
    """
    fatal = 0
    categories = None
    for train, (flag, path) in ((True, ("--data-path", data_path)), (False, ("--val-path", val_path or data_path))):
        flag = flag if val_path or train else "--data-path"
        source = open_source(flag, path, train, categories, check_only=True, of_one_part=val_path is not None)
        categories = categories or source.categories
        for problem in source.problems:
            print(f"{'error' if problem.fatal else 'put right'}: {problem}")
        fatal += sum(problem.fatal for problem in source.problems)
        objects = sum(len(source.objects(index)) for index in range(len(source)))
        masks = "with masks" if source.has_masks else "without masks"
        print(f"{source.name}: {len(source):,} images, {objects:,} objects {masks}, {len(categories)} categories")
    if fatal:
        raise DataError(f"{fatal} mistakes that have to be put right in the files")


def _coco_json(files: Files, names: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """The json of a part, and where its images may be."""
    for name in names:
        for folder in files.folders():
            if folder.startswith(name) and ROBOFLOW_JSON in files.names(folder):
                return f"{folder}/{ROBOFLOW_JSON}", (folder,)
        folders = ("", "images", *(f for f in files.folders() if f.startswith(name)))
        folders += tuple(posixpath.join("images", f) for f in (name, f"{name}2017"))
        jsons = sorted(file for file in files.names("annotations") if file.endswith(".json") and name in file)
        # Of COCO's own, instances are what is detected; beside them lie captions and key points.
        jsons = [file for file in jsons if file.startswith("instances")] or jsons
        if len(jsons) > 1:
            raise DataError(f"{files.name}/annotations has several files of {name}: {', '.join(jsons)}")
        if jsons:
            return f"annotations/{jsons[0]}", folders
    return None


def _voc_part(files: Files, names: tuple[str, ...]) -> str:
    lists = {name[:-4] for name in files.names(LISTS) if name.endswith(".txt")}
    # trainval is what VOC's own results are trained on.
    for name in ("trainval", *names) if names == ("train",) and "val" not in lists else names:
        if name in lists:
            return name
    raise DataError(
        f"{files.name}/{LISTS} has no list of {' or '.join(names)}, only {', '.join(sorted(lists)) or 'none'}"
    )
