"""The command line: what holds, and that everything contradictory is refused with the name of the flag."""

import dataclasses
import sys

import pytest
import torch
from trial_runs import small_run

import train
from affinity_maps.options import AffinityOptions
from comparison.settings import Settings
from tasks.classification.defaults import give_way
from tasks.classification.option_checks import check, resolve
from tasks.classification.options import Options
from tasks.classification.validation import ValidationOptions
from tasks.detection.options import DetectionOptions
from training.distributed import World
from training.errors import CheckpointError, DataError, OptionError
from training.option_checks import check_compute
from training.options import flag, parse_explicit
from training.program import run_program


def options_of(line: str, saved: dict | None = None) -> Options:
    explicit = parse_explicit(line.split(), "", Options)
    options = resolve(explicit, saved)
    if saved is None:
        options, _ = give_way(options, explicit)
    check(options, set(explicit))
    return options


def test_the_defaults_are_deits_recipe():
    options = options_of("--data-path imagenet")
    assert (options.model, options.opt, options.lr, options.weight_decay) == ("container_light", "adamw", 5e-4, 0.05)
    assert (options.sched, options.epochs, options.warmup_epochs) == ("cosine", 300, 5)
    assert (options.warmup_lr, options.min_lr) == (1e-6, 1e-5)
    assert (options.aa, options.color_jitter, options.repeated_aug) == ("rand-m9-mstd0.5-inc1", 0.4, True)
    assert (options.mixup, options.cutmix, options.smoothing, options.reprob) == (0.8, 1.0, 0.1, 0.25)
    assert (options.drop_path, options.model_ema, options.model_ema_decay) == (0.1, True, 0.99996)


def test_without_data_the_digits_recipe_holds_and_explicit_options_win():
    assert options_of("").model == "container_tiny"
    options = options_of("--epochs 4 --mixup 0.2")
    assert (options.epochs, options.mixup, options.batch_size) == (4, 0.2, 64)


