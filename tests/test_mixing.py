import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tars import content, write_tar

import shardsieve as ss
from shardsieve.commands.showing import kept_per_class
from shardsieve.loaders.mixing import expected_classes, mixing
from shardsieve.loaders.planned import OrderSettings


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_the_ideal_is_the_mean_over_all_draws(sizes, data):
    classes = [c for c, size in enumerate(sizes) for _ in range(size)]
    drawn = data.draw(st.integers(1, len(classes)))
    found = [len(set(draw)) for draw in combinations(classes, drawn)]
    assert math.isclose(expected_classes(np.array(sizes), drawn), np.mean(found), rel_tol=1e-9)


@pytest.fixture(scope="module")
def by_class(tmp_path_factory):
    """Twelve shards, each of one class alone."""
    folder = tmp_path_factory.mktemp("classes")
    for shard in range(12):
        members = []
        for row in range(40):
            key = f"{shard:02d}-{row:03d}"
            members += [(f"{key}.jpg", content(key, 40)), (f"{key}.cls", str(shard).encode())]
        write_tar(folder / f"c-{shard:02d}.tar", members)
    return ss.index(str(folder / "c-{00..11}.tar"), folder / "s.zarr")


def test_sorted_shards_mix_by_a_wider_window_or_a_global_shuffle(by_class):
    keep = ss.select(by_class, rule="random", keep_fraction=0.5)
    narrow, wide, everywhere, none = (
        mixing(by_class, keep, OrderSettings(0, **how), 32)
        for how in ({"window": 2}, {"window": 12}, {"shuffle": "global"}, {"shuffle": "none"})
    )
    assert narrow.ideal == wide.ideal == everywhere.ideal
    assert none.found <= 3
    assert 2 <= narrow.found <= 4
    assert abs(wide.found - wide.ideal) < 0.7
    assert abs(everywhere.found - everywhere.ideal) < 0.7
    assert 10.5 < wide.ideal < 12


def test_fewer_samples_than_a_batch_are_one_batch(by_class):
    keep = ss.select(by_class, rule="random", keep_fraction=0.01)
    found = mixing(by_class, keep, OrderSettings(0), 256)
    labels = by_class.labels()[by_class.rows(keep.ids())]
    assert found.found == found.ideal == len(set(labels.tolist()))


def test_select_says_how_many_classes_meet_in_a_batch(by_class):
    chosen = {"rule": "random", "keep_fraction": 0.5, "score": None}
    shown = kept_per_class(by_class.path, chosen, None, batch_size=32)["classes_per_batch"]
    assert list(shown) == ["window", "global", "none", "ideal"]
    assert shown["none"] <= 3 < 10 < shown["global"]
    nothing = chosen | {"keep_fraction": 1e-9}
    shown = kept_per_class(by_class.path, nothing, None, batch_size=32)
    assert shown["kept"] == 0
    assert "classes_per_batch" not in shown
