"""Runs of `knn.py` on checkpoints of every kind."""

import json

import numpy
import pytest
import timm
import torch
from PIL import Image
from trial_runs import small_run, write_tree

import container_kernels  # noqa: F401  registers our models with timm
import knn
import train
from tasks.dino import linear_probe
from tasks.dino.features import Features
from tasks.dino.linear_probe import linear_accuracy
from training.distributed import World
from training.errors import CheckpointError, DataError, OptionError

ONE = World(rank=0, size=1, device=torch.device("cpu"), control=None)
HERE = ["--knn-k", "5", "20", "--num-workers", "0", "--device", "cpu"]
TINY = dict(embed_dims=(8, 16), depths=(1, 1), strides=(4, 2), num_heads=1, mlp_ratios=2)
ARGUMENTS = ["--model", "container_tiny", "--model-kwargs", *(f"{name}={value}" for name, value in TINY.items())]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("colors"))


def tiny(seed, classes=0):
    torch.manual_seed(seed)
    return timm.create_model("container_tiny", num_classes=classes, img_size=32, **TINY)


def expected_accuracy(network, images, k):
    """Of k nearest neighbours, from the files on."""
    found = {}
    mean, std = (torch.tensor(network.pretrained_cfg[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    for split in ("train", "val"):
        rows, labels = [], []
        for label, folder in enumerate(sorted((images / split).iterdir())):
            for file in sorted(folder.iterdir()):
                image = Image.open(file).convert("RGB")
                short = 37  # 32 / (224 / 256), rounded up or down by timm
                width, height = (round(side * short / min(image.size)) for side in image.size)
                image = image.resize((width, height), Image.Resampling.BICUBIC)
                left, top = round((width - 32) / 2), round((height - 32) / 2)
                pixels = torch.from_numpy(numpy.array(image.crop((left, top, left + 32, top + 32)))).permute(2, 0, 1)
                with torch.no_grad():
                    feature = network.eval()((pixels[None] / 255 - mean) / std)[0]
                rows.append(feature / feature.norm())
                labels.append(label)
        found[split] = torch.stack(rows), torch.tensor(labels)
    (bank, bank_labels), (rows, labels) = found["train"], found["val"]
    nearest = (rows @ bank.T).topk(k)
    votes = torch.zeros(len(rows), 3)
    for row in range(len(rows)):
        for similarity, place in zip(nearest.values[row], nearest.indices[row], strict=True):
            votes[row, bank_labels[place]] += (similarity / 0.07).exp()
    return 100 * (votes.argmax(1) == labels).float().mean().item()


def test_weights_of_a_network_against_a_loop_over_the_files(images, tmp_path):
    network = tiny(3)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    judgement = knn.main([
        str(tmp_path / "weights.pth"), *ARGUMENTS, "--input-size", "32", "--data-path", str(images), *HERE,
    ])  # fmt: skip
    assert set(judgement.rows) == {"checkpoint", "raw pixels", "untrained", "untrained, norms recalibrated"}
    for k in (5, 20):
        assert judgement.rows["checkpoint"][f"knn{k}"] == pytest.approx(expected_accuracy(network, images, k), abs=0.01)


def test_official_checkpoints_have_a_teacher_and_a_student(images, tmp_path):
    teacher, student = tiny(4), tiny(5)
    torch.save(
        {
            "teacher": {f"backbone.{name}": tensor for name, tensor in teacher.state_dict().items()},
            "student": {f"module.backbone.{name}": tensor for name, tensor in student.state_dict().items()},
        },
        tmp_path / "checkpoint.pth",
    )
    for key, network in (("teacher", teacher), ("student", student)):
        torch.save(network.state_dict(), tmp_path / "alone.pth")
        options = [*ARGUMENTS, "--input-size", "32", "--data-path", str(images), "--no-controls", *HERE]
        both = knn.main([str(tmp_path / "checkpoint.pth"), "--checkpoint-key", key, *options])
        alone = knn.main([str(tmp_path / "alone.pth"), *options])
        assert both.rows[key] == alone.rows["checkpoint"]


def test_a_classifier_of_train_py_is_left_out(images, tmp_path, capsys):
    arguments = small_run(images, tmp_path, "--epochs", "2", "--limit-batches", "1")
    train.main(arguments)
    capsys.readouterr()
    judgement = knn.main([str(tmp_path / "last.pth"), "--use-ema", "--json", "--linear", *HERE])
    printed = json.loads(capsys.readouterr().out)
    assert printed == {**judgement.as_dict(), "rows": printed["rows"]}
    assert set(printed["rows"]["checkpoint"]) == {"knn5", "knn20", "few", "linear"}
    assert (judgement.model, judgement.input_size, judgement.images) == ("test_resnet", 32, 15)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ("", OptionError, "--model is needed: .* does not say which model"),
        ("--model container_tiny", OptionError, "--data-path is needed"),
        ("--model container_tiny --val-path IMAGES", OptionError, "--val-path needs --data-path"),
        ("--model container_tiny --data-path IMAGES --input-size 32", CheckpointError, "does not fit Container:"),
        ("TINY --data-path IMAGES --input-size 32 --knn-k 5 200", DataError, "--knn-k 200: there are only 24 training"),
        ("TINY --data-path IMAGES --input-size 32 --knn-k 0", OptionError, "--knn-k must be each 1 or more, got"),
        ("TINY --data-path IMAGES --knn-temperature 0", OptionError, "--knn-temperature must be more than 0, got 0.0"),
        ("TINY --data-path IMAGES --checkpoint-key student", OptionError, "--checkpoint-key has no effect"),
    ],
)
def test_wrong_calls(images, tmp_path, more, error, message):
    torch.save(tiny(0).state_dict(), tmp_path / "weights.pth")
    words = [word for words in more.split() for word in (ARGUMENTS if words == "TINY" else [words])]
    words = [str(images) if word == "IMAGES" else word for word in words]
    with pytest.raises(error, match=message):
        knn.main([str(tmp_path / "weights.pth"), *HERE, *words])


@pytest.mark.parametrize("fit", ["_fit_exactly", "_fit_sgd"])
def test_a_linear_classifier_finds_what_is_linear(fit, monkeypatch):
    """Of two classes that a plane separates and whose lengths and neighbours say nothing."""
    monkeypatch.setattr(linear_probe, "_fit_exactly", getattr(linear_probe, fit))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 8, generator=generator)
    labels = (rows[:, 0] + rows[:, 3] > 0).long()
    rows[:, 1:] *= 50  # standardized away
    rows[:, 3] /= 50
    split = [Features(rows[i], labels[i], torch.arange(400)[i], ONE) for i in (slice(0, 300), slice(300, None))]
    assert linear_accuracy(split[1], split[0], 2) > 93
    shuffled = Features(split[0].rows, split[0].labels.flip(0), split[0].numbers, ONE)
    assert linear_accuracy(split[1], shuffled, 2) < 75
