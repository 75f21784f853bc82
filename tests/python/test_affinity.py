"""`affinity.py` from end to end on a network of random weights: the picture, the numbers, the refusals."""

import json

import numpy
import pytest
import timm
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

import affinity
from affinity_maps.figure import COLORS, instead_of_map
from affinity_maps.measure import measure
from affinity_maps.selection import Query, choose_layers, parse_queries
from container_kernels import ContainerBlock
from container_kernels.analysis import LayerAffinities, aggregation_layers, layer_inputs, mean_distances
from container_kernels.models import Container, IsotropicContainer
from training.errors import CheckpointError, DataError, OptionError

NAMES = ["stages.0.blocks.0", "stages.1.blocks.0", "stages.2.blocks.0", "stages.2.blocks.1", "stages.3.blocks.0"]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = timm.create_model("container_tiny", num_classes=3).eval()
    for layer in aggregation_layers(model).values():
        torch.nn.init.normal_(layer.gate)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, network):
    """With `weights.pth` and `image.png`, which is as large as the network's input."""
    folder = tmp_path_factory.mktemp("affinity")
    torch.save(network.state_dict(), folder / "weights.pth")
    pixels = numpy.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=numpy.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return folder


def run(folder, *more, checkpoint="weights.pth", image="image.png", model=("container_tiny", "--num-classes", "3")):
    output = str(folder / "out.png")
    return affinity.main(
        [str(folder / checkpoint), str(folder / image), "--model", *model, "--output", output, "--device", "cpu", *more]
    )


def normalized(path) -> torch.Tensor:
    pixels = torch.from_numpy(numpy.asarray(Image.open(path)) / 255)
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return ((pixels - mean) / std).permute(2, 0, 1)[None].float()


def test_the_numbers_are_the_librarys(folder, network, capsys):
    run(folder, "--queries", "0.6,0.3", "31,0", "--layers", "-1", "stages.0.blocks.0")
    content = json.loads((folder / "out.json").read_text())
    output, inputs = layer_inputs(network, normalized(folder / "image.png"))
    layers = aggregation_layers(network)
    assert [layer["name"] for layer in content["layers"]] == NAMES and content["skipped"] == {}
    for entry in content["layers"]:
        name = entry["name"] + ".aggregation"
        affinities = LayerAffinities(layers[name], inputs[name])
        gate = layers[name].gate.sigmoid().item()
        assert (entry["alpha"], entry["beta"]) == pytest.approx((gate, 1 - gate))
        distances = mean_distances(affinities, (32 / affinities.grid_size[0],) * 2)
        assert entry["distances"].keys() == {"dynamic", "static", "mixed"}
        for term, expected in distances.items():
            found = entry["distances"][term]
            assert found["pixels_by_head"] == pytest.approx(expected.tolist(), rel=1e-4)
            assert found["pixels"] == pytest.approx(expected.mean().item(), rel=1e-4)
            assert found["of_uniform"] == pytest.approx(found["pixels"] / entry["uniform_distance"])
    places = [(item["layer"], item["token"]) for item in content["maps"]]
    assert places == [(NAMES[-1], [0, 1]), (NAMES[-1], [0, 1]), (NAMES[0], [4, 9]), (NAMES[0], [0, 15])]
    for item in content["maps"]:
        name = item["layer"] + ".aggregation"
        affinities = LayerAffinities(layers[name], inputs[name])
        height, width = affinities.grid_size
        for term, rows in affinities.rows(torch.arange(height * width)).items():
            expected = rows[0].mean((0, 1)).view(height, width, height, width)[tuple(item["token"])]
            assert torch.tensor(item[term]).numpy() == pytest.approx(expected.detach().numpy(), rel=1e-3, abs=1e-6)
    probability = output.softmax(-1)[0].max().item()
    assert content["prediction"] == {
        "label": output.argmax().item(), "name": None, "probability": pytest.approx(probability, rel=1e-4)
    }  # fmt: skip
    text = capsys.readouterr().out
    assert all(name in text for name in NAMES) and "out.png" in text and "out.json" in text


def test_the_picture_shows_the_maps(folder):
    run(folder)
    picture = Image.open(folder / "out.png")
    assert picture.format == "PNG" and picture.width == 1200 and picture.height > 1200  # 3 layers × 2 queries
    pixels = numpy.asarray(picture.convert("RGB")).astype(int)
    assert len(numpy.unique(pixels.reshape(-1, 3), axis=0)) > 500
    # viridis is in the second quarter of the maps, red and blue in the two after it.
    quarters = numpy.array_split(pixels[:, : int(1200 * 2.1 / 3.1)], 4, axis=1)
    greens = [((q[..., 1] > q[..., 0] + 50) & (q[..., 1] > q[..., 2] + 10)).mean() for q in quarters]
    assert greens[1] > 0.05 and max(greens[2:]) < 0.01
    run(folder, "--layers", "0", "--queries", "0.5,0.5", "--head", "0")
    assert Image.open(folder / "out.png").size == (1200, 760)


