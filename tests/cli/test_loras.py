"""``mflux-api loras list``, and files that ``generate`` is given."""

import os
from pathlib import Path

import pytest

from mflux_api.cli.main import main
from mflux_api.cli.request_options import local_loras
from mflux_api.config import Settings
from mflux_api.storage.loras import LoraFiles
from tests.support.lora_files import lora_bytes, write_lora


def listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    config = folder / "config.toml"
    config.write_text('[lora]\ndirs = ["loras"]\n', "utf-8")
    assert main(["loras", "list", "--config", str(config)]) == 0
    return capsys.readouterr().out.splitlines()


def test_list_shows_what_each_lora_holds_and_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lora(tmp_path / "loras" / "styles" / "ink.safetensors", seed=1)
    (tmp_path / "loras" / "cut.safetensors").write_bytes(lora_bytes(1)[:-1])
    (tmp_path / "loras" / "old.pt").touch()
    (tmp_path / "loras" / "out").symlink_to("/")
    header, cut, ink, empty, title, *left_out = listed(tmp_path, capsys)
    assert header.split()[:4] == ["LORA", "FORMAT", "RANK", "LAYERS"]
    assert cut.startswith("cut.safetensors ")
    assert cut.endswith("(a part of it is missing)")
    assert ink.split() == ["styles/ink.safetensors", "lora", "2", "3", "of", "3", "0.0", "MB"]
    assert (empty, title) == ("", "left out (2):")
    assert [line.split()[0] for line in left_out] == ["old.pt", "out"]
    assert "lora.follow_links" in left_out[1]


def test_empty_folder_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(tmp_path, capsys) == ["no LoRAs: put .safetensors files into a folder of lora.dirs"]


@pytest.mark.parametrize("name", [b"ink.safetensors", b"ink.SAFETENSORS", b"folder-\xff/ink.safetensors"])
def test_file_that_is_given_to_generate_is_found_wherever_it_lies(tmp_path: Path, name: bytes) -> None:
    """Also one that is a link, as in a snapshot of the model hub: the person who types may read it."""
    blob = tmp_path / "blobs" / "0123"
    blob.parent.mkdir()
    blob.write_bytes(lora_bytes(1))
    path = tmp_path / "snapshot" / os.fsdecode(name)
    try:
        path.parent.mkdir(parents=True)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    path.symlink_to(blob)
    named = local_loras([f"{path}:-1.5"], Settings())
    (found,) = LoraFiles.from_settings(named.settings).resolve(named.files)
    assert (found.path, named.scales) == (path, (-1.5,))
