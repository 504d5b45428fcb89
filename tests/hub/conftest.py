"""A hub with one small checkpoint."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_downloads import REPO
from tests.support.hub_server import Hub, running


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of the smallest shape, with a file that no model needs."""
    from mflux_api.engine.demo.random_checkpoint import write_random_checkpoint
    from tests.support.checkpoint_shapes import TINY

    folder = write_random_checkpoint(tmp_path_factory.mktemp("hub") / "model", TINY)
    (folder / "README.md").write_text("not needed")
    (folder / "single_file.safetensors").write_bytes(bytes(200_000))
    return folder


@pytest.fixture
def hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that children of this process come to; they have no token."""
    with running() as hub:
        hub.add(REPO, checkpoint)
        for name, value in hub.environ().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_HOME", str(checkpoint.parent / "hf-home"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield hub