def test_the_released_name_and_deits_underscores_are_accepted():
    options = options_of("--data-path x --model container_v1_light --output_dir=runs --no-model-ema --amp-dtype fp32")
    assert (options.model, options.output_dir, options.model_ema) == ("container_light", "runs", False)
    assert options.amp_dtype == "float32"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--frobnicate", "unknown option --frobnicate"),
        ("--warmup-epoch 3", "unknown option --warmup-epoch; did you mean --warmup-epochs"),
        ("--distillation-type hard", "unknown option --distillation-type"),
        ("imagenet", "unknown option imagenet"),
        ("--epochs many", "--epochs: invalid int value: 'many'"),
        ("--sched linear", "--sched: invalid choice: 'linear'"),
        ("--model resnet9000", "--model resnet9000 is not known to timm; ours are .*container_light"),
        ("--opt adamwow", "--opt adamwow is not known"),
        ("--opt sgd --opt-betas 0.9 0.99", "--opt-betas has no effect with --opt sgd"),
        ("--momentum 0.9", "--momentum has no effect with --opt adamw"),
        ("--checkpoint-key student", "--checkpoint-key has no effect without --initial-checkpoint"),
        ("--sched multistep", "--sched multistep needs --decay-milestones"),
        ("--sched multistep --decay-milestones 8 8", "--decay-milestones must rise and lie between 0 and --epochs"),
        ("--sched multistep --decay-milestones 8 999", "--decay-milestones must rise and lie between 0 and --epochs"),
        ("--decay-milestones 8", "--decay-milestones has no effect with --sched cosine"),
        ("--warmup-steps -1", "--warmup-steps must be 0 or more, got -1"),
        ("--warmup-steps 9 --warmup-epochs 2", "--warmup-epochs has no effect together with --warmup-steps"),
        ("--warmup-steps 0 --warmup-lr 1e-6", "--warmup-lr has no effect without a warm-up"),
        ("--epochs 0", "--epochs must be 1 or more, got 0"),
        ("--batch-size -4", "--batch-size must be 1 or more, got -4"),
        ("--accumulate-steps 0", "--accumulate-steps must be 1 or more, got 0"),
        ("--lr 0", "--lr must be more than 0, got 0.0"),
        ("--reprob 1.5", "--reprob must be from 0 to 1, got 1.5"),
        ("--smoothing 1", "--smoothing must be 0 or more and less than 1, got 1.0"),
        ("--epochs 5 --warmup-epochs 5", "--warmup-epochs 5 must be less than --epochs 5"),
        (
            "--batch-size 2 --min-lr 1e-5",
            r"--min-lr 1e-05 is above the peak learning rate .* \(--lr 0.0005 × batch 2 / 512\)",
        ),
        ("--cutmix 0.5 --cutmix-minmax 0.2 0.8", "--cutmix has no effect together with --cutmix-minmax"),
        ("--cutmix-minmax 0.8 0.2", "--cutmix-minmax must be two numbers, 0 <= MIN < MAX <= 1, got 0.8 0.2"),
        ("--mixup 0 --cutmix 0 --mixup-prob 0.5", "--mixup-prob has no effect without --mixup or --cutmix"),
        ("--mixup 0 --mixup-switch-prob 0.1", "--mixup-switch-prob has no effect unless both"),
        ("--batch-size 31 --cutmix 1", "--batch-size 31 must be even with mixup or cutmix"),
        ("--reprob 0 --remode const", "--remode has no effect with --reprob 0"),
        ("--color-jitter 0.2", "--color-jitter has no effect with an --aa policy; add --aa none"),
        ("--aa rnd-m9", "--aa rnd-m9 is not a policy of timm"),
        ("--no-model-ema --model-ema-decay 0.9", "--model-ema-decay has no effect with --no-model-ema"),
        ("--decay-epochs 10", "--decay-epochs has no effect with --sched cosine"),
        ("--sched constant --min-lr 1e-6", "--min-lr has no effect with --sched constant"),
        ("--sync-bn", "--sync-bn has no effect in one process; start with torchrun"),
        ("--train-fraction 0", "--train-fraction must be more than 0 and at most 1, got 0.0"),
        ("--val-fraction 1.1", "--val-fraction must be more than 0 and at most 1, got 1.1"),
        ("--std 1 1 0", r"--std must be three numbers above 0, got \(1.0, 1.0, 0.0\)"),
        ("--mean 0.5", "--mean: expected 3 arguments"),
        ("--epoch-repeats 0", "--epoch-repeats must be 1 or more, got 0"),
        ("--model-kwargs depths", "--model-kwargs: expected KEY=VALUE, got 'depths'"),
        ("--model-kwargs drop_rate=0.1", "--model-kwargs drop_rate is not possible: --drop sets it"),
        ("--model-kwargs img_size=64", "--model-kwargs img_size is not possible: --input-size sets it"),
        ("--model-kwargs features_only=True", "--model-kwargs features_only is not possible: .* argument of timm"),
        ("--model-kwargs checkpoint_path=x.pth", "--model-kwargs checkpoint_path is not possible: .* argument of timm"),
        ("--model-kwargs kernel_size=3 kernel_size=5", "kernel_size=… is given 2 times"),
        ("--model-kwargs dynamic=false", "--model-kwargs: dynamic=false: write dynamic=False"),
        ("--model-kwargs dynamic=TRUE", "--model-kwargs: dynamic=TRUE: write dynamic=True"),
        ("--model-kwargs dynamic=no", "--model-kwargs: dynamic=no: write dynamic=False"),
        ("--model-kwargs static=none", "--model-kwargs: static=none: write static=None"),
        (
            "--model-kwargs static=None",
            "--model-kwargs static=None has no effect: timm takes it as the model's default",
        ),
        ("--device cuda:77", "--device cuda:77"),
        ("--device tpu", "--device must be auto, cpu, cuda or cuda:N, got tpu"),
        ("--device cpu --amp-dtype float16", "--amp-dtype float16 needs a GPU"),
        ("--amp-dtype int8", "--amp-dtype must be bfloat16, float16 or float32, got int8"),
        ("--eval", "--eval needs weights: give --resume or --initial-checkpoint"),
        ("--initial-checkpoint nowhere.pth", "--initial-checkpoint nowhere.pth: there is no such file"),
        ("--resume a --initial-checkpoint b", "--resume continues a run, --initial-checkpoint starts one"),
    ],
)
def test_wrong_options_are_named(line, message):
    with pytest.raises(OptionError, match=message):
        options_of("--data-path x " + line)


