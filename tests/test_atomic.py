"""Files and folders that appear complete or not at all."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from helpers.processes import finish, start

from twinlens.formats import exchange as exchange_module
from twinlens.formats import workplace
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
        assert file.parent.name.startswith(".first.json.")
    assert first.read_text() == "{}"
    assert (second / "weights").read_text() == "1"
    (tmp_path / "any file").touch()  # readable by whom the user's new files are
    assert (second / "weights").stat().st_mode == (tmp_path / "any file").stat().st_mode
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["first.json", "second"]


def write_half(folder: Path, failure: Callable[[], None]) -> None:
    paths = folder / "old.json", folder / "a" / "b" / "weights"
    with complete_or_absent(*paths, overwrite=True) as (file, weights):
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


@pytest.fixture(params=["in one step", "in two steps"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How one file or folder takes the place of another: as Linux can, and as systems do that cannot."""
    if request.param == "in two steps":
        monkeypatch.setattr(exchange_module, "_renameat2", lambda *paths_and_flag: False)
    return str(request.param)


@pytest.mark.parametrize("old", [[], ["first.json"]])
def test_no_file_stays_where_a_later_one_fails(old: list[str], steps: str, tmp_path: Path) -> None:
    """The second one cannot move, because somebody has made a folder there meanwhile."""

    def write() -> None:
        with complete_or_absent(tmp_path / "first.json", tmp_path / "second", overwrite=True) as partials:
            for partial in partials:
                partial.write_text("new")
            (tmp_path / "second" / "theirs").mkdir(parents=True)

    for name in old:
        (tmp_path / name).write_text("old")
    with pytest.raises(OSError, match=r"Writing .*second failed"):
        write()
    assert sorted(path.name for path in tmp_path.iterdir()) == [*old, "second"]
    assert [(tmp_path / name).read_text() for name in old] == ["old" for _ in old]
    assert [path.name for path in (tmp_path / "second").iterdir()] == ["theirs"]


def replace_folder(path: Path, overwrite: bool = True, meanwhile: Callable[[], object] = lambda: None) -> None:
    with complete_or_absent(path, overwrite=overwrite) as (folder,):
        folder.mkdir()
        (folder / "new").write_text("new")
        meanwhile()


def test_folders_are_replaced_only_when_told(steps: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(OSError, match=r"Writing .*folder failed: .*not empty"):
        replace_folder(tmp_path / "folder", overwrite=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "old"]
    replace_folder(tmp_path / "folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "new"]


def test_files_are_replaced_only_when_told(steps: str, tmp_path: Path) -> None:
    def write(overwrite: bool) -> None:
        with complete_or_absent(tmp_path / "file", overwrite=overwrite) as (file,):
            file.write_text("new")
            (tmp_path / "file").write_text("theirs")  # it was not there when the work began

    with pytest.raises(OSError, match=r"Writing .*file failed: .*exists"):
        write(overwrite=False)
    assert (tmp_path / "file").read_text() == "theirs"
    write(overwrite=True)
    assert (tmp_path / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_never_takes_the_place_of_a_folder(steps: str, tmp_path: Path) -> None:
    """Nor a folder that of a file."""

    def write() -> None:
        with complete_or_absent(tmp_path / "folder", overwrite=True) as (file,):
            file.touch()

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="not empty"):
        write()
    with pytest.raises(OSError, match="has changed"):
        replace_folder(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "old"]


CHANGES: dict[str, Callable[[Path], object]] = {
    "another file": lambda folder: (folder / "theirs").touch(),
    "another content": lambda folder: (folder / "old").write_text("their"),
    "a file less": lambda folder: (folder / "old").unlink(),
    "another folder": lambda folder: folder.rename(folder.with_name("moved")).with_name(folder.name).mkdir(),
    "deep inside": lambda folder: (folder / "inner" / "theirs").touch(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_meanwhile_is_not_deleted(change: str, steps: str, tmp_path: Path) -> None:
    path = tmp_path / "folder"
    (path / "inner").mkdir(parents=True)
    (path / "old").write_text("old")
    with pytest.raises(OSError, match=r"folder failed: .*folder has changed since this run began"):
        replace_folder(path, meanwhile=lambda: CHANGES[change](path))
    assert not (path / "new").exists()
    assert {name.name for name in tmp_path.iterdir()} <= {"folder", "moved"}


def test_what_has_appeared_meanwhile_is_not_deleted(steps: str, tmp_path: Path) -> None:
    def appears() -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "theirs").touch()

    with pytest.raises(OSError, match="has changed since"):
        replace_folder(tmp_path / "folder", meanwhile=appears)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "theirs"]


@pytest.mark.skipif(sys.platform != "linux", reason="as only Linux can")
def test_a_path_is_never_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rename but the exchange touches it, and a part of the kernel does that."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    exchanged = []
    exchange = workplace.exchange

    def noted(first: Path, second: Path) -> bool:
        exchanged.append(second)
        return exchange(first, second)

    monkeypatch.setattr(workplace, "exchange", noted)
    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, lambda path, target: pytest.fail(f"{path} becomes {target}"))
    replace_folder(tmp_path / "folder")
    assert exchanged == [tmp_path / "folder"]
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "new"]


