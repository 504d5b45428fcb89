"""LoRA files: found below their folders and nowhere else, and written whole or not at all."""

import json
import os
import threading
from pathlib import Path

import pytest

from mflux_api.errors import InvalidParameter, LoraNotDeletable, LoraNotFound
from mflux_api.storage.loras import CheckedLora, LoraFiles, checked_name
from tests.support.disk_calls import record_disk_calls
from tests.support.safetensors_bytes import safetensors_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folders of LoRAs, with secrets around them."""
    for name in ("loras/ink", "loras/styles/oil", "loras/styles/deep/ink2", "more/ink", "more/only", "secret"):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(safetensors_bytes())
    (tmp_path / "loras" / "notes.txt").write_text("x", "utf-8")
    (tmp_path / "loras" / ".hidden.safetensors").write_bytes(safetensors_bytes())
    (tmp_path / "loras" / "folder.safetensors").mkdir()
    (tmp_path / "loras" / "escape.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (tmp_path / "loras" / "out").symlink_to(tmp_path)
    (tmp_path / "loras" / "dangling.safetensors").symlink_to(tmp_path / "nothing.safetensors")
    (tmp_path / "loras" / "linked.safetensors").symlink_to(tmp_path / "loras" / "ink.safetensors")
    os.mkfifo(tmp_path / "loras" / "pipe.safetensors")
    return tmp_path


def loras(folder: Path) -> LoraFiles:
    return LoraFiles((folder / "loras", folder / "more"))


def test_listing_has_regular_files_below_the_folders_and_nothing_else(folder: Path) -> None:
    found = {file.name: file.path for file in loras(folder).all()}
    assert found == {
        "ink.safetensors": folder / "loras/ink.safetensors",
        "linked.safetensors": folder / "loras/linked.safetensors",
        "styles/oil.safetensors": folder / "loras/styles/oil.safetensors",
        "styles/deep/ink2.safetensors": folder / "loras/styles/deep/ink2.safetensors",
        "only.safetensors": folder / "more/only.safetensors",
        "more/ink.safetensors": folder / "more/ink.safetensors",
    }


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("ink", "loras/ink"),
        ("ink.safetensors", "loras/ink"),
        ("./ink.safetensors", "loras/ink"),
        ("styles/oil", "loras/styles/oil"),
        ("styles/../ink", "loras/ink"),
        ("oil", "loras/styles/oil"),
        ("ink2", "loras/styles/deep/ink2"),
        ("only", "more/only"),
        ("{folder}/loras/styles/oil.safetensors", "loras/styles/oil"),
        ("{folder}/more/ink.safetensors", "more/ink"),
        ("{folder}/loras/../more/only", "more/only"),
    ],
)
def test_names_and_paths_that_lie_inside_are_found(folder: Path, name: str, path: str) -> None:
    (found,) = loras(folder).resolve([name.format(folder=folder)])
    assert found.path == folder / f"{path}.safetensors"
    assert loras(folder).resolve([found.name]) == (found,)


def test_path_from_the_working_directory_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (found,) = loras(folder).resolve(["loras/ink.safetensors"])
    assert found.path == folder / "loras/ink.safetensors"


TRICKS = [
    "",
    " ",
    ".",
    "..",
    "/",
    "~",
    "~/loras/ink",
    "secret",
    "../secret",
    "../secret.safetensors",
    "styles/../../secret",
    "loras/../../secret",
    "..\\secret",
    "styles\\oil",
    "{folder}/secret",
    "{folder}/secret.safetensors",
    "{folder}/loras/../secret.safetensors",
    "/proc/self/cwd/secret.safetensors",
    "/etc/passwd",
    "/dev/zero",
    "escape",
    "out/secret",
    "out/loras/ink",
    "dangling",
    "folder",
    "pipe",
    ".hidden",
    "notes.txt",
    "notes",
    "ink.txt",
    "ink.safetensors.txt",
    "ink\0",
    "ink\0.safetensors",
    "ink\n",
    "ink ",
    "INK",
    "ink*",
    "i?k",
    "%69nk",
    "%2e%2e/secret",
    "..%2fsecret",
    "..\u2215secret",
    "\uff0e\uff0e/secret",
    "file:///etc/passwd",
    "https://example.com/ink.safetensors",
    "owner/repo",
    "owner/repo:ink.safetensors",
    "C:\\loras\\ink",
    "CON",
    "$HOME",
    "`id`",
    "a" * 5000,
    "../" * 2000 + "etc/passwd",
    "\udc80",
    "\x1b[31m",
]


@pytest.mark.parametrize("trick", TRICKS)
def test_path_tricks_get_one_uniform_error(folder: Path, trick: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        loras(folder).resolve(["ink", trick.format(folder=folder) if trick.startswith("{folder}") else trick])
    error = caught.value
    listed = {file.name for file in loras(folder).all()}
    uniform = (
        "'lora_files' is invalid: expected the name of a .safetensors file in lora.dirs; GET /api/v1/loras lists them"
    )
    assert error.message.startswith(uniform)
    # No more is told than the list tells everybody.
    hint = error.message.removeprefix(uniform)
    _, _, close = hint.partition("; close to it: ")
    reasons = [f"; {each.name} is left out: {each.reason}" for each in loras(folder).look().skipped]
    assert hint in ("", *reasons) or set(close.split(", ")) <= listed
    assert error.details["field"] == "lora_files"
    json.dumps(dict(error.details)).encode()
    assert str(folder / "loras") not in error.message


def test_accents_are_found_however_the_disk_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "Aque\u0301.safetensors").write_bytes(safetensors_bytes())
    assert len(LoraFiles((tmp_path,)).resolve(["Aqu\u00e9"])) == 1


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("inc", "ink.safetensors"),
        ("INK", "ink.safetensors"),
        ("styles/oyl", "styles/oil.safetensors"),
        ("lniked.safetensor", "linked.safetensors"),
        ("linked.pt", "linked.safetensors"),
    ],
)
def test_name_that_no_file_has_is_answered_with_close_ones(folder: Path, name: str, close: str) -> None:
    with pytest.raises(InvalidParameter, match=f"close to it: .*{close}") as caught:
        loras(folder).resolve([name])
    assert str(folder) not in caught.value.message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("escape", "escape.safetensors is left out: a link that leaves lora.dirs"),
        ("{folder}/loras/escape.safetensors", "escape.safetensors is left out: a link that leaves lora.dirs"),
        ("out/secret", "out is left out: a link that leaves lora.dirs"),
        ("{folder}/loras/out/more/only.safetensors", "out is left out: a link that leaves lora.dirs"),
        ("dangling.safetensors", "a link to nothing"),
        ("styles/old.pt", "styles/old.pt is left out: only .safetensors files are taken"),
        ("odd\udcff", r"odd\\xff.safetensors is left out: its name is not UTF-8"),
    ],
)
def test_name_of_a_file_that_is_left_out_is_answered_with_the_reason(folder: Path, name: str, reason: str) -> None:
    """That no such file was there was not true."""
    (folder / "loras" / "styles" / "old.pt").touch()
    try:
        (folder / "loras" / "odd\udcff.safetensors").touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(InvalidParameter, match=reason) as caught:
        loras(folder).resolve([name.format(folder=folder)])
    assert str(folder) not in caught.value.message


def test_name_that_two_folders_have_is_answered_with_both(tmp_path: Path) -> None:
    for name in ("a/ink", "b/ink"):
        (tmp_path / f"{name}.safetensors").parent.mkdir()
        (tmp_path / f"{name}.safetensors").touch()
    with pytest.raises(InvalidParameter, match=r"close to it: a/ink\.safetensors, b/ink\.safetensors$"):
        LoraFiles((tmp_path,)).resolve(["ink"])


@pytest.mark.parametrize("suffix", [".SAFETENSORS", ".SafeTensors"])
def test_capitals_in_the_suffix_count_as_the_suffix(tmp_path: Path, suffix: str) -> None:
    """Files that came from other systems were not there."""
    (tmp_path / f"ink{suffix}").write_bytes(safetensors_bytes())
    files = LoraFiles((tmp_path,))
    names = ("ink", f"ink{suffix}", "ink.safetensors", str(tmp_path / "ink"), str(tmp_path / "ink.safetensors"))
    assert [file.name for file in files.resolve(names)] == [f"ink{suffix}"] * 5


def test_of_two_files_whose_suffixes_differ_the_one_that_is_spelled_is_meant(tmp_path: Path) -> None:
    for suffix in (".SAFETENSORS", ".safetensors"):
        (tmp_path / f"ink{suffix}").touch()
    if len(os.listdir(tmp_path)) == 1:
        pytest.skip("to this file system they are one name")
    names = ["ink.SAFETENSORS", "ink.safetensors"]
    assert [file.name for file in LoraFiles((tmp_path,)).resolve(names)] == names


# --- removing ---


def test_removed_file_is_gone_when_the_call_returns_and_its_link_alone_where_it_is_one(folder: Path) -> None:
    files = loras(folder)
    for name in ("linked", "styles/oil.safetensors"):
        files.remove(files.plan_removal(name).file)
    assert sorted(os.listdir(folder / "loras/styles")) == ["deep"]
    assert (folder / "loras/ink.safetensors").exists()
    assert not (folder / "loras/linked.safetensors").is_symlink()


def test_removal_is_on_disk_when_the_call_returns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_disk_calls(monkeypatch)
    loras(folder).remove(loras(folder).plan_removal("styles/oil").file)
    assert ("fsync", (folder / "loras" / "styles").stat().st_ino) in calls.calls


@pytest.mark.parametrize(
    "trick", [*TRICKS, "oil", "./ink", "styles/../ink", "styles//oil", "{folder}/loras/ink.safetensors"]
)
def test_only_a_name_that_is_listed_is_removed(folder: Path, trick: str) -> None:
    """A path is not a name here, and no file is found by a part of its name."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(LoraNotFound) as caught:
        loras(folder).plan_removal(trick.format(folder=folder) if trick.startswith("{folder}") else trick)
    assert (sorted(folder.rglob("*")), caught.value.message.isprintable()) == (before, True)
    json.dumps(dict(caught.value.details)).encode()


