"""What is found in the folders of ``lora.dirs``: which links are followed, and why the rest is left out."""

import json
import os
from pathlib import Path

import pytest

from mflux_api.storage import lora_folders
from mflux_api.storage.lora_folders import Listing, Skipped, escape, look, modification_time
from mflux_api.storage.loras import LoraFiles


def lora(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def names(listing: Listing) -> list[str]:
    return [file.name for file in listing.files]


def reasons(listing: Listing) -> dict[str, str]:
    return {each.name: each.reason for each in listing.skipped}


def raw(folder: Path, name: bytes) -> Path:
    """A path with such a name, on a file system that takes it."""
    path = folder / os.fsdecode(name)
    try:
        path.touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    path.unlink()
    return path


def test_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert look([tmp_path / "none"]) == Listing(files=())


# --- links ---


def snapshot(folder: Path) -> Path:
    """A repository as the model hub's library keeps it: the files of a snapshot are links."""
    blob = folder / "blobs" / "0123abcd"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"x")
    files = folder / "snapshots" / "main"
    files.mkdir(parents=True)
    (files / "ink.safetensors").symlink_to("../../blobs/0123abcd")
    return files


def test_snapshot_whose_files_are_all_links_is_listed_with_follow_links(tmp_path: Path) -> None:
    files = snapshot(tmp_path / "hub")
    closed, followed = look([files]), look([files], follow_links=True)
    assert (names(closed), names(followed)) == ([], ["ink.safetensors"])
    assert "lora.follow_links" in reasons(closed)["ink.safetensors"]
    assert (followed.files[0].size, followed.skipped) == (1, ())


