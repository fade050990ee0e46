"""Files that are written whole or not at all, read back with one sentence, hashed; locks that say who holds them."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goods.errors import DamagedFileError, DiskFullError, GoodsError, HeldError, UnwritableError

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
MODEL_FILES = (".json", ".safetensors", ".model", ".txt")  # of a model directory, what its results depend on
FULL, CLOSED = "Make room", "Name a folder that can be written (outputs_dir), or make this one writable"
UNWRITABLE = {  # by the system's number: what it means, and what to do
    errno.ENOSPC: ("the disk is full", FULL),
    errno.EDQUOT: ("your quota of the disk is used up", FULL),
    errno.EFBIG: ("files may not be that large there", FULL),
    errno.EROFS: ("the disk is read-only", CLOSED),
    errno.ENOTDIR: ("a file stands where a folder is needed", CLOSED),
    errno.EEXIST: ("a file stands where a folder is needed", CLOSED),
    errno.EISDIR: ("a folder stands where the file belongs", CLOSED),
    errno.EACCES: ("you may not write there", CLOSED),
    errno.EPERM: ("you may not write there", CLOSED),
}
HOLDER_SECONDS = 10.0  # that the process of a call that was killed may take to end


def resolve(path: str | os.PathLike) -> Path:
    """A relative path means the project root, wherever the kernel stands. Raises GoodsError for an unknown ~user."""
    try:
        return ROOT / Path(path).expanduser()
    except RuntimeError as error:
        raise GoodsError(f"{path}: {error}") from None


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name at the end, or vanishes when the block fails.

    Raises UnwritableError where the system lets nothing be written, or finds no room for it.
    """
    path = Path(path)
    with writing(path, "what was there before is intact"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{os.getpid()}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            os.chmod(temporary, 0o644)  # mkstemp and safetensors make files private
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name at the end, or vanishes when the block fails.

    `path` must not be there, or empty. Raises UnwritableError where the system lets nothing be written.
    """
    for stale in path.parent.glob(f".{path.name}.*.making"):  # of calls that were killed
        process = stale.name.split(".")[-2]
        if not process.isdecimal() or not is_alive(int(process)):
            shutil.rmtree(stale, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.making")
    with writing(path, "nothing of it is left"):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing(path: Path, left: str) -> Iterator[None]:
    """Inside, what the system refuses to write becomes an UnwritableError that says where and why, and what is left."""
    try:
        yield
    except Exception as error:  # safetensors and pyarrow wrap the system's error in their own
        number = unwritable(error)
        if number is None:
            raise
        why, advice = UNWRITABLE[number]
        kind = DiskFullError if advice == FULL else UnwritableError
        raise kind(f"{why}: {path} can't be written; {left}. {advice} and give the same command again") from None


def unwritable(error: BaseException) -> int | None:
    """The system's number for why nothing can be written, however a library wraps that; None for another error."""
    if isinstance(error, GoodsError):
        return None
    wrapped = (number for number in UNWRITABLE if f"(os error {number})" in str(error))
    number = error.errno if isinstance(error, OSError) else next(wrapped, None)
    return number if number in UNWRITABLE else None


def sentence(error: Exception) -> str:
    """An error in words: where nothing can be written why, and the place where that is known; else its own."""
    if (number := unwritable(error)) is None:
        return str(error)
    why, advice = UNWRITABLE[number]
    place = getattr(error, "filename", None)
    return f"{why}{f': {place}' if place else ''}. {advice} and give the same command again"


def clear_temporaries(folder: Path) -> None:
    """Removes what killed writings left in a folder: temporary files whose process is no more."""
    for stale in folder.glob(".*.tmp"):
        process = stale.name.split(".")[-3]
        if not process.isdecimal() or not is_alive(int(process)):
            stale.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether a process of this number is there, this one apart."""
    if process == os.getpid() or os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Writes a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike, value: Any) -> Path:
    """Writes a JSON file whole or not at all."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, again: str = "make it anew") -> dict[str, Any]:
    """The object in a JSON file; raises DamagedFileError, saying what to do `again`, when it isn't there or whole."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise DamagedFileError(f"{path} is missing or damaged; {again}") from None


def read_json_if_whole(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty when it isn't there or isn't whole."""
    try:
        return read_json(path)
    except DamagedFileError:
        return {}


def read_frame(path: Path, columns: Collection[str] = (), again: str = "make it anew") -> pd.DataFrame:
    """The table in a Parquet file; raises DamagedFileError when it isn't there, isn't whole, or lacks `columns`."""
    import pandas as pd  # pipeline.py does without

    try:
        frame = pd.read_parquet(path)
    except Exception:  # pyarrow raises anything on damaged bytes
        raise DamagedFileError(f"{path} is missing or damaged; {again}") from None
    if lacking := [name for name in columns if name not in frame]:
        raise DamagedFileError(f"{path} lacks {', '.join(lacking)}; {again}")
    return frame


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Writes a table as Parquet, whole or not at all."""
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False)


# Hashes --------------------------------------------------------------------------------------------------------------


def file_stamp(paths: Iterable[str | os.PathLike]) -> str:
    """A hash of names, sizes and times of files and of all files below folders: has anything changed?"""
    digest = hashlib.sha256()
    for path in paths:
        path = resolve(path)
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            stat = file.stat() if file.exists() else None
            digest.update(f"{file}|{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hash(folder: Path, endings: Collection[str] = MODEL_FILES, memory: Path | None = None) -> str:
    """16 hex digits over the names and contents of a model directory's model_files.

    `memory` is a JSON file that keeps the hash of files that have not changed since: a backbone of gigabytes is read
    once. A file counts as unchanged while size, inode and both times are the same; the time of the last change of an
    inode can't be set by hand.
    """
    files = {file.relative_to(folder).as_posix(): file for file in model_files(folder, endings)}
    return _remembered_hash(files, folder, memory)


def files_hash(files: Iterable[Path], memory: Path | None = None) -> str:
    """16 hex digits over the contents of files, in whatever order they come and whatever they are called.

    `memory` as in folder_hash.
    """
    each = [_remembered_hash({"": file}, file, memory) for file in sorted(files)]
    return each[0] if len(each) == 1 else hashlib.sha256(" ".join(sorted(each)).encode()).hexdigest()[:16]


def _remembered_hash(files: Mapping[str, Path], place: Path, memory: Path | None) -> str:
    """The hash of files under these names, which `memory` knows by where they lie."""
    stats = {name: file.stat() for name, file in files.items()}
    stamp = [(name, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats.items()]
    key = f"{place.resolve()} {hashlib.sha256(repr(stamp).encode()).hexdigest()}"
    known = read_json_if_whole(memory) if memory else {}
    if isinstance(known.get(key), str):
        return known[key]
    found = _contents_hash(tuple(files.items()), key)
    if memory:
        write_json(memory, read_json_if_whole(memory) | {key: found})
    return found


@functools.cache
def _contents_hash(files: tuple[tuple[str, Path], ...], _: str) -> str:
    digest = hashlib.sha256()
    for name, file in files:
        digest.update(name.encode() + bytes.fromhex(file_hash(file)))
    return digest.hexdigest()[:16]


def model_files(folder: Path, endings: Collection[str] = MODEL_FILES) -> list[Path]:
    """The files of a model directory that its results depend on: its own, and those of the modules in its folders.

    sentence-transformers keeps there how tokens become one vector, and names the folders in modules.json.
    """
    try:
        entries = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        inner = {folder / entry["path"] for entry in entries if ".." not in Path(entry["path"]).parts}
    except (OSError, ValueError, TypeError, KeyError):  # not there, or damaged: its reader says so
        inner = set()
    folders = [folder, *sorted(place for place in inner - {folder} if place.is_dir())]
    return [file for place in folders for file in sorted(place.iterdir()) if file.suffix in endings and file.is_file()]


# Locks ---------------------------------------------------------------------------------------------------------------


@contextmanager
def held(lock: Path, what: str, folders: Iterable[Path] = (), seconds: float = HOLDER_SECONDS) -> Iterator[None]:
    """Inside, this process alone holds `lock`; temporary files that a killed holder left in `folders` are gone.

    Raises HeldError, with who holds it, when another process does so for longer than `seconds`.
    """
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    holder = lock.with_suffix(".json")
    try:
        taken = FileLock(lock).acquire(timeout=seconds)
    except Timeout:
        who = read_json_if_whole(holder)
        raise HeldError(f"{what} is in the hands of process {who.get('process', '?')} on {who.get('host', '?')} since "
                        f"{who.get('since', '?')}; wait for it to end, or end it") from None  # fmt: skip
    with taken:
        for folder in folders:
            clear_temporaries(folder)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_json(holder, {"process": os.getpid(), "host": socket.gethostname(), "since": since})
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


def held_since(lock: Path) -> str:
    """Since when a process of this machine, or any of another one, holds `lock`; "" where none does."""
    holder = read_json_if_whole(lock.with_suffix(".json"))
    here = holder.get("host") == socket.gethostname()
    if not holder or (here and not (isinstance(holder.get("process"), int) and is_alive(holder["process"]))):
        return ""
    return str(holder.get("since", "?"))
