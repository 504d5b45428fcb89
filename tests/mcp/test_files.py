"""Which files on this machine are read for a request."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from mflux_api.errors import InvalidParameter
from mflux_api.mcp import files
from mflux_api.mcp.files import InputFiles, Links, folder_of_uri, may_be_root, resolve_folders


async def none() -> Sequence[Path]:
    return ()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder that may be read, with an image, beside one that may not."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "a b.png").write_bytes(b"inside")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return folder


@pytest.mark.parametrize(
    "spelled", ["a b.png", "./a b.png", "{work}/a b.png", "file://{work}/a%20b.png", "x/../a b.png"]
)
async def test_file_in_an_allowed_folder_is_read_however_it_is_spelled(spelled: str, work: Path) -> None:
    text = await InputFiles((work,), work).as_text(spelled.format(work=work), "mask", none)
    assert text == "aW5zaWRl"


@pytest.mark.parametrize(
    "spelled",
    [
        "../secret.png",
        "{work}/../secret.png",
        "file://{work}/..%2Fsecret.png",
        "link.png",
        "linked/secret.png",
        "~/x.png",
    ],
)
async def test_file_outside_is_not_read_however_it_is_spelled(spelled: str, work: Path) -> None:
    (work / "link.png").symlink_to(work.parent / "secret.png")
    (work / "linked").symlink_to(work.parent)
    with pytest.raises(InvalidParameter, match="is outside of the folders that may be read") as raised:
        await InputFiles((work,), work).as_text(spelled.format(work=work), "init_images", none)
    # Whether it is there is not told either.
    assert str(work.parent) not in raised.value.message


async def test_folder_behind_a_link_counts_as_what_it_leads_to(work: Path) -> None:
    link = work.parent / "link"
    link.symlink_to(work)
    text = await InputFiles(resolve_folders([link, link]), link).as_text("a b.png", "mask", none)
    assert text == "aW5zaWRl"


@pytest.mark.parametrize("text", ["cG5n", "/9j/4AAQSkZJRg==", "data:image/png;base64,cG5n", "DATA:,a.png"])
async def test_base64_and_data_urls_are_left_to_the_service(text: str, work: Path) -> None:
    assert await InputFiles((work,), work).as_text(text, "mask", none) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("https://example.org/a.png", "'mask' is a URL; save the image to a file and give its path, or send base64"),
        ("file://server/a.png", "'mask' names a file of another machine; expected file:///path"),
        ("a.png\0", "'mask' is not a path; write the whole path of the file"),
        ("~no-one-is-called-so/a.png", "'mask' is not a path; write the whole path of the file"),
        (
            "none.png",
            "'mask' is invalid: the file 'none.png' cannot be read (no such file or directory); check the path",
        ),
        (".", "is not a file; name an image file"),
        ("pipe.png", "'mask' is invalid: the file 'pipe.png' is not a file; name an image file"),
        ("large.png", "'mask' is invalid: the file 'large.png' is larger than 0 MB; send a smaller one"),
        ("circle.png", "'circle.png'"),
    ],
)
async def test_what_cannot_be_read_is_said(text: str, says: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 10)
    os.mkfifo(work / "pipe.png")
    (work / "large.png").write_bytes(bytes(11))
    (work / "circle.png").symlink_to(work / "circle.png")
    with pytest.raises(InvalidParameter) as raised:
        await InputFiles((work,), work).as_text(text, "mask", none)
    assert says in raised.value.message


async def test_client_is_asked_for_its_folders_only_where_the_others_do_not_do(work: Path) -> None:
    asked = list[str]()

    async def more() -> Sequence[Path]:
        asked.append("asked")
        return (work.parent,)

    inputs = InputFiles((work,), work)
    assert await inputs.as_text("a b.png", "mask", more) == "aW5zaWRl"
    assert asked == []
    assert await inputs.as_text("../secret.png", "mask", more) == "c2VjcmV0"
    assert asked == ["asked"]


def test_whole_disk_and_home_are_no_working_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [may_be_root(Path(each)) for each in ("/", tmp_path, tmp_path / "images")] == [False, False, True]


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("file:///a/b%20c", Path("/a/b c")),
        ("file://localhost/a", Path("/a")),
        ("file://server/a", None),
        ("https://example.org/a", None),
        ("file:///a%00", None),
        ("file:a", None),
    ],
)
def test_folders_of_clients_are_those_of_this_machine(uri: str, folder: Path | None) -> None:
    assert folder_of_uri(uri) == folder


async def test_links_are_the_newest_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINKS", 2)
    links = Links()
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        path.write_bytes(b"png")
    for number in (0, 1, 0, 2):
        await links.add(paths[number])
    assert [link.path for link in links.newest_first()] == [paths[2], paths[0]]
    assert await links.read(paths[1].as_uri()) is None
    assert await links.read(paths[0].as_uri()) == "cG5n"
