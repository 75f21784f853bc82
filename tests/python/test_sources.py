"""Where images come from: folders and tars give the same, and what cannot be used is named."""

import io
import os
import re
import tarfile

import pytest
from PIL import Image
from trial_runs import CLASSES

from labelled_images.decoded_cache import keep_decoded
from labelled_images.sources import (
    DigitsSource,
    FolderSource,
    TarSource,
    digest_images,
    open_training_sources,
    open_validation_source,
)
from tasks.classification.subset import take_fraction
from training.errors import DataError
from training.tar_index import index_tar


def pack(path, folder, prefix=""):
    """A tar of what is in `folder`, names starting with `prefix`."""
    with tarfile.open(path, "w") as tar:
        for entry in sorted(os.listdir(folder), reverse=True):
            tar.add(folder / entry, prefix + entry)
    return path


def content(source):
    return [(source.classes[label], source.read(i).tobytes()) for i, label in enumerate(source.labels)]


@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_tar_gives_what_its_folder_gives(images, tmp_path, prefix):
    folder, tar = (
        FolderSource(str(images / "train")),
        TarSource(str(pack(tmp_path / "t.tar", images / "train", prefix))),
    )
    assert tar.classes == folder.classes == sorted(CLASSES)
    assert tar.labels == folder.labels
    assert content(tar) == content(folder)


def test_every_layout_of_a_data_set_is_found(images, tmp_path):
    expected = [content(FolderSource(str(images / split))) for split in ("train", "val")]

    both = pack(tmp_path / "both.tar", images, "./")
    train, val = pack(tmp_path / "train.tar", images / "train"), pack(tmp_path / "test.tar", images / "val")
    for data_path, val_path in (
        (images, None),
        (both, None),
        (tmp_path, None),  # holds train.tar and test.tar
        (train, val),
        (images / "train", images / "val"),
        (images, both),
    ):
        sources = open_training_sources(str(data_path), val_path and str(val_path))
        assert [content(source) for source in sources] == expected, (data_path, val_path)
    for path in (images, both, val, images / "val"):
        assert content(open_validation_source(str(path))) == expected[1]
        assert content(open_validation_source(None, str(path))) == expected[1]


def test_a_digest_belongs_to_the_images_and_not_to_their_place(own_images, tmp_path):
    train = own_images / "train"
    source = FolderSource(str(train))
    digest = digest_images(source)
    assert digest == digest_images(TarSource(str(pack(tmp_path / "t.tar", train, "./"))))
    assert digest == digest_images(TarSource(str(pack(tmp_path / "u.tar", own_images)), "train"))
    assert digest == digest_images(keep_decoded(source)) == digest_images(take_fraction(source, 1.0, seed=0))
    assert (
        digest
        != digest_images(take_fraction(source, 0.9, seed=0))
        != digest_images(FolderSource(str(own_images / "val")))
    )
    moved = train / "red" / "00.png"
    moved.rename(train / "red" / "08.png")
    assert digest_images(FolderSource(str(train))) != digest
    (train / "red" / "08.png").rename(moved)
    assert digest_images(FolderSource(str(train))) == digest
    moved.write_bytes(moved.read_bytes() + b"x")
    assert digest_images(FolderSource(str(train))) != digest
    digits = DigitsSource(train=True)
    assert digest_images(digits) == digest_images(digits) != digest_images(DigitsSource(train=False))


def test_hidden_files_and_other_files_are_ignored(own_images):
    train = own_images / "train"
    for stray in (".DS_Store", "red/._00.png", "red/notes.txt", ".git/x.png", "red/.git/x.png"):
        (train / stray).parent.mkdir(exist_ok=True)
        (train / stray).write_bytes(b"")
    assert len(FolderSource(str(train)).labels) == 24
    assert len(TarSource(str(pack(own_images / "t.tar", train))).labels) == 24


@pytest.mark.parametrize("suffix", ["webp", "bmp", "tif", "PPM"])
def test_every_kind_of_image_counts(own_images, suffix):
    train = own_images / "train"
    for file in sorted((train / "red").iterdir()):
        Image.open(file).save(file.with_suffix(f".{suffix}"))
        file.unlink()
    folder, tar = FolderSource(str(train)), TarSource(str(pack(own_images / "t.tar", train)))
    assert folder.labels == tar.labels == [0] * 8 + [1] * 8 + [2] * 8
    assert folder.read(20).tobytes() == tar.read(20).tobytes()
    assert folder.remarks == tar.remarks == []


