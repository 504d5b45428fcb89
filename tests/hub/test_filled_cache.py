"""A cache that huggingface_hub filled: used without the hub, without a mark of ours, and only where it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from mflux_api.catalog import Model
from mflux_api.config import CustomModel, ModelSettings, Settings
from mflux_api.errors import ModelNotDeletable
from mflux_api.jobs.job import Status
from mflux_api.storage.checkpoints import Checkpoints
from tests.hub.test_service import service_under_test
from tests.support.hub_downloads import REPO, TRANSFORMER, Downloads, needed
from tests.support.hub_server import COMMIT, Hub, running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def filled(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache as `hf download` leaves it: all files of the repository."""
    from huggingface_hub import snapshot_download

    folder = tmp_path_factory.mktemp("filled")
    with running() as hub:
        hub.add(REPO, checkpoint)
        snapshot_download(REPO, cache_dir=folder, endpoint=hub.url, token=False)
    return folder


@pytest.fixture
def cache(filled: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(filled, tmp_path / "models", symlinks=True)


def tiny(cache: Path, revision: str | None = None) -> tuple[Checkpoints, Model]:
    custom = CustomModel(name="tiny", base="flux2-klein-4b", repo=REPO, revision=revision)
    settings = Settings(models=ModelSettings(cache_dir=cache, custom=(custom,)))
    model = settings.catalog().get("tiny")
    assert model is not None
    return Checkpoints(cache), model


def repository(cache: Path) -> Path:
    return cache / f"models--{REPO.replace('/', '--')}"


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_repository_that_another_program_downloaded_is_on_disk_and_the_hub_is_not_asked(
    hub: Hub, cache: Path, revision: str | None
) -> None:
    checkpoints, model = tiny(cache, revision)
    assert checkpoints.folder(model) == repository(cache) / "snapshots" / COMMIT
    state = checkpoints.state(model)
    assert (state.downloaded, state.commit) == (True, COMMIT)
    assert not hub.requests
    assert not checkpoints.hub.is_ours(REPO)


def test_hash_counts_the_models_files_whatever_else_was_downloaded(cache: Path) -> None:
    checkpoints, model = tiny(cache)
    before = checkpoints.state(model).sha256
    (repository(cache) / "snapshots" / COMMIT / "README.md").unlink()
    assert checkpoints.state(model).sha256 == before


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[:-3])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a shard is missing": lambda folder: (folder / TRANSFORMER).unlink(),
    "a shard is cut": lambda folder: cut(folder / TRANSFORMER),
    "a link leads nowhere": lambda folder: (folder / TRANSFORMER).resolve().unlink(),
    "the tokenizer is missing": lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(),
    "the chat template is missing": lambda folder: (folder / "tokenizer" / "chat_template.jinja").unlink(),
    "a configuration is missing": lambda folder: (folder / "vae" / "config.json").unlink(),
    "the model index is cut": lambda folder: cut(folder / "model_index.json"),
    "a component is missing": lambda folder: shutil.rmtree(folder / "text_encoder"),
    "all is missing": shutil.rmtree,
}


@pytest.mark.parametrize("listed", [True, False], ids=["with the list of files", "as older versions leave it"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_snapshot_that_is_not_whole_is_not_used(cache: Path, damage: Callable[[Path], object], listed: bool) -> None:
    checkpoints, model = tiny(cache)
    if not listed:
        shutil.rmtree(repository(cache) / "trees")
    assert checkpoints.folder(model) is not None
    damage(repository(cache) / "snapshots" / COMMIT)
    assert checkpoints.folder(model) is None


@pytest.mark.parametrize("reference", ["", "../../etc/passwd", "0123", "g" * 40])
def test_reference_that_is_not_a_commit_leads_nowhere(cache: Path, reference: str) -> None:
    (repository(cache) / "refs" / "main").write_text(reference)
    checkpoints, model = tiny(cache)
    assert checkpoints.folder(model) is None
    assert Checkpoints(cache).folder(attrs.evolve(model, revision="../refs/main")) is None


async def test_job_runs_on_it_without_a_hub_and_without_automatic_downloads(
    hub: Hub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    async with service_under_test(tmp_path, automatic=False) as tested:
        assert (await tested.end(await tested.submit())).status is Status.COMPLETED
        with pytest.raises(ModelNotDeletable, match="before this service"):
            await tested.gateway.delete_model(tested.model())
    assert not hub.requests


def test_only_what_is_missing_is_downloaded(hub: Hub, cache: Path) -> None:
    from mflux_api.hub.download import Download
    from tests.support.hub_downloads import download_request

    (repository(cache) / "snapshots" / COMMIT / TRANSFORMER).resolve().unlink()
    hub.sent.clear()
    Download(download_request(cache), hub.url).run()
    assert hub.sent == {TRANSFORMER: len(needed(hub)[TRANSFORMER])}
    checkpoints, model = tiny(cache)
    assert checkpoints.folder(model) is not None


def test_other_revision_than_the_one_on_disk_is_not_used_but_named(hub: Hub, cache: Path) -> None:
    pin = "f" * 40
    checkpoints, model = tiny(cache, pin)
    assert checkpoints.folder(model) is None
    failed = Downloads(cache, "http://127.0.0.1:9").fail(revision=pin)
    assert f"[[models.custom]] with revision = '{COMMIT}' uses that" in failed.message