def kill(*arguments: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def die(path: Path, moment: str) -> None:
    """Be killed while a folder takes the place of another."""
    if moment == "while it is made":
        replace_folder(path, meanwhile=kill)
    if moment == "between two renames":
        setattr(exchange_module, "_renameat2", lambda *paths_and_flag: False)  # noqa: B010
        setattr(Path, "replace", kill)  # noqa: B010
    if moment == "before the old one is removed":
        setattr(workplace, "_remove", kill)  # noqa: B010
    replace_folder(path)


@pytest.mark.parametrize("moment", ["while it is made", "between two renames", "before the old one is removed"])
def test_what_a_killed_run_left(moment: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "disk" / "folder"
    path.mkdir(parents=True)
    (path / "old").touch()
    assert finish(start(die, path, moment, output=tmp_path / "log")) == -signal.SIGKILL
    assert path.exists() == (moment != "between two renames")
    assert len([*path.parent.glob(".folder.*.partial")]) == 1
    with pytest.raises(OSError, match="not empty" if path.exists() else "taken .*folder away, and it is back now"):
        replace_folder(path, overwrite=False)
    assert [file.name for file in path.iterdir()] == ["new" if moment.startswith("before") else "old"]
    assert [file.name for file in path.parent.iterdir()] == ["folder"]
    assert f"A run was killed that wrote {path}." in caplog.text
    replace_folder(path)
    assert [file.name for file in path.iterdir()] == ["new"]


def test_what_another_run_is_at_work_in_stays(tmp_path: Path) -> None:
    """Nor does anything go that only looks like it."""
    (tmp_path / ".file.theirs.partial").mkdir()
    with complete_or_absent(tmp_path / "file", overwrite=True) as (first,):
        first.write_text("first")
        with complete_or_absent(tmp_path / "file", overwrite=True) as (second,):
            second.write_text("second")
        assert (tmp_path / "file").read_text() == "second"
    assert (tmp_path / "file").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".file.theirs.partial", "file"]


def test_without_locks_nothing_of_others_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class NoLock:
        def __init__(self, path: Path) -> None:
            """Of any file."""

        def acquire(self, timeout: float = -1) -> None:
            raise NotImplementedError

        def release(self, force: bool = False) -> None:
            """Nothing is held."""

    left = tmp_path / ".folder.0.partial"
    left.mkdir()
    (left / "lock").touch()
    monkeypatch.setattr(workplace, "FileLock", NoLock)
    replace_folder(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == [left.name, "folder"]
    assert f"{left} is of another run that writes" in caplog.text