def test_file_that_the_list_leaves_out_is_not_removed_and_the_answer_says_why(folder: Path) -> None:
    with pytest.raises(LoraNotFound, match=r"left out: a link that leaves lora\.dirs"):
        loras(folder).plan_removal("escape.safetensors")


def test_file_behind_a_link_to_a_folder_is_not_removed(folder: Path) -> None:
    (folder / "loras" / "out").unlink()
    (folder / "loras" / "out").symlink_to(folder / "loras" / "styles")
    with pytest.raises(LoraNotDeletable, match="behind a link"):
        loras(folder).plan_removal("out/oil")


def test_name_of_a_second_file_outlives_the_first(folder: Path) -> None:
    """A job that was accepted with the one keeps it, although the list calls it otherwise when the other is gone."""
    files = loras(folder)
    (before,) = files.resolve(["more/ink"])
    assert (before.name, before.path) == ("more/ink.safetensors", folder / "more/ink.safetensors")
    (folder / "loras" / "linked.safetensors").unlink()
    files.remove(files.plan_removal("ink").file)
    after = files.resolve(["more/ink.safetensors", "ink"])
    assert [(file.name, file.path) for file in after] == [("ink.safetensors", before.path)] * 2
    # An earlier version called it by its path.
    assert set(files.plan_removal("ink").names) == {"ink.safetensors", "more/ink.safetensors", str(before.path)}


