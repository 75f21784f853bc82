"""COCO and VOC files: what is read, what is put right and counted, what is refused with file and entry."""

import json
import tarfile

import numpy
import pytest
from annotated_images import content, write_coco, write_image, write_voc
from PIL import Image

from tasks.detection.annotations import Category
from tasks.detection.sources import open_source
from training.errors import DataError

pytest.importorskip("faster_coco_eval")


def train_source(path, **options):
    return open_source("--data-path", str(path), True, **options)


@pytest.fixture(params=["folder", "tar"])
def packed(request, tmp_path):
    """The tree as it is, or as a tar of it."""

    def pack(root):
        if request.param == "folder":
            return root
        with tarfile.open(tmp_path / "tree.tar", "w") as tar:
            tar.add(root, arcname=".")
        return tmp_path / "tree.tar"

    return pack


def test_coco(tmp_path, packed):
    source = train_source(packed(write_coco(tmp_path / "data", content())))
    assert source.categories == [Category(90, "cat"), Category(4, "dog"), Category(17, "nothing")]
    assert [source.image_id(i) for i in range(len(source))] == [7, 3, 9]
    assert source.remarks == [] and not source.has_masks
    image, objects = source.read(0)
    assert image.size == (40, 30) and source.size(0) == (30, 40)
    assert objects.boxes.tolist() == [[1, 2, 11, 7], [0, 0, 1, 1]]
    assert objects.labels.tolist() == [0, 1] and objects.area.tolist() == [50, 1] and not objects.crowd.any()
    _, objects = source.read(1)
    assert objects.crowd.tolist() == [True] and objects.area.tolist() == [40]
    _, objects = source.read(2)
    assert len(objects) == 0 and objects.boxes.shape == (0, 4) and objects.boxes.dtype == numpy.float32


def test_boxes_beyond_the_image(tmp_path):
    """Cut off or left out, and counted; not for a hundredth of a pixel."""
    data = content()
    boxes = [[-5, -5, 10, 10], [35, 25, 99, 99], [50, 2, 5, 5], [5, 5, 0, 3], [5, 5, -2, 3], [0, 0, 40.01, 30]]
    data["annotations"] = [
        {"id": n, "image_id": 7, "category_id": 4, "bbox": box, "iscrowd": 0} for n, box in enumerate(boxes)
    ]
    source = train_source(write_coco(tmp_path, data))
    objects = source.objects(0)
    assert objects.boxes.tolist() == [[0, 0, 5, 5], [35, 25, 40, 30], [0, 0, 40, 30]]
    assert objects.area.tolist() == [25, 25, 1200]
    assert [remark.partition(": ")[2] for remark in source.remarks] == [
        "2 × its box reaches out of the image: cut off",
        "3 × its box is empty or outside of the image: left out",
    ]


def test_areas_and_boxes_that_are_nothing(tmp_path):
    data = content()
    data["annotations"][0].update(area=-3)
    data["annotations"][1].update(area=float("nan"), bbox=[30, 2, 1e-9, 5])  # as float32 from 30 to 30
    data["annotations"][2].pop("area")
    source = train_source(write_coco(tmp_path, data))
    assert source.objects(0).area.tolist() == [50] and source.objects(1).area.tolist() == [100]
    assert [remark.partition(": ")[2] for remark in source.remarks] == [
        "1 × its area is no number above 0: the box's is taken",
        "1 × its box is empty or outside of the image: left out",
    ]


def change(key, position, **values):
    def apply(data):
        data[key][position].update(values)

    return apply