def test_a_head_and_a_file_for_the_numbers(folder, network):
    run(folder, "--layers", "3", "--queries", "16,16", "--head", "1", "--json", str(folder / "numbers.json"))
    content = json.loads((folder / "numbers.json").read_text())
    name = NAMES[3] + ".aggregation"
    _, inputs = layer_inputs(network, normalized(folder / "image.png"))
    rows = LayerAffinities(aggregation_layers(network)[name], inputs[name]).rows(torch.tensor([10]))
    found = torch.tensor(content["maps"][0]["dynamic"]).flatten()
    torch.testing.assert_close(found, rows["dynamic"][0, 1, 0, 0].detach(), rtol=1e-3, atol=1e-6)
    assert content["head"] == 1


def test_photos_are_looked_at_upright(folder):
    exif, image = Image.Exif(), Image.open(folder / "image.png")
    exif[274] = 6  # Orientation: a quarter turn clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    assert run(folder, image="turned.png").as_dict() == run(folder).as_dict()


def test_a_part_that_is_not_there_is_left_out(folder):
    """A stage with the filter alone and one with attention alone."""
    model = Container(
        32, 3, 5, embed_dims=(8, 16), depths=(1, 1), num_heads=(2, 2), mlp_ratios=(1, 1), strides=(4, 2),
        dynamic=(False, True), static=("local", None),
    ).eval()  # fmt: skip
    image = torch.randn(1, 3, 32, 32)
    measurement = measure(model, image, None, [Query(0, 0)], None)
    static, dynamic = measurement.as_dict()["layers"]
    assert (static["alpha"], static["beta"], static["distances"].keys()) == (None, 1, {"static", "mixed"})
    assert (dynamic["alpha"], dynamic["beta"], dynamic["distances"].keys()) == (1, None, {"dynamic", "mixed"})
    assert [item.grid.keys() for item in measurement.maps] == [{"static", "mixed"}, {"dynamic", "mixed"}]
    with open(folder / "parts.png", "wb") as file:
        affinity.draw_affinities(file, numpy.zeros((32, 32, 3), dtype=numpy.uint8), measurement, "two stages", None)
    assert Image.open(folder / "parts.png").width == 1200
    notes = [[instead_of_map(item, term) for term in ("dynamic", "static", "mixed")] for item in measurement.maps]
    assert notes == [
        ["this layer has\nno dynamic part", None, "as static"],
        [None, "this layer has\nno static part", "as dynamic"],
    ]
    assert affinity.describe(measurement)[1].split()[:4] == ["stages.0.blocks.0", "8×8", "-", "1.000"]


def test_factors_that_coincide_are_both_seen(folder):
    """alpha and beta of a new network are 0.5 everywhere."""
    model = timm.create_model("container_tiny", num_classes=3).eval()
    measurement = measure(model, torch.randn(1, 3, 32, 32), ("0",), [Query(0, 0)], None)
    with open(folder / "new.png", "wb") as file:
        affinity.draw_affinities(file, numpy.zeros((32, 32, 3), dtype=numpy.uint8), measurement, "new", None)
    pixels = numpy.asarray(Image.open(folder / "new.png").convert("RGB")).astype(int)
    chart = pixels[150:350, 900:1180]  # of the factors, without the legend
    for color in ("dynamic", "static"):
        red, green, blue = (int(COLORS[color][place : place + 2], 16) for place in (1, 3, 5))
        assert (abs(chart - (red, green, blue)).max(-1) < 20).any(0).sum() > 200  # columns where the line is seen


def test_layers_without_a_matrix_are_skipped_with_the_reason():
    token_mlp = ContainerBlock(3, 1, dynamic=False, static="dense", grid_size=(4, 6), hidden_tokens=5)
    model = nn.Sequential(token_mlp, ContainerBlock(3, 1))
    measurement = measure(model, torch.randn(1, 3, 4, 6), ("0",), [Query(5, 3)], None)
    assert [layer.name for layer in measurement.layers] == ["1"] and measurement.skipped.keys() == {"0"}
    assert measurement.maps[0].cell == (3, 5) and measurement.probabilities == []
    assert affinity.describe(measurement)[-1].startswith("0 is left out: an MLP over the tokens (hidden_tokens)")
    with pytest.raises(OptionError, match="no affinities to show: all 1 layers are an MLP over the tokens"):
        measure(model[:1], torch.randn(1, 3, 4, 6), None, [Query(5, 3)], None)


@pytest.mark.parametrize("static", ["dense", None])
def test_a_class_token_is_beside_the_grid(static):
    model = IsotropicContainer(
        (16, 32), 8, num_classes=3, embed_dim=8, depth=2, num_heads=2, mlp_ratio=1, static=static, mixing="free"
    ).eval()
    image = torch.randn(1, 3, 16, 32)
    measurement = measure(model, image, ("0",), [Query(25, 3)], None)
    assert [layer.grid_size for layer in measurement.layers] == [(2, 4)] * 2
    _, inputs = layer_inputs(model, image)
    layers = aggregation_layers(model)
    rows = LayerAffinities(layers["blocks.0.aggregation"], inputs["blocks.0.aggregation"], (2, 4)).rows(
        torch.tensor([4])
    )
    (item,) = measurement.as_dict()["maps"]
    assert item["token"] == (0, 3) and item["prefix_tokens"].keys() == rows.keys()
    for term, row in rows.items():
        class_token, *grid = row[0].mean((0, 1, 2)).tolist()
        assert item["prefix_tokens"][term] == pytest.approx([class_token])
        assert numpy.ravel(item[term]) == pytest.approx(grid, rel=1e-5)


