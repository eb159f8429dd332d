"""Local files: descriptors, what reading them is counted as, and how the kernel is told."""

import os
import pickle
from pathlib import Path

import pytest

import shardsieve as ss
from shardsieve.io import local
from shardsieve.io.counts import Counts
from shardsieve.io.local import LocalReader


def descriptors():
    return list(Path("/proc/self/fd").iterdir())


@pytest.fixture
def urls(tmp_path):
    """Three files of nine bytes each, whose number they are."""
    for number, name in enumerate("abc"):
        (tmp_path / name).write_bytes(bytes([number]) * 9)
    return [str(tmp_path / name) for name in "abc"]


def test_a_reader_holds_few_files_and_counts_what_it_reads(urls, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_MAX_OPEN", 2)
    reader, before = LocalReader(), len(descriptors())
    for _ in range(3):
        assert [reader.read(url, 7, 2) for url in urls] == [bytes([n]) * 2 for n in range(3)]
    assert list(reader.read_many(urls[0], [(0, 4), (4, 1)])) == [bytes(4), bytes(1)]
    assert reader.counts == Counts(kept=23, read=23, requests=11)
    assert len(descriptors()) == before + 2
    for read, part in ((reader.read, (0, 1)), (reader.read_many, ([(0, 1)],))):
        with pytest.raises(ss.CorruptShardError, match=r"cannot read shard .*/d: No such file"):
            read(str(tmp_path / "d"), *part)
    reader.close()
    assert len(descriptors()) == before
    assert reader.read(urls[1], 0, 9) == bytes([1]) * 9
    assert pickle.loads(pickle.dumps(reader)).counts == Counts()
    del reader, read
    assert len(descriptors()) == before


def test_the_file_that_was_read_last_stays_open(urls, monkeypatch):
    monkeypatch.setattr(local, "_MAX_OPEN", 2)
    reader = LocalReader()
    for number in (0, 1, 0, 2):
        reader.read(urls[number], 0, 1)
    assert list(reader._files) == [urls[0], urls[2]]
    assert [os.pread(file, 1, 0)[0] for file in reader._files.values()] == [0, 2]


def test_a_forked_process_opens_its_own_files_and_closes_none_of_its_parents(urls):
    reader = LocalReader()
    held = reader._opened(urls[1])
    if not (child := os.fork()):
        own, again = (reader._opened(urls[1]) for _ in range(2))
        reader.close()
        os._exit(int(own == held or own != again or os.pread(held, 1, 0) != bytes([1])))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert reader._opened(urls[1]) == held


def test_a_long_part_of_which_most_is_wanted_is_read_in_order():
    parts = [(100 + at, 1 << 18) for at in range(0, 1 << 20, 1 << 18)]
    assert local.is_dense(parts)
    assert not local.is_dense([*parts[:3], (parts[3][0], (1 << 18) - 1)])
    far = (100 << 20) - 1, 1
    assert local.is_dense([(0, 96 << 20), far])
    assert not local.is_dense([(0, 95 << 20), far])


def test_a_walk_reads_what_there_is_also_of_an_empty_file(tmp_path):
    for data in (b"", b"12345"):
        (tmp_path / "f").write_bytes(data)
        with local.mapped(str(tmp_path / "f")) as (read, length):
            assert length == len(data)
            assert [read(0, 0), read(1, 3), read(3, 9)] == [b"", data[1:4], data[3:]]


def test_what_the_kernel_reads_ahead_is_its_own_number_or_linuxs_default(tmp_path, monkeypatch):
    assert local.readahead_of(tmp_path) >= 4096
    assert local.readahead_of(tmp_path / "none") == 128 << 10
    for said, bytes_ahead in [("64\n", 64 << 10), ("0\n", 4096), ("?", 128 << 10)]:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_text", lambda path, said=said: said)
            assert local.readahead_of(tmp_path) == bytes_ahead
