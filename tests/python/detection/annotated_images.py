"""Small COCO and VOC trees, to be broken one mistake at a time."""

import copy
import json
from pathlib import Path

from PIL import Image

CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 30, "width": 40},
        {"id": 3, "file_name": "b.png", "height": 20, "width": 20},
        {"id": 9, "file_name": "empty.png", "height": 10, "width": 10},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 5], "area": 50, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0},
        {"id": 3, "image_id": 3, "category_id": 4, "bbox": [2, 2, 10, 10], "area": 40, "iscrowd": 1},
    ],
    # With gaps, not in order, and one that no object has.
    "categories": [{"id": 90, "name": "cat"}, {"id": 4, "name": "dog"}, {"id": 17, "name": "nothing"}],
}


def content() -> dict:
    return copy.deepcopy(CONTENT)


def write_image(path: Path, width: int, height: int, colour=(10, 20, 30), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path, **options)


def write_coco(root: Path, content: dict, part: str = "train") -> Path:
    """The json, and the images that it names and that are not there yet."""
    path = root / "annotations" / f"instances_{part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for image in content["images"]:
        file = root / f"{part}2017" / str(image.get("file_name"))
        if not file.exists():
            write_image(file, image["width"], image["height"])
    return root


XML = """<annotation><filename>{name}.jpg</filename><size><width>{width}</width><height>{height}</height></size>
{objects}</annotation>"""
OBJECT = """<object><name>{kind}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def write_voc(root: Path, images: dict[str, tuple[tuple[int, int], list]], part: str = "train") -> Path:
    """`images`: name -> ((width, height), [(kind, box, difficult)])."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, ((width, height), objects) in images.items():
        text = "".join(OBJECT.format(kind=kind, box=box, difficult=int(d)) for kind, box, d in objects)
        xml = XML.format(name=name, width=width, height=height, objects=text)
        (root / "Annotations" / f"{name}.xml").write_text(xml)
        write_image(root / "JPEGImages" / f"{name}.jpg", width, height)
    (root / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in images))
    return root
