from pathlib import Path

import pytest
import torch
from trial_runs import write_tree


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A tree that no test changes."""
    return write_tree(tmp_path_factory.mktemp("images") / "colors")


@pytest.fixture
def own_images(tmp_path) -> Path:
    """A tree of this test alone."""
    return write_tree(tmp_path / "colors")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """The models here are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
