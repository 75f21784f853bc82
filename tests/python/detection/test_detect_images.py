"""detect_images.py: finds in images what the network finds, draws it, writes it as COCO's json."""

import json

import numpy
import pytest
from PIL import Image

import detect
import detect_images
from tasks.detection.coco import CocoSource
from tasks.detection.files import open_files
from tasks.detection.scenes import SMALL_DIGITS, Scenes
from training.errors import CheckpointError, DataError, OptionError

pytest.importorskip("faster_coco_eval")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of Mask R-CNN long enough to leave a checkpoint, and a folder of scenes of two sizes."""
    root = tmp_path_factory.mktemp("detect_images")
    detect.main([
        "--detector", "mask-rcnn", "--output-dir", str(root / "run"), "--train-scenes", "8", "--val-scenes", "4",
        "--epochs", "1", "--batch-size", "4", "--short-sides", "64", "--longest-side", "64", "--warmup-steps", "1",
        "--device", "cpu", "--drop-path", "0", "--model", "container", "--model-kwargs", "embed_dims=(8, 8, 16, 16)",
        "depths=(1, 0, 1, 0)", "num_heads=(1, 1, 2, 2)", "mlp_ratios=2",
    ])  # fmt: skip
    (root / "images" / "more").mkdir(parents=True)
    scenes = Scenes(3, False, style=SMALL_DIGITS)
    scenes.read(0)[0].save(root / "images" / "a.png")
    scenes.read(1)[0].resize((300, 200)).save(root / "images" / "b.jpg")
    scenes.read(2)[0].convert("L").save(root / "images" / "more" / "c.png")
    (root / "images" / "notes.txt").write_text("no image")
    return root


def run(trained, *more):
    return detect_images.main([str(trained / "run" / "last.pth"), *map(str, more), "--device", "cpu"])


def test_a_folder_of_images(trained, tmp_path, capsys):
    output = tmp_path / "found"
    content = run(trained, trained / "images", "--threshold", "0", "--output-dir", output, "--columns", "2")
    names = [image["file_name"].removeprefix(str(trained / "images") + "/") for image in content["images"]]
    assert names == ["a.png", "b.jpg", "more/c.png"]
    assert [(image["width"], image["height"]) for image in content["images"]][1] == (300, 200)
    assert content == json.loads((output / "detections.json").read_text())
    assert {category["name"] for category in content["categories"]} == set("0123456789")
    found = [annotation for annotation in content["annotations"] if annotation["image_id"] == 2]
    assert found and all(annotation["segmentation"]["size"] == [200, 300] for annotation in found)
    right, bottom = (max(a["bbox"][i] + a["bbox"][i + 2] for a in found) for i in (0, 1))
    assert 128 < right <= 300.01 and bottom <= 200.01
    assert f"{len(content['annotations']):,} objects in 3 images" in capsys.readouterr().out
    with Image.open(output / "sheet.png") as page:
        assert page.size == (2 * 484 + 4, 2 * 484 + 4)
        assert len(numpy.unique(numpy.asarray(page))) > 50


def test_the_json_is_a_data_set(trained, tmp_path):
    """Its annotations come back as the objects of its images."""
    run(trained, trained / "images", "--threshold", "0", "--output-dir", tmp_path)
    content = json.loads((tmp_path / "detections.json").read_text())
    for image in content["images"]:
        image["file_name"] = image["file_name"].removeprefix(str(trained / "images") + "/")
    content["annotations"] = [a for a in content["annotations"] if min(a["bbox"][2:]) > 0]
    (trained / "images" / "_annotations.coco.json").write_text(json.dumps(content))
    source = CocoSource(open_files("--data-path", str(trained / "images")), "_annotations.coco.json", ("",))
    (trained / "images" / "_annotations.coco.json").unlink()
    assert len(source) == 3 and sum(len(source.objects(i)) for i in range(3)) == len(content["annotations"])


def test_nothing_below_the_threshold(trained, tmp_path):
    low = run(trained, trained / "images" / "a.png", "--threshold", "0", "--output-dir", tmp_path)
    scores = sorted(annotation["score"] for annotation in low["annotations"])
    middle = scores[len(scores) // 2]
    high = run(trained, trained / "images" / "a.png", "--threshold", middle, "--output-dir", tmp_path)
    assert [a["score"] for a in high["annotations"]] == [a["score"] for a in low["annotations"] if a["score"] >= middle]
    assert 0 < len(high["annotations"]) < len(low["annotations"])
    assert run(trained, trained / "images", "--threshold", "1", "--output-dir", tmp_path)["annotations"] == []


def test_a_photo_lying_on_its_side_is_turned(trained, tmp_path):
    with Image.open(trained / "images" / "b.jpg") as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / "turned.jpg", exif=exif)
    (image,) = run(trained, tmp_path / "turned.jpg", "--output-dir", tmp_path)["images"]
    assert (image["width"], image["height"]) == (200, 300)


def test_many_images_fill_several_sheets(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.detection.prediction.IMAGES_PER_SHEET", 2)
    run(trained, trained / "images", "--output-dir", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"sheet.png", "sheet2.png", "detections.json"}


def test_what_is_wrong_is_named(trained, tmp_path):
    with pytest.raises(OptionError, match=r"nowhere: there is no such file or folder"):
        run(trained, tmp_path / "nowhere")
    with pytest.raises(OptionError, match=r"there are no images in this folder"):
        run(trained, tmp_path)
    with pytest.raises(OptionError, match=r"--threshold must be from 0 to 1, got 2.0"):
        run(trained, trained / "images", "--threshold", "2")
    with pytest.raises(OptionError, match=r"following arguments are required: IMAGES"):
        run(trained)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(OptionError, match=r"--output-dir .*: expected a folder, this is a file"):
        run(trained, trained / "images", "--output-dir", tmp_path / "broken.png")
    with pytest.raises(DataError, match=r"cannot read the image .*broken.png"):
        run(trained, tmp_path / "broken.png", "--output-dir", tmp_path)
    with pytest.raises(CheckpointError):
        detect_images.main([str(tmp_path / "broken.png"), str(trained / "images")])
