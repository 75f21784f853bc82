"""The run without data: `container_tiny` learns handwritten digits."""

import train


def test_digits_start(tmp_path, capsys):
    short = ["--limit-batches", "2", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "16"]
    run = train.main(["--output-dir", str(tmp_path), *short])
    output = capsys.readouterr().out
    assert "handwritten digits: 1,347 training and 32 validation images, 10 classes, 32×32" in output
    assert "no --data-path was given: this learns scikit-learn's handwritten digits, with\n" in output
    assert "--model container_tiny --input-size 32" in output
    assert run.options.model == "container_tiny" and len(run.history) == 1


def test_digits_are_learned(tmp_path):
    run = train.main(["--output-dir", str(tmp_path)])
    assert run.history[-1]["val_top1"] >= 97
