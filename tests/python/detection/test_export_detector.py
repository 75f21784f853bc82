"""export_detector.py: every detector as an ONNX file that finds in another image what the detector finds."""

import dataclasses
import json

import pytest
import torch
from torchvision.transforms.v2.functional import pil_to_tensor

import detect
import export_detector
from tasks.detection.checkpoint import load_detector
from tasks.detection.detectors import preset
from tasks.detection.export import ExportOptions, OneImage, export
from tasks.detection.options import DETECTOR_NAMES
from tasks.detection.scenes import SMALL_DIGITS, Scenes
from training.errors import DataError, OptionError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("transformers", reason="needs the extra: pip install -e '.[detection]'")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """checkpoint(detector): the file that a short run leaves."""

    def make(detector):
        folder = tmp_path_factory.mktemp(detector)
        detect.main([
            "--detector", detector, "--output-dir", str(folder), "--train-scenes", "4", "--val-scenes", "1",
            "--epochs", "1", "--batch-size", "4", "--short-sides", "64", "--longest-side", "64", "--warmup-steps", "0",
            "--device", "cpu", "--drop-path", "0", "--model", "container", "--model-kwargs",
            "embed_dims=(8, 8, 16, 16)", "depths=(1, 0, 1, 0)", "num_heads=(1, 1, 2, 2)", "mlp_ratios=2",
        ])  # fmt: skip
        return folder / "last.pth"

    return make


@pytest.mark.parametrize("detector", DETECTOR_NAMES)
def test_file_finds_what_the_detector_finds(detector, checkpoint, tmp_path, capsys, monkeypatch):
    def without_threshold(*names):  # one step leaves scores near 0.01
        return dataclasses.replace(preset(*names), score_threshold=0.0, detections=20)

    monkeypatch.setattr("tasks.detection.build.preset", without_threshold)
    path = checkpoint(detector)
    output = export_detector.main([str(path), "--image-size", "64", "96", "--output", str(tmp_path / "network.onnx")])
    assert "agree with the detector's to" in capsys.readouterr().out
    saved = load_detector(str(path))
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    assert json.loads(session.get_modelmeta().custom_metadata_map["names"]) == list("0123456789")
    image = pil_to_tensor(Scenes(1, False, style=SMALL_DIGITS).read(0)[0].resize((96, 64)))
    found = dict(zip(names, session.run(None, {"image": image.numpy()}), strict=True))
    with torch.no_grad():
        expected = OneImage(saved.model, saved.normalization, tuple(names))(image)
    assert len(found["scores"]) > 0 and ("masks" in names) == (detector == "mask-rcnn")
    for name, tensor in zip(names, expected, strict=True):
        # Objects of equal scores may change places; then their boxes do, too.
        if name == "scores":
            torch.testing.assert_close(torch.from_numpy(found[name]), tensor, rtol=1e-3, atol=1e-4)
        assert found[name].shape == tuple(tensor.shape)


def test_beside_the_checkpoint_and_refused(checkpoint, monkeypatch, tmp_path, capsys):
    path = checkpoint("retinanet")
    assert export(ExportOptions(checkpoint=str(path))) == str(path.with_suffix(".onnx"))
    assert "note: trained on" not in capsys.readouterr().out
    export_detector.main([str(path), "--image-size", "160", "160", "--output", str(tmp_path / "larger.onnx")])
    assert "note: trained on images with short sides of 64 pixels; it may find little at 160" in capsys.readouterr().out
    with pytest.raises(OptionError, match=r"--image-size must be 1 or more, got \(0, 5\)"):
        export_detector.main([str(path), "--image-size", "0", "5"])
    with pytest.raises(OptionError, match=r"--output .*: there is no folder .*nowhere"):
        export_detector.main([str(path), "--output", str(tmp_path / "nowhere" / "network.onnx")])
    monkeypatch.setattr("tasks.detection.export.AGREEMENT", -1.0)
    with pytest.raises(DataError, match=r"gives scores that are .* off the detector's"):
        export_detector.main([str(path), "--output", str(tmp_path / "other.onnx")])
    monkeypatch.setattr("tasks.detection.export.importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match="an export needs onnx and onnxscript"):
        export_detector.main([str(path)])
