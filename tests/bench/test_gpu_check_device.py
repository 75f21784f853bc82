"""What the GPU check asks of the machine: the GPU, and the architecture to build for it."""

import pytest

from bench.gpu_check.device import gpu_facts, shipped_arch


@pytest.mark.parametrize(
    ("capability", "arch"),
    [("9.0", "90a"), ("8.0", "80"), ("8.9", "80"), ("10.0", "80+PTX"), ("12.0", "80+PTX")],
)
def test_what_is_built_is_what_an_install_would_run(capability, arch):
    assert shipped_arch(capability, "80+PTX;90a") == arch


@pytest.mark.parametrize(
    ("capability", "arch"),
    [("8.0", "80"), ("8.6", "80"), ("9.0", "90a"), ("10.0", "80+100"), ("10.3", "80+100"), ("11.0", "80+PTX"),
     ("12.0", "80+120")],
)  # fmt: skip
def test_what_is_built_of_the_default(capability, arch):
    """The list itself, not one like it, and what comes out is one that the builder takes."""
    from builder.nvcc import arch_flags
    from container_kernels._env import VARIABLES

    assert shipped_arch(capability, VARIABLES["CONTAINER_KERNELS_CUDA_ARCHS"].default) == arch
    assert arch_flags("nvcc", arch)


def test_an_architecture_of_its_own_goes_before_ptx():
    assert shipped_arch("10.0", "80+PTX;90a;100;120") == "100"
    assert shipped_arch("12.1", "80+PTX;90a;100;120") == "120"
    with pytest.raises(ValueError, match=r"no code for compute capability 7.5"):
        shipped_arch("7.5", "80+PTX;90a")


def test_facts_of_a_gpu_by_nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 9.0, 81559 MiB, 580.159.04, 345 MHz, 1980 MHz, 31'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpu_facts()["compute_cap"] == "9.0" and gpu_facts()["name"] == "NVIDIA H100 80GB HBM3"
    tool.write_text("#!/bin/sh\necho 'no devices were found'; exit 6\n")
    assert gpu_facts() == {}
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpu_facts() == {}
