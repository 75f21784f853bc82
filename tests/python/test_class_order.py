"""Numbered class folders: both orders are offered where the weights do not say which is theirs."""

import json

import pytest
import timm
import torch
from PIL import Image
from test_compare import arguments
from test_sources import pack
from trial_runs import small_run

import compare
import train
import validate
from labelled_images.class_order import describe_orders, sort_classes
from labelled_images.sources import FolderSource, TarSource
from training.compute import ImageFormat
from training.errors import DataError, OptionError

FORMAT = ImageFormat(size=32, crop_pct=1.0, interpolation="bicubic", mean=(0.0,) * 3, std=(1.0,) * 3)
NAMES = [str(number) for number in range(12)]


@pytest.fixture
def numbered(tmp_path):
    """Twelve classes, whose images differ in brightness."""
    for split in ("train", "val"):
        for name in NAMES:
            folder = tmp_path / "numbered" / split / name
            folder.mkdir(parents=True)
            for shade in range(2):
                Image.new("L", (8, 8), 20 * int(name) + shade).save(folder / f"{shade}.png")
    return tmp_path / "numbered"


class Brightness(torch.nn.Module):
    """A network that is right where class n is the n-th in brightness."""

    num_classes, pretrained_cfg = 12, {"architecture": "brightness", "input_size": (3, 32, 32)}

    def __init__(self):
        super().__init__()
        self.shades = torch.nn.Parameter(torch.arange(12.0) * 20)

    def forward(self, x):
        return -(x.mean((1, 2, 3))[:, None] * 255 - self.shades).abs()


@pytest.fixture
def judge(numbered, tmp_path, monkeypatch):
    """judge(*options): the top-1 accuracy of `Brightness`, whose weights do not name their classes."""
    monkeypatch.setattr("networks.saved_network.build_model", lambda *_: Brightness())
    torch.save(Brightness().state_dict(), tmp_path / "weights.pth")
    # mean 0 and deviation 1: the network sees brightness itself
    monkeypatch.setattr("networks.saved_network.make_image_format", lambda *_: FORMAT)
    command = ["--model", "test_resnet", "--checkpoint", str(tmp_path / "weights.pth"), "--data-path", str(numbered)]
    command += ["--num-workers", "0", "--device", "cpu"]
    return lambda *more: validate.main([*command, *more]).metrics.top1


def test_both_orders():
    assert sort_classes(NAMES, "text") == ["0", "1", "10", "11", *NAMES[2:10]]
    assert sort_classes(reversed(NAMES), "natural") == NAMES
    mixed = ["b", "A10", "a2", "a", "²"]
    assert sort_classes(mixed, "text") == ["A10", "a", "a2", "b", "²"]
    assert sort_classes(mixed, "natural") == ["a", "a2", "A10", "b", "²"]
    assert sort_classes(["7", "007", "07"], "natural") == ["007", "07", "7"]


def test_orders_are_described_where_they_differ():
    assert describe_orders(["n01440764", "n01443537", "n15075141"]) is describe_orders(NAMES[:10]) is None
    assert describe_orders(NAMES) == (
        "0, 1, 10, 11, … as text (torchvision's order) and 0, 1, 2, 3, … in natural order (timm's)"
    )
    many = [f"c{number}" for number in range(1, 12)]
    assert describe_orders(["a", "b", *many]) == (
        "from class 1 on b, c1, c10, c11, … as text (torchvision's order) and "
        "b, c1, c2, c3, … in natural order (timm's)"
    )


def test_a_folder_and_a_tar_are_numbered_in_either_order(numbered, tmp_path):
    tar = pack(tmp_path / "t.tar", numbered / "val")
    for source in (FolderSource(str(numbered / "val"), "natural"), TarSource(str(tar), class_order="natural")):
        assert source.classes == NAMES
        assert [source.read(i).getpixel((0, 0))[0] // 20 for i in range(24)] == source.labels


def test_weights_without_class_names_are_judged_in_the_order_that_is_given(judge):
    with pytest.raises(
        OptionError, match=r"--class-order is needed: .* does not name its classes, .* 0, 1, 10, 11, … as"
    ):
        judge()
    assert judge("--class-order", "natural") == 100
    assert judge("--class-order", "text") == pytest.approx(100 * 2 / 12)


@pytest.fixture
def trained(numbered, tmp_path):
    command = small_run(numbered, tmp_path / "run", "--epochs", "2", "--limit-batches", "1")
    train.main([*command, "--class-order", "natural"])
    return tmp_path / "run"


def test_our_checkpoints_keep_their_order(numbered, trained):
    content = torch.load(trained / "best.pth", weights_only=True)
    assert content["classes"] == NAMES
    command = ["--checkpoint", str(trained / "best.pth"), "--num-workers", "0", "--device", "cpu"]
    assert validate.main(command).metrics.images == 24
    with pytest.raises(DataError, match=r"val has the classes in another order than .*best.pth was trained on"):
        validate.main([*command, "--class-order", "text"])
    # a checkpoint from before there was a choice
    content["classes"] = sort_classes(NAMES, "text")
    del content["options"]["class_order"]
    torch.save(content, trained / "best.pth")
    assert validate.main(command).metrics.images == 24


def test_a_resumed_run_keeps_its_order(trained):
    run = train.main(["--resume", str(trained / "last.pth"), "--epochs", "3"])
    assert run.task.classes == NAMES
    with pytest.raises(OptionError, match="--class-order text contradicts the resumed run, which has natural"):
        train.main(["--resume", str(trained / "last.pth"), "--epochs", "4", "--class-order", "text"])


def test_fine_tuning_says_where_the_classifier_may_be_in_another_order(numbered, trained, tmp_path, capsys):
    command = small_run(numbered, tmp_path / "tuned", "--epochs", "2", "--limit-batches", "1", "--initial-checkpoint")

    def shown(checkpoint, *more):
        train.main([*command, str(checkpoint), *more])
        return capsys.readouterr().out

    torch.save(timm.create_model("test_resnet", num_classes=12).state_dict(), tmp_path / "w.pth")
    capsys.readouterr()
    assert "w.pth does not name its classes. If its classifier fits, choose --class-order: " in shown(
        tmp_path / "w.pth"
    )
    assert "class-order" not in shown(tmp_path / "w.pth", "--output-dir", str(tmp_path / "a"), "--class-order", "text")
    assert "best.pth has the classes in another order: --class-order natural takes it" in shown(
        trained / "best.pth", "--output-dir", str(tmp_path / "b")
    )
    assert "class-order" not in shown(
        trained / "best.pth", "--output-dir", str(tmp_path / "c"), "--class-order", "natural"
    )


def test_a_comparison_from_before_there_was_a_choice_continues(images, tmp_path):
    command = [*arguments(images, tmp_path / "c", "--fractions", "1", "--repeats", "1"), "--models", "static"]
    compare.main([*command, "--seeds", "1"])
    path = tmp_path / "c" / "comparison.json"
    content = json.loads(path.read_text())
    del content["recipe"]["class_order"]
    path.write_text(json.dumps(content))
    assert len(compare.main([*command, "--seeds", "2"]).runs) == 2
