"""A folder's lock. That another process is refused is seen in tests/test_run_name.py."""

from pathlib import Path

from ppo_lightning.core import lock
from ppo_lightning.core.lock import FolderLock


def test_it_makes_the_folder_and_leaves_nothing():
    folder = Path("runs/a")
    own = FolderLock(folder)
    assert own.take()
    assert [path.name for path in folder.iterdir()] == [".lock"]
    own.release()
    own.release()
    assert not folder.exists()


def test_what_is_in_the_folder_stays():
    own = FolderLock(Path())
    assert own.take()
    Path("a.file").touch()
    own.release()
    assert [path.name for path in Path().iterdir()] == ["a.file"]


def test_who_never_had_it_takes_it_from_nobody():
    Path(".lock").touch()
    FolderLock(Path()).release()
    assert Path(".lock").exists()


def test_a_file_that_was_removed_meanwhile_is_no_lock(monkeypatch):
    """As if the one before let go between this one's opening and locking the file."""
    folder, taken = Path("a"), []

    def once(file):
        taken.append(file)
        if len(taken) == 1:
            (folder / ".lock").unlink()
            folder.rmdir()
        return True

    monkeypatch.setattr(lock, "_lock", once)
    assert FolderLock(folder).take()
    assert len(taken) == 2
    assert (folder / ".lock").exists()
