"""The recorder: what it keeps, in batches, over ranks, and stopped anywhere."""

import tracemalloc

import forks
import numpy as np
import pytest
import torch
import two_ranks_recorder as shared
from hypothesis import given
from hypothesis import strategies as st
from tars import write_shards
from torch import nn

import shardsieve as ss
from shardsieve import scores
from shardsieve.train import Recorder
from shardsieve.train import recorder as module
from shardsieve.train.measures import KNOWN, PLAIN, SIGNALS
from shardsieve.train.seedscores import put_seed_scores, seed_scores, signals_for


def same_table(one, other):
    assert one.epochs == other.epochs
    for name in one.signals:
        np.testing.assert_array_equal(one.signal(name), other.signal(name))


@st.composite
def runs(draw):
    """Epochs of (ids in some order, cut into batches), with strangers, gaps and repeats."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = rng.choice(60, size=draw(st.integers(1, 9)), replace=False) * 2**50
    epochs = []
    for _ in range(draw(st.integers(1, 5))):
        shown = rng.permutation(np.concatenate([ids, ids[:2], [5, 7]]))
        shown = shown[rng.random(len(shown)) < 0.85]
        epochs.append(np.split(shown, np.sort(rng.integers(0, len(shown) + 1, size=3))))
    return ids, epochs, int(rng.integers(2**31))


def outputs(batch, epoch, seed):
    """Logits (n, 4) and labels of a batch: a function of id and epoch."""
    rows = [
        torch.randn(4, generator=torch.Generator().manual_seed(seed + epoch * 61 + int(i % 59)))
        for i in batch
    ]
    logits = torch.stack(rows) if rows else torch.zeros(0, 4)
    return logits, torch.tensor([int(i) % 59 % 4 for i in batch], dtype=torch.int64)


def test_arrays_are_recorded_as_tensors_are():
    ids, (logits, labels) = np.array([3, 2**60]), outputs([3, 2**60], 0, 1)
    one, other = Recorder(ids, 4), Recorder(ids, 4)
    one.record(torch.from_numpy(ids), logits, labels)
    other.record(ids, logits.numpy(), labels.tolist())
    for recorder in (one, other):
        recorder.end_epoch()
    same_table(one, other)


@given(runs(), st.sampled_from([1, 9, 2**22]))
def test_every_signal_is_the_plain_formula_of_what_was_shown_first(run, budget):
    ids, epochs, seed = run
    recorder = Recorder(ids, 4)
    module._BUDGET, before = budget, module._BUDGET
    try:
        for epoch, batches in enumerate(epochs):
            for batch in batches:
                recorder.record(torch.from_numpy(batch), *outputs(batch, epoch, seed))
                assert sum(logits.numel() for _, logits, _ in recorder._waiting) < budget
            recorder.end_epoch()
    finally:
        module._BUDGET = before
    assert recorder.signal("loss").shape == (len(epochs), len(ids))
    for column, one in enumerate(np.sort(ids)):
        last = None
        for epoch, batches in enumerate(epochs):
            got = {name: recorder.signal(name)[epoch, column] for name in SIGNALS}
            if one not in np.concatenate(batches):
                assert all(np.isnan(value) for value in got.values())
                last = None
                continue
            logits, label = outputs([one], epoch, seed)
            z, y = logits.double().numpy(), label.numpy()
            p = np.exp(z) / np.exp(z).sum()
            want = {
                "p_true": p[0, y[0]],
                "loss": scores.cross_entropy(p, y)[0],
                "margin": scores.aum(z[None], y)[0],
                "gap": scores.margin(p)[0],
                "el2n": scores.el2n(p, y)[0],
                "entropy": scores.entropy(p)[0],
                "correct": float(p.argmax() == y[0]),
                "divergence": np.nan if last is None else scores.divergence(p, last)[0],
            }
            assert got == pytest.approx(want, rel=1e-3, abs=1e-5, nan_ok=True)
            last = p


@given(runs(), st.data())
def test_stopping_after_any_batch_changes_nothing(run, data):
    ids, epochs, seed = run
    batches = [(e, b) for e, parts in enumerate(epochs) for b in (*parts, None)]
    stop = data.draw(st.integers(0, len(batches)))
    whole, cut = Recorder(ids, 4), Recorder(ids, 4)
    for place, (epoch, batch) in enumerate(batches):
        if place == stop:
            state = cut.state_dict()
            cut = Recorder(ids, 4)
            cut.load_state_dict(state)
        for recorder in (whole, cut):
            if batch is None:
                recorder.end_epoch()
            else:
                recorder.record(torch.from_numpy(batch), *outputs(batch, epoch, seed))
    same_table(whole, cut)


def test_a_recorder_goes_back_to_a_state_and_leaves_that_alone():
    torch.manual_seed(1)
    ids, labels = torch.tensor([4, 5, 6]), torch.tensor([0, 1, 2])
    straight, cut, other = (Recorder(ids, 4) for _ in range(3))
    for epoch in range(6):
        logits = torch.randn(3, 4)
        if epoch == 3:
            state = cut.state_dict()
            for _ in range(2):  # of this nothing is left, measured or not
                cut.record(ids, -logits, labels)
                cut.state_dict()
                cut.record(ids, logits * 2, labels)
                cut.load_state_dict(state)
            other.load_state_dict(state)
        for recorder in (straight, cut, other)[: 3 if epoch >= 3 else 2]:
            recorder.record(ids, logits, labels)
            recorder.end_epoch()
    same_table(straight, cut)
    same_table(straight, other)


def test_a_loop_may_write_into_the_memory_of_its_batches():
    kept, reused = Recorder([1, 2], 2), Recorder([1, 2], 2)
    ids, logits, labels = torch.tensor([1]), torch.zeros(1, 2), torch.tensor([0])
    for one in (1, 2):
        ids[0], logits[0, 0], labels[0] = one, float(one), one - 1
        reused.record(ids, logits, labels)
        kept.record(ids.clone(), logits.clone(), labels.clone())
    kept.end_epoch()
    reused.end_epoch()
    assert kept.signal("loss")[0, 0] != kept.signal("loss")[0, 1]
    same_table(kept, reused)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_outputs_of_any_float_type_are_measured_in_single_precision(dtype):
    logits = torch.tensor([[0.5, -1.5], [2.0, 0.25]], dtype=dtype)
    recorder, plain = Recorder([0, 1], 2), Recorder([0, 1], 2)
    recorder.record(torch.tensor([0, 1]), logits, torch.tensor([0, 1]))
    plain.record(torch.tensor([0, 1]), logits.float(), torch.tensor([0, 1]))
    recorder.end_epoch()
    plain.end_epoch()
    same_table(recorder, plain)


def test_features_give_the_gradient_of_the_last_layer():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    inputs, labels = torch.randn(4, 6), torch.tensor([0, 2, 1, 1])
    recorder = Recorder(range(4), 3, signals=KNOWN)
    with module.Watcher(recorder, network) as watcher:
        watcher.record(torch.arange(4), network(inputs), labels)
    recorder.end_epoch()
    features = network[:2](inputs).detach()
    probs = network(inputs).softmax(dim=1).detach()
    want = scores.grand_last_layer(probs.numpy(), labels.numpy(), features.numpy())
    np.testing.assert_allclose(recorder.signal("grand")[0], want, rtol=1e-5)
    assert not network[2]._forward_pre_hooks
    with pytest.raises(ss.ShardsieveError, match="must end in a linear layer of 3 outputs"):
        module.Watcher(recorder, network[:2])


@pytest.mark.slow
def test_two_ranks_record_what_one_process_does(tmp_path):
    forks.run("tests/two_ranks_recorder.py", tmp_path, ranks=2)
    a, b = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = Recorder(shared.IDS, shared.CLASSES)
    for epoch in range(shared.EPOCHS):
        shared.record(alone, epoch, 0, 1)
        alone.end_epoch()
    for name in alone.signals:
        np.testing.assert_array_equal(a["signals"][name], b["signals"][name])
        got, want = a["signals"][name].numpy(), alone.signal(name)
        # The padded copy of sample 0 in epoch 4: one of its two versions counts on both ranks.
        np.testing.assert_allclose(got[:4], want[:4], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got[4:, 1:], want[4:, 1:], rtol=1e-5, atol=1e-6)
    assert torch.isnan(a["signals"]["loss"]).sum() == 1
    assert a["ids"].tolist() == shared.IDS.tolist()


REFUSED = {
    "no seeds": (lambda: Recorder([], 2), r"^seed_ids must be integers, at least one, got 0 of"),
    "float seeds": (lambda: Recorder([1.0], 2), r"^seed_ids must be integers, .* of float64; "),
    "one class": (
        lambda: Recorder([1], 1),
        r"^num_classes must be a whole number of at least 2, g",
    ),
    "no such signal": (lambda: Recorder([1], 2, signals=("x",)), r"^signals must be among .*'x'"),
    "float ids": (
        lambda: Recorder([1], 2).record(torch.ones(1), torch.zeros(1, 2), torch.tensor([0])),
        r"^ids must be integers, got torch\.float32; a float loses large ids",
    ),
    "a column of ids": (
        lambda: Recorder([1], 2).record(torch.tensor([[1]]), torch.zeros(1, 2), torch.tensor([0])),
        r"^ids must have shape \(n,\), got \(1, 1\); flatten them",
    ),
    "logits of other classes": (
        lambda: Recorder([1], 2).record(torch.tensor([1]), torch.zeros(1, 3), torch.tensor([0])),
        r"^logits must have shape \(1, 2\) and labels \(1,\), got \(1, 3\) and \(1,\)",
    ),
    "no features": (
        lambda: Recorder([1], 2, signals=KNOWN).record(
            torch.tensor([1]), torch.zeros(1, 2), torch.tensor([0])
        ),
        r"^features must be given for the signal 'grand', got None",
    ),
    "other seeds": (
        lambda: Recorder([1], 2).load_state_dict(Recorder([2], 2).state_dict()),
        r"^state must belong to the same seed ids",
    ),
    "other signals": (
        lambda: Recorder([1], 2).load_state_dict(Recorder([1], 2, signals=("loss",)).state_dict()),
        r"^state must hold the signals p_true, .*, got loss.*; ask for scores of these",
    ),
    "no state": (
        lambda: Recorder([1], 2).load_state_dict(None),
        r"^state must be what state_dict of a Recorder returned, got None",
    ),
    "part of a state": (
        lambda: Recorder([1], 2).load_state_dict({"ids": torch.tensor([1])}),
        r"^state must be what state_dict of a Recorder returned, got one without 'epochs'",
    ),
    "other classes": (
        lambda: Recorder([1], 2).load_state_dict(Recorder([1], 3).state_dict()),
        r"^logs of the state must have shape \(1, 2\), got \(1, 3\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_argument_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_label_out_of_range_is_named():
    recorder = Recorder([7, 9], 2)
    recorder.record(torch.tensor([9, 7]), torch.zeros(2, 2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"^labels must lie in \[0, 2\), got 2 for sample id 7; "):
        recorder.end_epoch()


def test_a_run_that_diverged_has_no_scores_and_says_so(tmp_path):
    store = ss.index(write_shards(tmp_path, [4]), tmp_path / "s.zarr")
    recorder = Recorder(store.ids(), 3)
    for epoch in range(4):
        logits = torch.full((4, 3), np.nan if epoch > 1 else 0.0)
        recorder.record(store.ids(), logits, store.labels())
        recorder.end_epoch()
    with pytest.raises(ss.ShardsieveError, match=r"its training diverged, .* lower learning rate"):
        put_seed_scores(store, "seed", recorder, ["el2n"])
    assert store.scores == []


def test_a_table_is_loaded_without_room_for_outputs(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [2]), tmp_path / "s.zarr")
    recorder = Recorder(np.arange(1000), 1000)
    recorder.end_epoch()
    recorder.save(store, "run")
    tracemalloc.start()
    loaded = Recorder.load(store, "run")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loaded.num_classes == 1000
    same_table(loaded, recorder)
    assert peak < 4 * 1000 * 1000


@pytest.mark.parametrize("classes", [64, 2**18 + 1])
def test_what_waits_is_measured_some_at_a_time_and_comes_to_the_same(monkeypatch, classes):
    """Of all that waits at once, what is computed would take a dozen times its 16 MiB."""
    rng, measure, sizes = np.random.default_rng(0), module.measure, []
    ids = rng.permutation(2**23 // classes)
    logits = torch.from_numpy(rng.random((len(ids), classes), dtype=np.float32))
    labels, features = torch.from_numpy(ids % classes), torch.from_numpy(rng.random((len(ids), 2)))

    def seen(names, logits, *others, **more):
        sizes.append(len(logits))
        return measure(names, logits, *others, **more)

    def recorded():
        recorder = Recorder(ids[1:], classes, signals=KNOWN)
        for _ in range(2):
            recorder.record(ids, logits, labels, features)
            recorder.end_epoch()
        return recorder

    monkeypatch.setattr(module, "measure", seen)
    one = recorded()
    assert sum(sizes) == 2 * (len(ids) - 1)
    assert max(sizes) == max(2**18 // classes, 1)
    monkeypatch.setattr(module, "_AT_ONCE", 2**24)
    other = recorded()
    assert max(sizes) == len(ids) - 1
    same_table(one, other)
    assert np.isfinite(one.signal("grand")).all()


def test_a_table_too_large_for_any_memory_is_one_line_with_the_cure():
    recorder = Recorder(np.arange(1000), 10**13)
    with pytest.raises(ss.ShardsieveError, match=r"^the .* 1000 seeds .* 40000000 GB .* tdds"):
        recorder.state_dict()


def test_only_scores_that_need_the_divergence_have_it_recorded():
    assert signals_for(None) == SIGNALS
    assert signals_for(["dyn_unc", "el2n:last=5"]) == PLAIN
    assert signals_for(["el2n", "tdds:window=5", "grand_last_layer"]) == KNOWN


def test_a_state_of_more_signals_serves_a_recorder_of_fewer():
    """A run that recorded all of them goes on under a release that records what is needed."""
    ids = np.array([3, 2**60])
    more, fewer = Recorder(ids, 4), Recorder(ids, 4, signals=("loss", "p_true"))
    for recorder in (more, fewer):
        recorder.record(ids, *outputs(ids, 0, 1))
        recorder.end_epoch()
        recorder.record(ids[:1], *outputs(ids[:1], 1, 1))
    going_on = Recorder(ids, 4, signals=("loss", "p_true"))
    going_on.load_state_dict(more.state_dict())
    for recorder in (going_on, fewer):
        recorder.record(ids, *outputs(ids, 2, 1))
        recorder.end_epoch()
    same_table(going_on, fewer)


def test_a_state_holds_no_second_copy_of_ended_epochs():
    recorder = Recorder(np.arange(10_000), 2, signals=("loss", "p_true", "el2n", "correct"))
    tracemalloc.start()
    try:
        for _ in range(20):
            recorder.end_epoch()
        before, table = tracemalloc.get_traced_memory()[0], 4 * 4 * 20 * 10_000
        state = recorder.state_dict()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert state["signals"]["loss"].shape == (20, 10_000)
    assert after - before < table / 4
    assert peak - before < table / 2


def test_scores_are_made_of_one_signal_at_a_time():
    recorder = Recorder(np.arange(20_000), 2)
    recorder.load_state_dict(
        recorder.state_dict()
        | {"epochs": 12}
        | {"signals": {name: torch.ones(12, 20_000) for name in SIGNALS}}
    )
    tracemalloc.start()
    try:
        made = seed_scores(recorder, ["cross_entropy", "entropy"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [score.values.max() for score in made] == [1, 1]
    assert peak < 5 * 4 * 12 * 20_000
