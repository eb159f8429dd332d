"""Local files: descriptors, what reading them is counted as, and how the kernel is told."""

import os
import pickle
import resource
from pathlib import Path

import pytest
from tars import write_shards
from torch.utils.data import DataLoader

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


def test_a_reader_leaves_most_of_the_files_that_a_process_may_open_to_others(tmp_path):
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    reader, before = LocalReader(), len(descriptors())
    resource.setrlimit(resource.RLIMIT_NOFILE, (240, most))
    try:
        for number in range(100):
            (tmp_path / str(number)).write_bytes(b"1")
            reader.read(str(tmp_path / str(number)), 0, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    assert len(descriptors()) == before + 60


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


def test_what_cannot_be_read_is_named_with_its_cause(tmp_path):
    with pytest.raises(ss.CorruptShardError, match=f"^cannot read shard {tmp_path}: Is a dir"):
        LocalReader().read(str(tmp_path), 0, 1)


def test_the_kernel_is_told_unless_all_files_seem_to_be_in_memory(urls, monkeypatch):
    told, asked, cold = [], [], set()

    def in_memory(file, offset, length):
        asked.append((offset, length))
        return offset not in cold

    monkeypatch.setattr(local, "_in_memory", in_memory)
    monkeypatch.setattr(os, "posix_fadvise", lambda *how: told.append(how[1:]))
    reader = LocalReader()
    wanted = [(urls[0], [(0, 1), (2, 1), (5, 1)]), (urls[1], [(6, 2)])]
    reader.prefetch(wanted)
    assert asked == [(2, 1), (6, 2)]
    assert told == [(0, 0, os.POSIX_FADV_RANDOM)] * 2
    cold.add(6)
    reader.prefetch(wanted)
    assert [how[:2] for how in told[2:]] == [(0, 1), (2, 1), (5, 1), (6, 2)]
    assert {how[2] for how in told[2:]} == {os.POSIX_FADV_WILLNEED}


def test_a_file_that_was_closed_meanwhile_is_read_in_order_again(urls, monkeypatch):
    monkeypatch.setattr(local, "_MAX_OPEN", 1)
    monkeypatch.setattr(local, "_LEAST_IN_ORDER", 1)
    monkeypatch.setattr(local, "_in_memory", lambda *_: False)
    told = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *how: told.append(how[3]))
    reader = LocalReader()
    for _ in range(2):
        for url in urls[:2]:
            reader.prefetch([(url, [(0, 9)])])
    assert told == [os.POSIX_FADV_RANDOM, os.POSIX_FADV_SEQUENTIAL] * 4


def test_the_last_byte_says_whether_a_range_is_in_memory(urls):
    with Path(urls[0]).open("rb") as file:
        file.read()
        try:
            known = os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) == 1
        except OSError:  # not every file system can tell
            known = False
        assert local._in_memory(file.fileno(), 4, 5) == known
        assert not local._in_memory(file.fileno(), 4, 6)
    assert not local._in_memory(-1, 0, 1)


def test_a_system_that_takes_no_advice_is_read_all_the_same(tmp_path, monkeypatch):
    """As macOS, whose `os` lacks these."""
    for name in ("posix_fadvise", "sched_getaffinity", "memfd_create", "fdatasync", "RWF_NOWAIT"):
        monkeypatch.delattr(os, name)
    store = ss.index(write_shards(tmp_path / "d", [4, 3]), tmp_path / "s.zarr")
    store.put_score("up", range(7))
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.5, score="up")
    loader = DataLoader(ss.ShardDataset(store), 2, sampler=sampler, collate_fn=list)
    assert sorted(one["__id__"] for batch in loader for one in batch) == store.ids()[-4:].tolist()