def test_names_that_a_removal_takes_are_those_of_links_to_the_file_too(folder: Path) -> None:
    (folder / "loras" / "twice.safetensors").symlink_to("linked.safetensors")
    (folder / "loras" / "alias").symlink_to("styles")
    files = loras(folder)
    taken = {
        name: {each for each in files.plan_removal(name).names if not each.startswith(("loras/", "/"))}
        for name in ("ink", "linked", "twice", "styles/oil")
    }
    assert taken == {
        "ink": {"ink.safetensors", "linked.safetensors", "twice.safetensors"},
        "linked": {"linked.safetensors", "twice.safetensors"},
        "twice": {"twice.safetensors"},
        "styles/oil": {"styles/oil.safetensors", "alias/oil.safetensors"},
    }


# --- uploads ---


def put(loras: LoraFiles, name: str, data: bytes, *, overwrite: bool = False) -> str:
    with loras.begin() as upload:
        for start in range(0, len(data), 10):
            upload.write(data[start : start + 10])
        return upload.publish(name, CheckedLora(upload.size), overwrite=overwrite).name


def test_upload_is_found_under_its_name_and_nothing_else_is_left(tmp_path: Path) -> None:
    files = LoraFiles((tmp_path / "new",))
    assert put(files, "my-style", safetensors_bytes()) == "my-style.safetensors"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["my-style.safetensors"]
    assert files.resolve(["my-style"])[0].size == len(safetensors_bytes())


def test_taken_name_is_kept_without_overwrite(tmp_path: Path) -> None:
    files = LoraFiles((tmp_path,))
    put(files, "a", safetensors_bytes(16))
    with pytest.raises(InvalidParameter, match="taken"):
        put(files, "a", safetensors_bytes(32))
    assert files.all()[0].size == len(safetensors_bytes(16))
    put(files, "a", safetensors_bytes(32), overwrite=True)
    assert files.all()[0].size == len(safetensors_bytes(32))


