"""Files and folders that appear complete or not at all."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from twinlens.formats.atomic import complete_or_absent


def test_files_and_folders_appear_at_the_end(tmp_path: Path) -> None:
    first, second = tmp_path / "new" / "first.json", tmp_path / "new" / "second"
    with complete_or_absent(first, second) as (file, folder):
        file.write_text("{}")
        folder.mkdir()
        (folder / "weights").write_text("1")
        (folder / "weights").chmod(0o600)
        assert not first.exists()
        assert not second.exists()
        assert file.name.startswith(".first.json.")
    assert first.read_text() == "{}"
    assert (second / "weights").read_text() == "1"
    (tmp_path / "any file").touch()  # readable by whom the user's new files are
    assert (second / "weights").stat().st_mode == (tmp_path / "any file").stat().st_mode
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["first.json", "second"]


def write_half(folder: Path, failure: Callable[[], None]) -> None:
    with complete_or_absent(folder / "old.json", folder / "a" / "b" / "weights") as (file, weights):
        file.write_text("new")
        weights.write_text("half")
        failure()


def no_space() -> None:
    raise OSError("no space")


def no_sense() -> None:
    raise ValueError("no sense")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (no_space, OSError, r"^Writing .*weights failed: no space$"),
        (no_sense, ValueError, "^no sense$"),
        (terminate, SystemExit, str(128 + signal.SIGTERM)),
    ],
)
def test_nothing_stays_of_what_was_begun(
    failure: Callable[[], None], error: type[BaseException], message: str, tmp_path: Path
) -> None:
    (tmp_path / "old.json").write_text("old")
    with pytest.raises(error, match=message):
        write_half(tmp_path, failure)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "old"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("old", [[], ["first.json"]])
def test_no_file_stays_where_a_later_one_fails(old: list[str], tmp_path: Path) -> None:
    """The second rename fails, because somebody has made a folder there meanwhile."""

    def write() -> None:
        with complete_or_absent(tmp_path / "first.json", tmp_path / "second") as partials:
            for partial in partials:
                partial.write_text("new")
            (tmp_path / "second" / "theirs").mkdir(parents=True)

    for name in old:
        (tmp_path / name).write_text("old")
    with pytest.raises(OSError, match=r"Writing .*second failed"):
        write()
    assert sorted(path.name for path in tmp_path.iterdir()) == [*old, "second"]
    assert [(tmp_path / name).read_text() for name in old] == ["old" for _ in old]


def test_folders_are_replaced_only_when_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with (
        pytest.raises(OSError, match=r"Writing .*folder failed: .*not empty"),
        complete_or_absent(tmp_path / "folder") as (folder,),
    ):
        folder.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "old"]
    with complete_or_absent(tmp_path / "folder", overwrite=True) as (folder,):
        folder.mkdir()
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "new"]