@pytest.mark.parametrize(
    ("line", "values", "shown"),
    [
        (
            "--epochs 2",
            {"warmup_epochs": 1},
            ["--warmup-epochs 1 in place of the default 3, to be less than --epochs 2"],
        ),
        (
            "--epochs 1",
            {"warmup_epochs": 0},
            ["--warmup-epochs 0 in place of the default 3, to be less than --epochs 1"],
        ),
        (
            "--warmup-epochs 12",
            {"epochs": 22},
            ["--epochs 22 in place of the default 10, to follow --warmup-epochs 12"],
        ),
        (
            "--data-path x --batch-size 4",
            {"min_lr": 3.90625e-8, "warmup_lr": 1e-6},
            ["--min-lr 3.90625e-08 in place of the default 1e-05, which is above the peak learning rate 3.90625e-06"],
        ),
        (
            "--data-path x --lr 1e-7 --unscale-lr --warmup-lr 1e-8",
            {"min_lr": 1e-9, "warmup_lr": 1e-8},
            ["--min-lr 1e-09 in place of the default 1e-05, which is above the peak learning rate 1e-07"],
        ),
        (
            "--data-path x --lr 1e-7 --unscale-lr --min-lr 1e-8",
            {"min_lr": 1e-8, "warmup_lr": 1e-9},
            ["--warmup-lr 1e-09 in place of the default 1e-06, which is above the peak learning rate 1e-07"],
        ),
        (
            "--data-path x --batch-size 31",
            {"mixup": 0, "cutmix": 0},
            [
                "--mixup 0 in place of the default 0.8, which blends pairs of images and --batch-size 31 is odd",
                "--cutmix 0 in place of the default 1, which blends pairs of images and --batch-size 31 is odd",
            ],
        ),
        (
            "--data-path x --lr 1e-7 --unscale-lr --warmup-epochs 0 --sched step",
            {"min_lr": 1e-5, "warmup_lr": 1e-6},
            [],
        ),
        ("--epochs 4 --warmup-epochs 2 --batch-size 31", {"mixup": 0, "warmup_epochs": 2}, []),
        ("--data-path x", {"warmup_epochs": 5, "min_lr": 1e-5, "mixup": 0.8}, []),
    ],
)
def test_a_default_gives_way_to_a_given_option(line, values, shown):
    explicit = parse_explicit(line.split(), "", Options)
    options, lines = give_way(resolve(explicit), explicit)
    assert {name: getattr(options, name) for name in values} == pytest.approx(values)
    assert lines == shown
    check(options, set(explicit))


def test_what_gave_way_is_shown_and_kept(images, tmp_path, capsys):
    command = small_run(images, tmp_path / "run", "--limit-batches", "1")
    place = command.index("--warmup-epochs")
    del command[place : place + 2]
    line = "--warmup-epochs 2 in place of the default 5, to be less than --epochs 3"
    train.main(command)
    assert line in capsys.readouterr().out.splitlines()
    run = train.main(["--resume", str(tmp_path / "run" / "last.pth"), "--epochs", "4"])
    assert run.options.warmup_epochs == 2 and line not in capsys.readouterr().out


def test_devices_are_checked_against_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("auto", "cpu", "cuda", "cuda:1"):
        check_compute(device, None)
    check_compute("auto", "float16")
    with pytest.raises(OptionError, match="--device cuda:2: this machine has 2 GPUs"):
        check_compute("cuda:2", None)


def test_a_run_that_started_from_weights_can_be_resumed(tmp_path):
    """Those are in its checkpoint: their file is not asked for, and may be gone."""
    saved = dataclasses.asdict(Options(data_path="x", initial_checkpoint=str(tmp_path / "gone.pth")))
    options = resolve({"resume": "run/last.pth"}, saved)
    check(options, {"resume"})
    assert options.initial_checkpoint is None


def test_sync_bn_needs_gpus():
    options = resolve({"data_path": "x", "sync_bn": True, "device": "cpu"})
    with pytest.raises(OptionError, match="--sync-bn needs GPUs"):
        check(options, {"data_path", "sync_bn"}, world_size=2)


def test_val_path_needs_data_path():
    with pytest.raises(OptionError, match="--val-path needs --data-path"):
        options_of("--val-path x")


def test_arguments_of_the_model_are_literals_or_text():
    options = options_of("--model-kwargs dynamic=False mlp_ratios=(5,5.5) static=local a=b=c --epochs 9 --data-path x")
    assert options.model_kwargs == {"dynamic": False, "mlp_ratios": (5, 5.5), "static": "local", "a": "b=c"}
    assert options.epochs == 9 and options_of("").model_kwargs is None


