"""Folders behind links count once, and links to nothing are named."""

import os
import re

import pytest

from labelled_images.sources import FolderSource, digest_images, open_training_sources, open_validation_source
from training.errors import DataError


@pytest.fixture
def train(own_images):
    return own_images / "train"


@pytest.mark.parametrize("target", [".", "..", "../..", "../../val"])
def test_links_back_are_not_followed_and_named(train, target):
    before = FolderSource(str(train))
    (train / "red" / "loop").symlink_to(target)
    if target == "../../val":  # no loop, but it holds one
        (train.parent / "val" / "back").symlink_to(train / "red")
    source = FolderSource(str(train))
    assert len(source.labels) == 24 + 15 * (target == "../../val") and source.classes == before.classes
    link = train / "red" / "loop" / "back" if target == "../../val" else train / "red" / "loop"
    assert source.remarks == [f"{train}: links to folders that are read already were not followed: {link}"]


def test_two_loops_end(train):
    for name in ("a", "b"):
        (train / "red" / name).symlink_to(".")
        (train / "blue" / name).symlink_to("../red")
    # blue has red's images, once
    assert len(FolderSource(str(train)).labels) == 24 + 8


@pytest.mark.parametrize("target", [".", ".."])
def test_a_class_folder_that_leads_back_is_no_class(train, target):
    (train / "all").symlink_to(target)
    source = FolderSource(str(train))
    assert source.classes == ["blue", "green", "red"] and len(source.labels) == 24
    assert source.remarks == [f"{train}: links to folders that are read already were not followed: {train / 'all'}"]


def test_a_class_may_be_a_link_to_another_place(train):
    (train / "red").rename(train.parent / "red")
    (train / "red").symlink_to("../red")
    source = FolderSource(str(train))
    assert len(source.labels) == 24 and source.remarks == []


@pytest.mark.parametrize("name", ["red/zz.jpg", "red/more", "violet", "zz.jpg"])
def test_a_link_to_nothing_is_named(train, name):
    (train / name).symlink_to("nowhere")
    with pytest.raises(DataError, match=f"{re.escape(str(train / name))} is a link to nowhere, which cannot"):
        open_training_sources(str(train.parent), None)


def test_a_link_to_itself_is_named(train):
    (train / "red" / "zz.jpg").symlink_to("zz.jpg")
    with pytest.raises(DataError, match=r"red/zz.jpg is a link to zz.jpg, which cannot be reached"):
        FolderSource(str(train))


@pytest.mark.parametrize("name", ["val", "val.tar"])
def test_a_split_that_is_a_link_to_nothing_is_not_replaced_by_another(own_images, name):
    (own_images / "val").rename(own_images / "test")
    (own_images / name).symlink_to("nowhere")
    with pytest.raises(DataError, match=f"{name} is a link to nowhere, which cannot be reached"):
        open_validation_source(str(own_images))


def test_hidden_links_are_ignored(train):
    (train / "red" / ".zz.jpg").symlink_to("nowhere")
    assert len(FolderSource(str(train)).labels) == 24


def test_a_file_that_vanishes_is_named(train):
    source = FolderSource(str(train))
    os.remove(train / "green" / "02.png")
    with pytest.raises(DataError, match=r"cannot read the image .*green/02.png: No such file"):
        digest_images(source)
    with pytest.raises(DataError, match=r"cannot read the image .*green/02.png: .*No such file"):
        source.read(source.files.index(str(train / "green" / "02.png")))


def test_what_is_no_regular_file_is_passed_over(train):
    os.mkfifo(train / "red" / "pipe.png")  # reading it would wait for ever
    source = FolderSource(str(train))
    assert len(source.labels) == 24 and "1 .png" in source.remarks[0]