def test_layers_without_words_are_the_first_a_middle_and_the_last():
    assert choose_layers(None, NAMES) == [0, 2, 4]
    assert choose_layers(None, NAMES[:1]) == [0] and choose_layers(None, NAMES[:2]) == [0, 1]
    assert choose_layers(("-1", "1", NAMES[3]), NAMES) == [4, 1, 3]


def test_queries_are_pixels_or_parts():
    assert parse_queries(("0,31", "0.5,1.0"), (32, 64)) == [Query(0.5, 31.5), Query(32.0, 32.0)]
    assert [query.cell((8, 8), (32, 64)) for query in parse_queries(("7,4", "8,3", "1.0,1.0"), (32, 64))] == [
        (1, 0), (0, 1), (7, 7),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "5"], "--layers 5: expected -5 to 4"),
        (["--layers", "stages.9"], "--layers stages.9: expected one of stages.0.blocks.0, stages.1.blocks.0"),
        (["--queries", "16"], "--queries 16: expected x,y in pixels, as 16,8, or as parts, as 0.5,0.25"),
        (["--queries", "a,b"], "--queries a,b: expected x,y"),
        (["--queries", "-1,5"], "--queries -1,5 is outside the image: x and y count from its left and upper edge"),
        (["--queries", "0.5,0.5", "-0.1,0.5"], "--queries -0.1,0.5 is outside the image"),
        (["--queries", "5,-1"], "--queries 5,-1 is outside the image"),
        (["--queries", "32,0"], "--queries 32,0 is outside the image: expected pixels below 32,32"),
        (["--queries", "1.5,0.5"], "--queries 1.5,0.5 is outside the image"),
        (["--head", "median"], "--head must be mean or a number from 0, got median"),
        (["--head", "1"], "--head 1: stages.0.blocks.0 has heads 0 to 0"),
        (["--output", "x.jpg"], "--output must end in .png, got x.jpg"),
        (["--device", "tpu"], "--device must be auto, cpu, cuda or cuda:N, got tpu"),
        (["--layer", "1"], "unknown option --layer; did you mean --layers"),
        (["extra"], "unknown option extra"),
    ],
)
def test_wrong_options_are_named(folder, arguments, message):
    with pytest.raises(OptionError, match=message):
        run(folder, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "FOLDER/no/x.png"], "--output .*x.png: there is no folder .*/no$"),
        (["--json", "FOLDER/no/x.json"], "--json .*x.json: there is no folder .*/no$"),
        (["--json", "FOLDER"], "--json .*: expected a file, this is a folder"),
        (["--json", "FOLDER/./out.png"], "--json .*out.png would replace --output, which is the same file"),
        (["--json", "FOLDER/weights.pth"], "--json .*weights.pth would replace CHECKPOINT, which is the same file"),
        (["--output", "FOLDER/image.png"], "--output .*image.png would replace IMAGE, which is the same file"),
    ],
)
def test_where_nothing_can_be_written_is_found_before_the_work(folder, arguments, message, monkeypatch):
    monkeypatch.setattr(affinity, "find_network", None)
    with pytest.raises(OptionError, match=message):
        run(folder, *(word.replace("FOLDER", str(folder)) for word in arguments))


def test_files_that_cannot_be_used_are_named(folder, network):
    with pytest.raises(OptionError, match="the following arguments are required: IMAGE"):
        affinity.main(["weights.pth"])
    with pytest.raises(OptionError, match=r"CHECKPOINT .*nowhere.pth: there is no such file"):
        run(folder, checkpoint="nowhere.pth")
    with pytest.raises(OptionError, match=r"CHECKPOINT .*: expected a file, this is a folder"):
        run(folder, checkpoint="")
    with pytest.raises(OptionError, match=r"IMAGE .*nowhere.png: there is no such file"):
        run(folder, image="nowhere.png")
    with pytest.raises(DataError, match=r"cannot read the image .*weights.pth"):
        run(folder, image="weights.pth")
    with pytest.raises(OptionError, match=r"no affinities to show: model: expected .* got ResNet"):
        torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), folder / "resnet.pth")
        run(folder, checkpoint="resnet.pth", model=("test_resnet", "--num-classes", "3"))
    torch.save(timm.create_model("container_tiny", num_classes=3).fuse().state_dict(), folder / "fused.pth")
    weights = network.state_dict()
    torch.save({**weights, "norm.bias": weights["norm.bias"] * float("nan")}, folder / "nan.pth")
    with pytest.raises(DataError, match="the network's output for this image is not finite"):
        run(folder, checkpoint="nan.pth")
    with pytest.raises(
        CheckpointError, match=r"fused.pth: the weights are of a fused network, .* from before fuse\(\)$"
    ):
        run(folder, checkpoint="fused.pth")