def test_link_that_ends_inside_one_of_the_folders_is_followed(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    lora(one / "styles" / "ink.safetensors")
    lora(other / "oil.safetensors")
    (one / "file.safetensors").symlink_to(other / "oil.safetensors")
    (one / "folder").symlink_to("styles")
    (one / "elsewhere").symlink_to(other)
    (one / "twice.safetensors").symlink_to("file.safetensors")
    listing = look([one, other])
    assert names(listing) == [
        "elsewhere/oil.safetensors",
        "file.safetensors",
        "folder/ink.safetensors",
        "oil.safetensors",
        "styles/ink.safetensors",
        "twice.safetensors",
    ]
    assert [file.name for file in listing.files if file.through_link] == names(listing)[:1] + names(listing)[2:3]
    assert listing.skipped == ()


def test_folder_of_lora_dirs_may_be_a_link_itself(tmp_path: Path) -> None:
    lora(tmp_path / "real" / "ink.safetensors")
    (tmp_path / "real" / "twin.safetensors").symlink_to("ink.safetensors")
    (tmp_path / "loras").symlink_to("real")
    assert names(look([tmp_path / "loras"])) == ["ink.safetensors", "twin.safetensors"]


def test_folder_that_is_named_twice_is_listed_once(tmp_path: Path) -> None:
    lora(tmp_path / "real" / "ink.safetensors")
    (tmp_path / "link").symlink_to("real")
    assert names(look([tmp_path / "link", tmp_path / "real", tmp_path / "real" / "."])) == ["ink.safetensors"]


def test_links_that_lead_out_are_left_out_with_the_setting_and_followed_with_it(tmp_path: Path) -> None:
    lora(tmp_path / "away" / "oil.safetensors")
    folder = tmp_path / "loras"
    lora(folder / "ink.safetensors")
    (folder / "file.safetensors").symlink_to(tmp_path / "away" / "oil.safetensors")
    (folder / "folder").symlink_to(tmp_path / "away")
    (folder / "hop.safetensors").symlink_to("file.safetensors")
    # What begins like a folder of lora.dirs is not in it.
    lora(tmp_path / "loras2" / "oil.safetensors")
    (folder / "near.safetensors").symlink_to("../loras2/oil.safetensors")
    closed, followed = look([folder]), look([folder], follow_links=True)
    assert names(closed) == ["ink.safetensors"]
    assert set(reasons(closed)) == {"file.safetensors", "folder", "hop.safetensors", "near.safetensors"}
    assert all("lora.follow_links = true" in reason for reason in reasons(closed).values())
    expected = ["file.safetensors", "folder/oil.safetensors", "hop.safetensors", "ink.safetensors", "near.safetensors"]
    assert (names(followed), followed.skipped) == (expected, ())


def test_links_in_circles_end(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    lora(folder / "styles" / "ink.safetensors")
    (folder / "styles" / "up").symlink_to("..")
    (folder / "styles" / "self").symlink_to(".")
    (folder / "a.safetensors").symlink_to("b.safetensors")
    (folder / "b.safetensors").symlink_to("a.safetensors")
    (folder / "gone.safetensors").symlink_to("nothing")
    for follow_links in (False, True):
        listing = look([folder], follow_links=follow_links)
        assert names(listing) == ["styles/ink.safetensors"]
        assert reasons(listing) == {
            "a.safetensors": "a link that leads back to itself",
            "b.safetensors": "a link that leads back to itself",
            "gone.safetensors": "a link to nothing",
            "styles/up": "a link to a folder that it lies in",
            "styles/self": "a link to a folder that it lies in",
        }


def test_folders_full_of_links_to_one_another_end_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen folders that link to all others have 16 × 15 × 14 … ways through them."""
    monkeypatch.setattr(lora_folders, "MAX_ENTRIES", 2000)
    for number in range(16):
        lora(tmp_path / str(number) / "ink.safetensors")
        for other in range(16):
            (tmp_path / str(number) / f"to-{other}").symlink_to(tmp_path / str(other))
    listing = look([tmp_path])
    assert {f"{number}/ink.safetensors" for number in range(16)} <= set(names(listing))
    assert "what comes after them is not" in listing.skipped[-1].reason or listing.skipped_total > 100
    assert len(listing.files) <= 2000


# --- what is left out ---


def test_each_thing_that_is_left_out_has_its_reason(tmp_path: Path) -> None:
    lora(tmp_path / "ink.safetensors")
    for name in ("old.pt", "old.CKPT", "pytorch_lora_weights.bin", ".hidden.safetensors", ".cache/a.safetensors"):
        lora(tmp_path / name)
    lora(tmp_path / "1/2/3/4/5/6/7/ok.safetensors")
    lora(tmp_path / "1/2/3/4/5/6/7/8/deep.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    listing = look([tmp_path])
    assert names(listing) == ["1/2/3/4/5/6/7/ok.safetensors", "ink.safetensors"]
    found = reasons(listing)
    assert {name for name, reason in found.items() if "only .safetensors" in reason} == {
        "old.pt",
        "old.CKPT",
        "pytorch_lora_weights.bin",
    }
    assert {name for name, reason in found.items() if reason == "it is not a file"} == {
        "folder.safetensors",
        "pipe.safetensors",
    }
    assert {name for name, reason in found.items() if "begins with a dot" in reason} == {
        ".hidden.safetensors",
        ".cache",
    }
    assert "too deep" in found["1/2/3/4/5/6/7/8"]
    assert listing.skipped_total == len(found) == 8


def test_what_no_lora_is_made_of_is_not_mentioned(tmp_path: Path) -> None:
    (tmp_path / ".#ink").symlink_to("person@machine.123")
    for name in ("README.md", "preview.png", "._ink.safetensors", ".upload.0123abcd.part", ".DS_Store", "notes"):
        lora(tmp_path / name)
    assert look([tmp_path]) == Listing(files=())


def test_file_whose_name_no_answer_could_hold_is_listed_escaped_and_hides_no_other(tmp_path: Path) -> None:
    """One such name made the whole list an internal error; then it was left out without a word."""
    escaped = {
        b"a\xff.safetensors": r"a\xff.safetensors",
        b"b\n\x1b[31m.safetensors": r"b\n\x1b[31m.safetensors",
        b"c\x7f.safetensors": r"c\x7f.safetensors",
        "d\x85\u2028.safetensors".encode(): r"d\x85\u2028.safetensors",
    }
    for name in (*escaped, "é ü.safetensors".encode()):
        lora(raw(tmp_path, name))
    lora(raw(tmp_path, b"folder\xe9") / "ink.safetensors")
    listing = look([tmp_path])
    assert names(listing) == ["é ü.safetensors"]
    assert set(reasons(listing)) == {*escaped.values(), r"folder\xe9"}
    assert all("not UTF-8, or has control characters" in each.reason for each in listing.skipped)
    json.dumps([each.name for each in listing.skipped]).encode()


def test_loras_in_a_folder_whose_own_name_is_not_utf_8_are_found(tmp_path: Path) -> None:
    """All of them were left out: what cannot be written is above the names that are."""
    folders = [raw(tmp_path, b"one\xff"), raw(tmp_path, b"two\n")]
    for folder in folders:
        lora(folder / "ink.safetensors")
    listing = look(folders)
    assert names(listing) == ["ink.safetensors", r"two\n/ink.safetensors"]
    found = LoraFiles(tuple(folders)).resolve(names(listing))
    assert [file.path for file in found] == [folder / "ink.safetensors" for folder in folders]


def test_same_name_in_several_folders_is_called_after_its_folder_and_never_by_a_whole_path(tmp_path: Path) -> None:
    folders = tuple(tmp_path / name / "loras" for name in "abc")
    for folder in folders:
        lora(folder / "ink.safetensors")
    listing = look(folders)
    assert names(listing) == ["ink.safetensors", "loras-2/ink.safetensors", "loras-3/ink.safetensors"]
    found = LoraFiles(folders).resolve(["ink", "loras-2/ink", "loras-3/ink", "loras/ink"])
    assert [file.path.parent for file in found] == [*folders, folders[0]]


def test_time_that_no_calendar_has_hides_no_file(tmp_path: Path) -> None:
    os.utime(lora(tmp_path / "ink.safetensors"), (-(10**11), -(10**11)))
    assert [file.modified_at.year for file in look([tmp_path]).files] == [1970]
    # Not every file system keeps such a time.
    assert modification_time(os.stat_result((0,) * 8 + (10**13, 0))).year == 9999


def test_what_is_beyond_the_count_is_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_folders, "MAX_FILES", 3)
    for number in range(5):
        lora(tmp_path / "below" / f"{number}.safetensors")
    lora(tmp_path / "near.safetensors")
    listing = look([tmp_path])
    # The nearest first, although its name comes last.
    assert names(listing) == ["below/0.safetensors", "below/1.safetensors", "near.safetensors"]
    assert listing.skipped == (Skipped("below", "3 LoRAs are listed, and what comes after them is not"),)


def test_list_of_what_is_left_out_is_bounded_and_says_how_many_there_are(tmp_path: Path) -> None:
    for number in range(150):
        (tmp_path / f"{number}.pt").touch()
    listing = look([tmp_path])
    assert (len(listing.skipped), listing.skipped_total) == (100, 150)


def test_folder_that_cannot_be_read_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora(tmp_path / "closed" / "ink.safetensors")
    scan = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert look([tmp_path]).skipped == (Skipped("closed", "it cannot be read (Permission denied)"),)


@pytest.mark.parametrize(
    ("name", "shown"), [("ink", "ink"), ("é ü", "é ü"), ("a\udcffb", r"a\xffb"), ("\ud800", r"\ud800"), ("\0", r"\x00")]
)
def test_escaped_name_is_the_name_wherever_it_can_be_shown(name: str, shown: str) -> None:
    assert escape(name) == shown
