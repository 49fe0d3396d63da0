"""Damaged checkpoint files: each is refused in a sentence, none runs code, none loads as something else."""

import functools
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ppo_lightning import ConfigurationError
from ppo_lightning.core.checkpoint import read_checkpoint
from ppo_lightning.core.checkpoint_io import write_checkpoint
from tests.commands import REPOSITORY

FORMAT_1 = REPOSITORY / "tests/files/format_1.ckpt"
DAMAGES = 1000


@functools.cache
def original(version):
    """The bytes of a real checkpoint, and what is in it."""
    content = torch.load(FORMAT_1, weights_only=True)
    del content["hyper_parameters"]["_instantiator"]  # which is never read
    if version == 1:
        return FORMAT_1.read_bytes(), content
    write_checkpoint(content | {"ppo_lightning_format": 2}, "whole.ckpt")
    return Path("whole.ckpt").read_bytes(), content


def flip(content, rng):
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))


def flip_in_the_end(content, rng):
    """Where the table of contents and the digest are."""
    content[-int(rng.integers(1, 3000))] ^= 1 << int(rng.integers(8))


def overwrite(content, rng):
    start, length = part(content, rng)
    content[start : start + length] = rng.bytes(length)


def zero(content, rng):
    start, length = part(content, rng)
    content[start : start + length] = bytes(length)


def truncate(content, rng):
    del content[int(rng.integers(len(content))) :]


def delete(content, rng):
    start, length = part(content, rng)
    del content[start : start + length]


def duplicate(content, rng):
    start, length = part(content, rng)
    content[start:start] = content[start : start + length]


def swap(content, rng):
    length = int(rng.integers(1, 200))
    first, second = sorted(int(place) for place in rng.integers(0, len(content) - 2 * length, 2))
    second = max(second, first + length)
    one, other = content[first : first + length], content[second : second + length]
    content[first : first + length], content[second : second + length] = other, one


def append(content, rng):
    content += rng.bytes(int(rng.integers(1, 200)))


def repeat_the_end(content, rng):
    content += content[-int(rng.integers(1, 400)) :]


def part(content, rng):
    length = int(rng.integers(1, 300))
    return int(rng.integers(len(content) - length + 1)), length


DAMAGE = [
    flip,
    flip_in_the_end,
    overwrite,
    zero,
    truncate,
    delete,
    duplicate,
    swap,
    append,
    repeat_the_end,
]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_and_never_loads_as_another(tmp_path, damage, version):
    """Of a file with a digest every byte counts; without one, padding does not."""
    whole, content = original(version)
    rng, path, messages = np.random.default_rng(len(damage.__name__)), tmp_path / "a.ckpt", []
    for _ in range(DAMAGES // len(DAMAGE)):
        damaged = bytearray(whole)
        damage(damaged, rng)
        if damaged == whole:
            continue
        path.write_bytes(damaged)
        try:
            loaded = read_checkpoint(path)
        except ConfigurationError as error:
            messages.append(str(error))
        else:
            assert version == 1
            assert is_equal(loaded, content)
    assert messages
    assert all(message.startswith("ckpt_path: ") and "\n" not in message for message in messages)


@pytest.mark.parametrize("version", [1, 2])
def test_every_byte_of_a_digest_and_every_byte_of_a_tensor_counts(tmp_path, version):
    whole, content = original(version)
    path = tmp_path / "a.ckpt"
    tensor = content["optimizer_states"][0]["state"][0]["exp_avg"].numpy().tobytes()
    places = list(range(whole.index(tensor), whole.index(tensor) + len(tensor)))
    places += range(len(whole) - 130, len(whole)) if version == 2 else []
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ConfigurationError, match="damaged"):
            read_checkpoint(path)


def test_a_record_that_calls_itself_a_folder_is_refused(tmp_path):
    """One bit of its attributes: torch.load would take what the memory held before for the tensor."""
    whole, place = bytearray(FORMAT_1.read_bytes()), 0
    for _ in range(whole.count(b"PK\1\2")):
        place = whole.index(b"PK\1\2", place + 1)
        whole[place + 38] ^= 0x10
        (tmp_path / "a.ckpt").write_bytes(whole)
        with pytest.raises(ConfigurationError, match="table of contents"):
            read_checkpoint(tmp_path / "a.ckpt")
        whole[place + 38] ^= 0x10


def is_equal(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(is_equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(is_equal, first, second))
    return type(first) is type(second) and first == second


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def checkpoint(**more):
    return {"ppo_lightning_format": 2, "state_dict": {}, **more}


@pytest.mark.parametrize(
    "save", [torch.save, write_checkpoint, lambda thing, path: path.write_bytes(pickle.dumps(thing))]
)
def test_a_bomb_does_not_go_off(tmp_path, save):
    save(checkpoint(bomb=Bomb(tmp_path / "marker")), tmp_path / "a.ckpt")
    with pytest.raises(ConfigurationError, match="holds more than tensors"):
        read_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "marker").exists()


def rewrite(path, compression=zipfile.ZIP_STORED, change=lambda pickled: pickled):
    """The same archive by another writer."""
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, record in records:
            archive.writestr(name, change(record) if name.endswith("data.pkl") else record)


