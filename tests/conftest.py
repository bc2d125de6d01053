"""Makes ``import likeness.pipelines...`` work in tests, the way the scripts do."""

import pytest
from comfyui_environment import load_script
from pretend_device import register_device

load_script("pack").load_pack()
register_device()


@pytest.fixture(scope="module")
def one_thread():
    """Models as small as those of most tests lose time to a second one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def other_precision():
    """accelerate keeps one precision for a whole process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