def test_upload_that_grew_after_it_was_checked_is_not_published(tmp_path: Path) -> None:
    with LoraFiles((tmp_path,)).begin() as upload:
        upload.write(safetensors_bytes())
        checked = CheckedLora(upload.size)
        upload.write(b"more")
        with pytest.raises(ValueError, match="after it was checked"):
            upload.publish("ink", checked, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_upload_replaces_a_link_and_never_writes_through_it(folder: Path) -> None:
    files, secret = loras(folder), (folder / "secret.safetensors").read_bytes()
    for name in ("escape", "dangling", "linked"):
        with pytest.raises(InvalidParameter, match="taken"):
            put(files, name, safetensors_bytes(32))
        put(files, name, safetensors_bytes(32), overwrite=True)
        path = folder / "loras" / f"{name}.safetensors"
        assert (path.is_symlink(), path.read_bytes()) == (False, safetensors_bytes(32))
    assert (folder / "secret.safetensors").read_bytes() == secret
    assert (folder / "loras" / "ink.safetensors").read_bytes() == safetensors_bytes()
    assert not (folder / "nothing.safetensors").exists()


def test_upload_with_capitals_in_the_suffix_is_no_second_file(tmp_path: Path) -> None:
    (tmp_path / "ink.SAFETENSORS").write_bytes(safetensors_bytes(16))
    files = LoraFiles((tmp_path,))
    assert put(files, "oil.SAFETENSORS", safetensors_bytes()) == "oil.safetensors"
    with pytest.raises(InvalidParameter, match="taken"):
        put(files, "ink", safetensors_bytes(32))
    assert put(files, "ink", safetensors_bytes(32), overwrite=True) == "ink.SAFETENSORS"
    assert [(file.name, file.size) for file in files.all()] == [
        ("ink.SAFETENSORS", len(safetensors_bytes(32))),
        ("oil.safetensors", len(safetensors_bytes())),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".a",
        "a/b",
        "../a",
        "a\\b",
        "/a",
        "a\0",
        "a\nb",
        "a:b",
        "a*",
        "-a",
        "a.",
        "a..b",
        "ä",
        "a" * 121,
        "~a",
    ],
)
def test_name_of_an_upload_has_no_folder_and_no_surprises(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidParameter):
        checked_name(name)
    with pytest.raises(InvalidParameter):
        put(LoraFiles((tmp_path,)), name, safetensors_bytes())
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_upload_are_removed_and_nothing_else(folder: Path) -> None:
    files = loras(folder)
    (folder / "loras" / ".upload.0123abcd.part").write_bytes(b"half")
    before = files.all()
    assert files.remove_leftovers() == 1
    assert (files.all(), files.remove_leftovers()) == (before, 0)


def test_upload_in_flight_of_another_server_is_not_removed(tmp_path: Path) -> None:
    with LoraFiles((tmp_path,)).begin() as upload:
        upload.write(safetensors_bytes())
        # A second server starts on the same folder.
        assert LoraFiles((tmp_path,)).remove_leftovers() == 0
        assert upload.publish("ink", CheckedLora(upload.size), overwrite=False).name == "ink.safetensors"
    assert [path.name for path in tmp_path.iterdir()] == ["ink.safetensors"]


def test_of_two_uploads_of_one_name_exactly_one_succeeds(tmp_path: Path) -> None:
    """Also of two servers on one folder: both have looked whether the name is free before either takes it."""
    files, refused = LoraFiles((tmp_path,)), []
    both = threading.Barrier(2)

    def upload(size: int) -> None:
        with files.begin() as upload:
            upload.write(safetensors_bytes(size))
            both.wait()
            try:
                upload.publish("ink", CheckedLora(upload.size), overwrite=False)
            except InvalidParameter as error:
                refused.append((size, error.details["field"]))

    for _ in range(20):
        refused.clear()
        threads = [threading.Thread(target=upload, args=(size,)) for size in (16, 32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ((lost, field),) = refused
        assert field == "name"
        (kept,) = files.all()
        assert kept.size == len(safetensors_bytes(48 - lost))
        kept.path.unlink()


def test_upload_is_on_disk_before_it_has_its_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = record_disk_calls(monkeypatch)
    name = put(LoraFiles((tmp_path,)), "my-style", safetensors_bytes())
    calls.check_synced_before_named(tmp_path / name, folder_too=True)