def test_a_compressed_archive_is_refused_before_it_unpacks(tmp_path):
    torch.save(checkpoint(zeros=torch.zeros(1 << 20)), tmp_path / "a.ckpt")
    rewrite(tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["zeros"].numel() == 1 << 20
    rewrite(tmp_path / "a.ckpt", zipfile.ZIP_DEFLATED)
    assert (tmp_path / "a.ckpt").stat().st_size < 10_000
    with pytest.raises(ConfigurationError, match="table of contents"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_tensor_that_reaches_into_other_memory_is_refused(tmp_path):
    """torch.load takes the pickle's word for a storage's size."""
    torch.save(checkpoint(tensor=torch.zeros(77_777, dtype=torch.uint8)), tmp_path / "a.ckpt")
    rewrite(tmp_path / "a.ckpt", change=lambda pickled: pickled.replace(struct.pack("<i", 77_777), b"\xff\xff\xff\x7f"))
    with pytest.raises(ConfigurationError, match="larger than what is stored"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("is_of_old_format", [True, False])
def test_what_is_looked_through_is_what_is_loaded(tmp_path, is_of_old_format):
    """torch.load reads the first of two files in one, and a reader of zip archives the last."""
    paths = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    for number, path in enumerate(paths):
        is_zip = bool(number) or not is_of_old_format
        torch.save(checkpoint(number=number), path, _use_new_zipfile_serialization=is_zip)
    paths[0].write_bytes(paths[0].read_bytes() + paths[1].read_bytes())
    assert torch.load(paths[0], weights_only=True)["number"] == 0
    assert zipfile.ZipFile(paths[0]).read("b/data.pkl") == zipfile.ZipFile(paths[1]).read("b/data.pkl")
    with pytest.raises(ConfigurationError, match="damaged"):
        read_checkpoint(paths[0])


def test_records_that_differ_in_capital_letters_are_refused(tmp_path):
    """torch.load takes one for the other; of these three it gives DATA/0."""
    path = tmp_path / "a.ckpt"
    torch.save(checkpoint(tensor=torch.zeros(3)), path)
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("DATA/0", "Data/0"):
            archive.writestr(f"a/{name}", torch.full((3,), 7.0).numpy().tobytes())
    with pytest.raises(ConfigurationError, match="table of contents"):
        read_checkpoint(path)


def test_an_archive_has_one_table_of_contents(tmp_path):
    """Its end says where; zipfile takes what comes right before all the same, and torch.load believes it."""
    path = tmp_path / "a.ckpt"
    torch.save(checkpoint(), path)
    whole = path.read_bytes()
    table, locator, end = whole[-98:-42], whole[-42:-22], whole[-22:]
    start = int.from_bytes(table[48:], "little")
    table = table[:48] + struct.pack("<Q", start + len(table))
    locator = locator[:8] + struct.pack("<Q", start) + locator[16:]
    path.write_bytes(whole[:start] + table + whole[start:-98] + table + locator + end)
    assert torch.load(path, weights_only=True) == checkpoint()
    with pytest.raises(ConfigurationError, match="is not where it belongs"):
        read_checkpoint(path)


def memory_hog(numbers):
    """A pickle that asks for two gigabytes."""
    return {
        "bytearray": b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        "memo": b"\x80\x02]r\xff\xff\xff\x7f.",
        "bytearray8": b"\x80\x05\x96\xff\xff\xff\x7f\x00\x00\x00\x00.",
        "unicode": b"\x80\x02X\xff\xff\xff\x7f.",
    }[numbers]


@pytest.mark.parametrize("kind", ["bytearray", "memo", "bytearray8", "unicode"])
def test_a_file_that_asks_for_memory_is_refused(tmp_path, kind):
    torch.save(checkpoint(), tmp_path / "a.ckpt")
    rewrite(tmp_path / "a.ckpt", change=lambda _: memory_hog(kind))
    with pytest.raises(ConfigurationError, match="damaged"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"state_dict": []}, "'state_dict' is not"),
        ({"ppo_lightning_format": "1"}, "was not written by"),
        ({"ppo_lightning_format": 1.0}, "was not written by"),
        ({"ppo_lightning_format": True}, "was not written by"),
        ({"ppo_lightning_format": 0}, "was not written by"),
        ({"ppo_lightning_format": 999}, "update ppo-lightning"),
        ({"RolloutDataModule": "128"}, "'RolloutDataModule' is not"),
        ({"RolloutDataModule": {"env_steps": "128"}}, "'RolloutDataModule' is not"),
        ({"optimizer_states": {}}, "'optimizer_states' is not"),
    ],
)
def test_wrong_types_are_refused(tmp_path, wrong, word):
    write_checkpoint(checkpoint() | wrong, tmp_path / "a.ckpt")
    with pytest.raises(ConfigurationError, match=word):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("content", [b"", b"seed_everything: 1\n", b"PK\5\6" + bytes(18), b"PK\3\4" + bytes(5000)])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(ConfigurationError, match="damaged"):
        read_checkpoint(tmp_path / "a.ckpt")