def test_what_is_passed_over_is_counted_by_kind(own_images):
    train = own_images / "train"
    for stray in ("red/notes.txt", "blue/a/b/c.TXT", "green/film.mp4", "README", "outside.png"):
        (train / stray).parent.mkdir(parents=True, exist_ok=True)
        (train / stray).write_bytes(b"")
    folder, tar = FolderSource(str(train)), TarSource(str(pack(own_images / "t.tar", train)))
    for source in (folder, tar):
        assert len(source.labels) == 24
        (remark,) = source.remarks
        head, _, kinds = remark.rpartition(": ")
        assert head == f"{source.name}: passed over what is no image in a class folder"
        assert kinds.startswith("2 .txt, ") and set(kinds.split(", ")[1:]) == {"1 .mp4", "1 without suffix", "1 .png"}


def test_a_class_of_other_files_names_their_kind(own_images):
    red = own_images / "train" / "red"
    for file in list(red.iterdir()):
        file.rename(file.with_suffix(".raw"))
    with pytest.raises(DataError, match=r"no images in class red\n.*passed over .*: 8 .raw"):
        FolderSource(str(own_images / "train"))


def test_an_empty_class_is_named(own_images):
    (own_images / "train" / "violet").mkdir()
    with pytest.raises(DataError, match=r"train: no images in class violet"):
        open_training_sources(str(own_images), None)
    with pytest.raises(DataError, match=r"t.tar: no images in class violet"):
        TarSource(str(pack(own_images / "t.tar", own_images / "train")))


def test_different_classes_in_training_and_validation_are_listed(own_images):
    (own_images / "val" / "red").rename(own_images / "val" / "rouge")
    with pytest.raises(DataError, match="different classes: only in the first: red; only in the second: rouge"):
        open_training_sources(str(own_images), None)


def test_what_is_no_data_set_is_an_error(images, tmp_path):
    with pytest.raises(DataError, match="--data-path nowhere does not exist"):
        open_training_sources("nowhere", None)
    with pytest.raises(DataError, match="--val-path nowhere does not exist"):
        open_training_sources(str(images), "nowhere")
    with pytest.raises(DataError, match=r"holds no train; expected .*name the validation images with --val-path"):
        open_training_sources(str(images / "train"), None)
    with pytest.raises(DataError, match="expected one folder per class and two classes or more, found none"):
        open_validation_source(str(images / "train" / "red"))
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(DataError, match="neither a folder nor a tar"):
        open_training_sources(str(tmp_path / "note.txt"), None)


def test_tars_that_cannot_be_read_in_place_are_refused(images, tmp_path):
    whole = pack(tmp_path / "whole.tar", images / "train")
    (tmp_path / "short.tar").write_bytes(whole.read_bytes()[:9000])
    with pytest.raises(DataError, match=r"short.tar .*(cut short|cannot be read)"):
        index_tar(str(tmp_path / "short.tar"))
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(images / "train", "train")
    with pytest.raises(DataError, match=r"packed.tar cannot be read as an uncompressed tar"):
        index_tar(str(tmp_path / "packed.tar"))
    with tarfile.open(tmp_path / "linked.tar", "w") as tar:
        link = tarfile.TarInfo("red/00.png")
        link.type, link.linkname = tarfile.SYMTYPE, "elsewhere.png"
        tar.addfile(link, io.BytesIO())
    with pytest.raises(DataError, match=re.escape("red/00.png is a link")):
        index_tar(str(tmp_path / "linked.tar"))


def test_an_unreadable_image_is_named(own_images):
    broken = own_images / "train" / "green" / "03.png"
    broken.write_bytes(broken.read_bytes()[:200])
    folder, tar = FolderSource(str(own_images / "train")), pack(own_images / "t.tar", own_images / "train")
    index = folder.files.index(str(broken))
    with pytest.raises(DataError, match=re.escape(f"cannot read the image {broken}")):
        folder.read(index)
    with pytest.raises(DataError, match=re.escape(f"cannot read the image green/03.png in {tar}")):
        TarSource(str(tar)).read(index)


def test_the_digits_are_split_in_the_same_way_every_time():
    train, test = DigitsSource(train=True), DigitsSource(train=False)
    assert (len(train.labels), len(test.labels)) == (1347, 450)
    assert min(test.labels.count(digit) for digit in range(10)) >= 43  # stratified
    seen = {train.read(i).tobytes() for i in range(len(train.labels))}
    assert content(DigitsSource(train=False)) == content(test)
    # a few digits occur twice among the 1,797; the parts share no others
    assert sum(image in seen for _, image in content(test)) <= 2
    assert test.read(0).size == (8, 8)