def test_a_resumed_run_keeps_its_recipe_and_may_be_prolonged():
    saved = {"data_path": "x", "lr": 1e-3, "epochs": 90, "device": "cuda", "resume": None, "eval": False}
    options = options_of("--epochs 100", saved)
    assert (options.lr, options.epochs, options.device) == (1e-3, 100, "auto")
    with pytest.raises(
        OptionError, match=r"--lr 0.1 contradicts the resumed run, which has 0.001.*--initial-checkpoint"
    ):
        options_of("--lr 0.1", saved)
    saved["model_kwargs"] = {"depths": (1, 1), "static": "local"}
    assert options_of("--model-kwargs depths=[1,1] static=local", saved).model_kwargs["depths"] == [1, 1]
    with pytest.raises(OptionError, match=r"--model-kwargs depths=\(1, 2\) contra.* depths=\(1, 1\) static=local; "):
        options_of("--model-kwargs depths=(1,2)", saved)
    # a run from before there was --train-fraction took all images
    assert options_of("--train-fraction 1", saved).train_fraction == 1
    assert options_of("", saved).accumulate_steps == 1
    with pytest.raises(OptionError, match=r"--accumulate-steps 2 contradicts the resumed run, which has 1"):
        options_of("--accumulate-steps 2", saved)
    with pytest.raises(OptionError, match=r"--train-fraction 0.1 contradicts the resumed run, which has 1.0"):
        options_of("--train-fraction 0.1", saved)


def test_missing_files_and_folders_are_named(images, tmp_path):
    with pytest.raises(OptionError, match=r"--resume nowhere.pth: there is no such file"):
        train.main(["--resume", "nowhere.pth"])
    with pytest.raises(OptionError, match=r"--resume .*: it is a folder, not a file"):
        train.main(["--resume", str(tmp_path)])
    with pytest.raises(DataError, match="--data-path nowhere does not exist"):
        train.main(["--data-path", "nowhere"])
    with pytest.raises(DataError, match="--batch-size 4096 is more than an epoch's 24 images"):
        train.main(small_run(images, tmp_path / "run", "--batch-size", "4096"))
    (tmp_path / "weights.pth").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        train.main(["--resume", str(tmp_path / "weights.pth")])


def test_a_folder_that_holds_a_run_is_left_alone(images, tmp_path):
    (tmp_path / "last.pth").write_bytes(b"precious")
    with pytest.raises(OptionError, match=r"--output-dir .* already holds a run: continue it with --resume"):
        train.main(small_run(images, tmp_path))
    assert (tmp_path / "last.pth").read_bytes() == b"precious"


def test_an_input_size_the_model_cannot_take_is_refused_before_training(images, tmp_path):
    with pytest.raises(OptionError, match=r"--input-size 33: test_vit cannot take 33×33 images: .*divisible"):
        train.main(small_run(images, tmp_path / "run", "--model", "test_vit", "--input-size", "33"))
    assert not (tmp_path / "run").exists()


def test_an_option_the_model_does_not_know_is_refused(images, tmp_path):
    with pytest.raises(OptionError, match=r"--model vgg11 cannot be built with drop_path_rate=0.1: .*drop_path_rate"):
        train.main(small_run(images, tmp_path / "run", "--model", "vgg11"))


def test_arguments_the_model_refuses_are_named(images, tmp_path):
    arguments = ["--model", "container_tiny", "--model-kwargs", "depths=(1,)", "mixing=gate"]
    with pytest.raises(
        OptionError, match=r"cannot be built with .* --model-kwargs depths=\(1,\) mixing=gate: depths: "
    ):
        train.main(small_run(images, tmp_path / "run", *arguments))


def test_a_world_of_one_agrees_with_itself():
    world = World(rank=0, size=1, device=torch.device("cpu"), control=None)
    assert world.agree(2) == 2
    assert world.sum(torch.tensor([1, 2])).tolist() == [1.0, 2.0]


def test_errors_are_one_line_and_an_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "0"])
    with pytest.raises(SystemExit) as exit:
        run_program(train.main)
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: --epochs must be 1 or more, got 0\n"


def test_options_that_programs_share_are_written_once():
    programs = (Options, ValidationOptions, AffinityOptions, Settings)
    classes = {base for program in programs for base in program.__mro__ if dataclasses.is_dataclass(base)}
    written = [
        (field.name, field.metadata["help"])
        for cls in classes
        for field in dataclasses.fields(cls)
        if field.name in vars(cls).get("__annotations__", {})
    ]
    assert len(written) > len(dataclasses.fields(Options))
    assert {option for option in written if written.count(option) > 1} == set()
    names = [{field.name for field in dataclasses.fields(program)} for program in programs]
    assert "device" in set.intersection(*names)


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = capsys.readouterr().out
    assert "python python/train.py --resume RUN/last.pth" in text
    assert all(flag(field.name) in text for field in dataclasses.fields(Options))


def test_help_says_where_a_default_comes_from(capsys):
    with pytest.raises(SystemExit):
        parse_explicit(["--help"], "", DetectionOptions)
    output = " ".join(capsys.readouterr().out.split())
    assert "peak learning rate for a global batch of 16, scaled linearly (default: the recipe's)" in output
    assert "probability of a horizontal flip (default: the recipe's)" in output
    assert "what finds objects (default: retinanet)" in output