MISTAKES = {
    "category 4: its id is given twice": change("categories", 0, id=4),
    "categories[1]: it has no number 'id' or no text 'name'": change("categories", 1, name=None),
    "image 7 (b.png): its id is given twice": change("images", 1, id=7),
    "image 3 (b.png): its height or width is no positive number": change("images", 1, height=0),
    "images[2]: it has no number 'id' or no text 'file_name'": change("images", 2, id="9"),
    "annotation 1: its id is given twice": change("annotations", 1, id=1),
    "annotation 2: its category 5 is not among the categories": change("annotations", 1, category_id=5),
    "annotation 2: its image 8 is not among the images": change("annotations", 1, image_id=8),
    "annotation 2: its bbox is not four finite numbers: [0, 0, 1]": change("annotations", 1, bbox=[0, 0, 1]),
    "annotation 2: its bbox is not four finite numbers: [0, 0, nan, 1]": change(
        "annotations", 1, bbox=[0, 0, float("nan"), 1]
    ),
    "annotation 2: its bbox is not four finite numbers: [0, 0, True, 1]": change(
        "annotations", 1, bbox=[0, 0, True, 1]
    ),
    "annotation 2: its category [4] is not among the categories": change("annotations", 1, category_id=[4]),
    "annotation 2: its category True is not among the categories": change("annotations", 1, category_id=True),
    "annotation 2: its image None is not among the images": change("annotations", 1, image_id=None),
    "annotations[1]: its id is no whole number: [2]": change("annotations", 1, id=[2]),
    "annotation 2: its iscrowd is neither 0 nor 1: 'yes'": change("annotations", 1, iscrowd="yes"),
    "images[2]: it has no number 'id' or no text 'file_name": change("images", 2, id=True),
    "annotations[0]: it is no object with names: 5": lambda data: data["annotations"].__setitem__(0, 5),
    "categories[2]: it is no object with names: dog": lambda data: data["categories"].__setitem__(2, "dog"),
    "images[0]: it is no object with names: None": lambda data: data["images"].__setitem__(0, None),
    "annotation 2: its segmentation cannot be read: a coordinate of a polygon is no finite number": change(
        "annotations", 1, segmentation=[[1, 2, 3, 4, float("inf"), 6]]
    ),
    "annotation 2: its segmentation cannot be read: its size is 5": change(
        "annotations", 1, segmentation={"size": 5, "counts": [25]}
    ),
    "annotation 2: its segmentation cannot be read: Invalid RLE": change(
        "annotations", 1, segmentation={"size": [30, 40], "counts": "~~~"}
    ),
    "annotation 2: its segmentation cannot be read: a polygon has less than three points": change(
        "annotations", 1, segmentation=[[1, 2, 3, 4]]
    ),
    "annotation 2: its segmentation cannot be read: its size is [5, 5], the image's [30, 40]": change(
        "annotations", 1, segmentation={"size": [5, 5], "counts": [25]}
    ),
    "annotation 2: its segmentation cannot be read: its runs do not add up to 1200 pixels": change(
        "annotations", 1, segmentation={"size": [30, 40], "counts": [25]}
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_name_file_and_entry(tmp_path, message):
    data = content()
    root = write_coco(tmp_path, data)
    MISTAKES[message](data)
    (root / "annotations" / "instances_train.json").write_text(json.dumps(data))
    with pytest.raises(DataError) as raised:
        train_source(root)
    assert f"{root}/annotations/instances_train.json: {message}" in str(raised.value)


def test_missing_images_are_named_and_all_can_be_listed(tmp_path):
    root = write_coco(tmp_path, content())
    for name in ("a.png", "b.png"):
        (root / "train2017" / name).unlink()
    with pytest.raises(DataError, match=r"image 7 \(a.png\): there is no such file in"):
        train_source(root)
    source = train_source(root, check_only=True)
    # The files alone: nothing is wrong with their annotations.
    assert [problem.entry for problem in source.problems] == ["image 7 (a.png)", "image 3 (b.png)"]
    assert all(p.kind == f"there is no such file in {root} and its train2017/" for p in source.problems)
    assert len(source) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', "\xff"])
def test_not_a_coco_file(tmp_path, text):
    root = write_coco(tmp_path, content())
    (root / "annotations" / "instances_train.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"instances_train.json( is not valid json|: expected COCO's format)"):
        train_source(root)


def test_masks_in_every_spelling(tmp_path):
    from faster_coco_eval.core import mask as api

    data = content()
    square = numpy.zeros((30, 40), dtype=numpy.uint8, order="F")
    square[2:7, 1:11] = 1
    packed_text = api.encode(square)["counts"]
    counts = [62, 5, *[25, 5] * 9, 1200 - 62 - 5 * 10 - 25 * 9]
    spellings = [
        [[1, 2, 11, 2, 11, 7, 1, 7]],
        {"size": [30, 40], "counts": [32, *counts[1:-1], counts[-1] + 30]},
        {"size": [30, 40], "counts": packed_text if isinstance(packed_text, str) else packed_text.decode()},
    ]
    for entry, spelling in zip(data["annotations"], spellings, strict=True):
        entry.update(image_id=7, bbox=[1, 2, 10, 5], segmentation=spelling)
    source = train_source(write_coco(tmp_path, data))
    assert source.has_masks
    objects = source.objects(0)
    assert objects.masks.shape == (3, 30, 40) and objects.masks.dtype == bool
    for mask in objects.masks:
        assert numpy.array_equal(mask, square.astype(bool))


def test_a_file_with_masks_for_some_objects_has_none(tmp_path):
    data = content()
    data["annotations"][0]["segmentation"] = [[1, 2, 11, 2, 11, 7, 1, 7]]
    source = train_source(write_coco(tmp_path, data))
    assert not source.has_masks and source.objects(0).masks is None


def test_turned_photographs(tmp_path):
    """Boxes fit what is read: as stored or turned, whichever the json's size says; another size is an error."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    data = content()
    data["images"] = [
        {"id": 1, "file_name": "stored.jpg", "height": 20, "width": 30},
        {"id": 2, "file_name": "turned.jpg", "height": 30, "width": 20},
        {"id": 3, "file_name": "other.jpg", "height": 31, "width": 20},
    ]
    data["annotations"] = []
    for name in ("stored.jpg", "turned.jpg", "other.jpg"):
        write_image(tmp_path / "train2017" / name, 30, 20, exif=exif)
    source = train_source(write_coco(tmp_path, data))
    assert source.read(0)[0].size == (30, 20) and source.read(1)[0].size == (20, 30)
    with pytest.raises(DataError, match=r"other.jpg is 30×20, its annotations are of an image of 20×31"):
        source.read(2)


@pytest.mark.parametrize(("mode", "value"), [("L", 128), ("I;16", 128 * 257), ("LA", (128, 0)), ("P", 5)])
def test_grey_and_sixteen_bits(tmp_path, mode, value):
    data = content()
    (tmp_path / "train2017").mkdir()
    Image.new(mode, (40, 30), value).save(tmp_path / "train2017" / "a.png")
    image, _ = train_source(write_coco(tmp_path, data)).read(0)
    assert image.mode == "RGB" and (mode == "P" or image.getpixel((3, 3)) == (128, 128, 128))


def test_a_damaged_image_is_named(tmp_path):
    root = write_coco(tmp_path, content())
    (root / "train2017" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read the image .*/train2017/a.png"):
        train_source(root).read(0)


def test_validation_has_the_categories_of_training(tmp_path):
    root = write_coco(tmp_path, content())
    other = content()
    other["categories"].reverse()
    write_coco(root, other, part="val")
    categories = train_source(root).categories
    with pytest.raises(DataError, match=r"instances_val\.json has other categories than the training part"):
        open_source("--data-path", str(root), False, categories)
    write_coco(root, content(), part="val")
    assert len(open_source("--data-path", str(root), False, categories)) == 3


def test_other_layouts(tmp_path):
    """Images beside a json of each part's folder, and names that begin with their folder."""
    data = content()
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "_annotations.coco.json").write_text(json.dumps(data))
    for image in data["images"]:
        write_image(tmp_path / "train" / image["file_name"], image["width"], image["height"])
    assert len(train_source(tmp_path)) == 3
    with pytest.raises(DataError, match=r"--data-path .*: expected annotations/\*val\*.json"):
        open_source("--data-path", str(tmp_path), False)
    # The folder of a part as its own path: of one part alone, or one file would be both.
    part = str(tmp_path / "train")
    for train in (True, False):
        assert len(open_source("--data-path", part, train, of_one_part=True)) == 3
        with pytest.raises(DataError, match=r"_annotations.coco.json \(COCO\)"):
            open_source("--data-path", part, train)
    with pytest.raises(DataError, match=r"--data-path .*nowhere: there is no such folder or tar"):
        open_source("--data-path", str(tmp_path / "nowhere"), True)


VOC = {
    "one": ((40, 30), [("dog", (1, 1, 1, 1), False), ("cat", (2, 3, 11, 7), True)]),
    "two": ((20, 20), [("cat", (15, 15, 30, 30), False)]),
    "none": ((10, 10), []),
}


def test_voc(tmp_path, packed):
    source = train_source(packed(write_voc(tmp_path / "data", VOC)))
    assert source.categories == [Category(0, "cat"), Category(1, "dog")]
    image, objects = source.read(0)
    assert image.size == (40, 30)
    # VOC counts from 1 and includes the last pixel.
    assert objects.boxes.tolist() == [[0, 0, 1, 1], [1, 2, 11, 7]]
    assert objects.labels.tolist() == [1, 0] and objects.crowd.tolist() == [False, True]
    assert source.objects(1).boxes.tolist() == [[14, 14, 20, 20]] and len(source.objects(2)) == 0
    assert [remark.partition(": ")[2] for remark in source.remarks] == ["1 × its box reaches out of the image: cut off"]


def test_voc_mistakes(tmp_path):
    root = write_voc(tmp_path, VOC)
    categories = train_source(root).categories
    write_voc(root, {"new": ((20, 20), [("cow", (1, 1, 5, 5), False)])}, part="val")
    with pytest.raises(DataError, match=r"val.txt: object 'cow': the training part has no such objects"):
        open_source("--data-path", str(root), False, categories)
    (root / "JPEGImages" / "one.jpg").unlink()
    (root / "Annotations" / "two.xml").write_text("<annotation>")
    with pytest.raises(DataError) as raised:
        train_source(root)
    assert "image one: there is no one.jpg in" in str(raised.value)
    assert "Annotations/two.xml: it cannot be read: " in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<difficult>1", "<difficult>maybe", "one, object 1: its difficult is neither 0 nor 1: maybe"),
        ("<width>", "<width>-", "Annotations/one.xml: it cannot be read: its size is -"),
        ("<xmin>", "<xmin>x", "one, object 0: it has no name, or its bndbox is not four finite numbers"),
    ],
)
def test_voc_values(tmp_path, old, new, message):
    root = write_voc(tmp_path, {"one": ((20, 20), [("cow", (1, 1, 5, 5), False), ("cow", (2, 2, 9, 9), True)])})
    xml = root / "Annotations" / "one.xml"
    assert old in xml.read_text()
    xml.write_text(xml.read_text().replace(old, new))
    with pytest.raises(DataError) as raised:
        train_source(root)
    assert message in str(raised.value)
