"""Every program says what of the data it passed over."""

import json

import pytest
import timm
import torch
from test_compare import arguments
from trial_runs import small_run

import compare
import train
import validate
from training.interrupt import Interrupted


@pytest.fixture
def stray(own_images):
    for split in ("train", "val"):
        (own_images / split / "red" / "notes.txt").write_text("red")
    return own_images


def remark(images, split):
    return f"{images}/{split}: passed over what is no image in a class folder: 1 .txt"


def test_train_says_it_of_both_splits(stray, tmp_path, capsys):
    train.main(small_run(stray, tmp_path / "run", "--epochs", "2", "--limit-batches", "1"))
    shown = capsys.readouterr().out.splitlines()
    assert shown.count(remark(stray, "train")) == shown.count(remark(stray, "val")) == 1


def test_compare_says_it_of_both_splits(stray, tmp_path, capsys, stop_at):
    stop_at(0)
    with pytest.raises(Interrupted):
        compare.main(arguments(stray, tmp_path / "comparison"))
    shown = capsys.readouterr().out.splitlines()
    assert shown.count(remark(stray, "train")) == shown.count(remark(stray, "val")) == 1


def test_validate_says_it_with_the_result(stray, tmp_path, capsys):
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), weights)
    command = ["--checkpoint", str(weights), "--model", "test_resnet", "--num-classes", "3", "--input-size", "32"]
    command += ["--data-path", str(stray), "--num-workers", "0", "--device", "cpu"]
    validate.main(command)
    assert remark(stray, "val") in capsys.readouterr().out.splitlines()
    validate.main([*command, "--json"])
    assert json.loads(capsys.readouterr().out)["remarks"] == [remark(stray, "val")]
