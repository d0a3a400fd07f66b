"""Tests run on eight simulated CPU devices, so that layouts over devices can be tested anywhere."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import pytest


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """An experiment of seconds: three to five words in, the same backwards out; with a cache of its own."""
    import toys

    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2T_DATA", str(folder / "cache"))
        yield toys.reversal(folder)
