"""The file that a checkpoint is: PyTorch's zip archive, sealed by a digest, and looked through before it is loaded.

``torch.load`` checks no checksums: a byte that changed inside a tensor would load as another number. So the archive's
comment, which other readers skip, holds the SHA-256 of everything before it.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import pickletools
import zipfile
from typing import Any, BinaryIO

_START = b"PK\3\4"  # without it torch.load looks for a file of its older format, whatever archive follows
_END, _END_LENGTH = b"PK\5\6", 22  # a zip's last record, whose last two bytes are the length of the comment after it
_END64_LENGTH, _LOCATOR, _LOCATOR_LENGTH = 56, b"PK\6\7", 20  # two records before it, which torch.save writes too
_MARK = b"ppo-lightning sha256 "
_SEAL_LENGTH = len(_MARK) + 64
_CHUNK = 1 << 20
_IS_FOLDER = 0x10  # among a record's attributes: torch.load leaves the memory for it as it was
_OPCODES = (  # those that torch.load knows with weights_only=True; the standard library's would do more
    *("GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "MARK", "TUPLE", "TUPLE1"),
    *("TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"),
    *("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINPERSID", "BINGET"),
    *("LONG_BINGET", "BINPUT", "LONG_BINPUT", "LONG1", "PROTO", "STOP"),
)

_ITEM_SIZES = {  # bytes, by the names that torch.save gives to storages
    **dict.fromkeys(["Untyped", "Byte", "Char", "Bool", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4"], 1),
    **dict.fromkeys(["Half", "BFloat16", "Short"], 2),
    **dict.fromkeys(["Float", "Int", "QInt32"], 4),
    **dict.fromkeys(["Double", "Long", "ComplexFloat"], 8),
    "ComplexDouble": 16,
}


class DamagedError(ValueError):
    """A file that is not what was written."""


def seal(archive: io.BytesIO) -> None:
    """Append the digest to what ``torch.save`` wrote."""
    with archive.getbuffer() as content:
        assert content[-_END_LENGTH:-18] == _END, "torch.save no longer ends its archives without a comment"
        content[-2:] = _SEAL_LENGTH.to_bytes(2, "little")
    archive.seek(0, os.SEEK_END)
    archive.write(_MARK)
    with archive.getbuffer() as content:
        digest = hashlib.sha256(content).hexdigest()
    archive.write(digest.encode())


def seal_of(file: BinaryIO) -> bytes | None:
    """The digest that a file ends with; None for one without.

    Raises:
        DamagedError: the file does not end as an archive does.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END_LENGTH - _SEAL_LENGTH))
    tail = file.read()
    if tail[-_END_LENGTH:].startswith(_END) and tail.endswith(b"\0\0"):
        return None
    end, comment = tail[:_END_LENGTH], tail[_END_LENGTH:]
    if not end.startswith(_END) or end[-2:] != _SEAL_LENGTH.to_bytes(2, "little") or not comment.startswith(_MARK):
        raise DamagedError("it does not end as a checkpoint does")
    return comment[len(_MARK) :]


def check_archive(file: BinaryIO) -> None:
    """Raise :class:`DamagedError` for a file that changed since it was written, or that could harm who loads it.

    An archive without a digest (of a version before, of another writer) is held against its own checksums.
    """
    file.seek(0)
    if file.read(len(_START)) != _START:
        raise DamagedError("it does not begin as a checkpoint does")
    digest = seal_of(file)
    _check_end(file, file.seek(0, os.SEEK_END) - _END_LENGTH - (0 if digest is None else _SEAL_LENGTH))
    if digest is not None and digest != _digest(file):
        raise DamagedError("its digest is of another content")
    try:
        with zipfile.ZipFile(file) as archive:
            records = _records(archive, file.seek(0, os.SEEK_END))
            if digest is None and archive.testzip() is not None:
                raise DamagedError("a checksum is of another content")
            _check_pickle(archive.read(records["data.pkl"]), {name: info.file_size for name, info in records.items()})
    except DamagedError:
        raise
    except Exception as error:  # whatever a reader of random bytes runs into
        raise DamagedError(f"{type(error).__name__}") from error


def _check_end(file: BinaryIO, end: int) -> None:
    """Raise for an archive that names another place for what says where its contents are than zipfile looks at."""
    file.seek(max(0, end - _LOCATOR_LENGTH))
    locator = file.read(_LOCATOR_LENGTH)
    named, expected = int.from_bytes(locator[8:16], "little"), end - _LOCATOR_LENGTH - _END64_LENGTH
    if locator.startswith(_LOCATOR) and named != expected:
        raise DamagedError("its table of contents is not where it belongs")


def _digest(file: BinaryIO) -> bytes:
    left = file.seek(0, os.SEEK_END) - 64
    file.seek(0)
    hashed = hashlib.sha256()
    while left:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            raise DamagedError("it became shorter while it was read")
        hashed.update(chunk)
        left -= len(chunk)
    return hashed.hexdigest().encode()


def _records(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """By their names within the archive's one folder; stored as they are, so that nothing unpacks to more."""
    infos = archive.infolist()
    roots = {info.filename.partition("/")[0] for info in infos}
    records = {info.filename.partition("/")[2]: info for info in infos}
    names = {name.lower() for name in records}  # torch.load takes no notice of capital letters
    stored = all(info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size for info in infos)
    has_folder = any(info.is_dir() or info.external_attr & _IS_FOLDER for info in infos)
    is_plain = stored and not has_folder and sum(info.file_size for info in infos) <= size
    # torch.load counts from the start of the file, where zipfile counts from where it takes the archive to begin
    is_whole_file = any(info.header_offset == 0 for info in infos)
    if len(roots) != 1 or len(names) != len(infos) or not is_plain or not is_whole_file:
        raise DamagedError("its table of contents is not one that torch.save writes")
    return records


def _check_pickle(content: bytes, sizes: dict[str, int]) -> None:
    """Raise for tensors that reach beyond their record: ``torch.load`` would read the memory after it."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in _OPCODES or (opcode.name == "LONG_BINPUT" and int(argument or 0) > len(content)):
            raise DamagedError(f"its pickle holds {opcode.name}")
    _DryUnpickler(content, sizes).load()


class _DryUnpickler(pickle.Unpickler):
    """Goes through a pickle and builds nothing of what it names."""

    def __init__(self, content: bytes, sizes: dict[str, int]) -> None:
        super().__init__(io.BytesIO(content))
        self._sizes = sizes

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("torch") and name.endswith("Storage"):
            return _StorageType(name)
        return _no_number if name == "bytearray" else _Inert

    def persistent_load(self, pid: Any) -> Any:
        kind, storage_type, key, _, numel = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or type(numel) is not int or numel < 0:
            raise DamagedError("a tensor has no storage")
        if numel * storage_type.itemsize > self._sizes[f"data/{key}"]:
            raise DamagedError("a tensor is larger than what is stored of it")
        return _Inert()


class _StorageType:
    def __init__(self, name: str) -> None:
        self.itemsize = _ITEM_SIZES[name.removesuffix("Storage")]


class _Inert:
    """Takes everything that a pickle does to an object, and does nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def ignore(self, *args: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = ignore


def _no_number(*args: Any) -> _Inert:
    """For ``bytearray``, which makes as many zeros as a number says."""
    if args and isinstance(args[0], int):
        raise DamagedError("it asks for memory")
    return _Inert()
