"""The ledger and the plan: numbers of the reference, and laws over generated costs."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tars import write_shards

import shardsieve as ss
from shardsieve import cli
from shardsieve.commands.planning import describe_plan, plan_store
from shardsieve.commands.scoring import score_from_embedding
from shardsieve.commands.training import train_store
from shardsieve.cost import NO_COST, Cost, Plan, account, estimated_full
from shardsieve.doubts import doubt_of_score
from shardsieve.pack import pack
from shardsieve.train.config import TrainConfig
from shardsieve.train.ledger import (
    NOTHING,
    FullRun,
    Overhead,
    embedding_overhead,
    full_run_in,
    ledger,
    overhead_of,
)

COUNTS = st.integers(0, 10**9)
SECONDS = st.floats(0, 1e6)
COSTS = st.builds(
    lambda forward, backward, seconds, world, nbytes: Cost(
        max(forward, backward), backward, seconds, seconds * world, nbytes
    ),
    COUNTS,
    COUNTS,
    SECONDS,
    st.integers(1, 64),
    COUNTS,
)
SHARES = st.floats(0.01, 1)


@pytest.mark.parametrize(
    ("epochs", "seeds", "keep", "total", "against_scores", "against_plain"),
    [
        (50, 0.1, 0.1, 10.33, 5.32, 4.84),
        (90, 0.1, 0.1, 18.33, 5.40, 4.91),
        (50, 0.2, 0.5, 35.33, 2.12, 1.42),
    ],
)
def test_a_plan_costs_what_the_reference_table_says(
    epochs, seeds, keep, total, against_scores, against_plain
):
    plan = Plan(seeds, keep, epochs)
    assert plan.total == pytest.approx(total, abs=0.005)
    assert (1 + keep) * epochs / plan.total == pytest.approx(against_scores, abs=0.005)
    assert epochs / plan.total == pytest.approx(against_plain, abs=0.005)


PLANS = st.builds(
    Plan,
    seeds=st.floats(0, 1),
    keep=SHARES,
    epochs=st.integers(1, 300),
    score_epochs=st.none() | st.integers(1, 300),
    extrapolation=st.floats(0, 5),
    runs=st.integers(1, 10),
)


@given(PLANS)
def test_the_break_even_is_where_nothing_is_saved(plan):
    even = plan.break_even
    if even is None:
        cheapest = Plan(
            plan.seeds, 1e-12, plan.epochs, plan.score_epochs, plan.extrapolation, plan.runs
        )
        assert cheapest.total >= plan.epochs * (1 - 1e-9)
        return
    same = Plan(plan.seeds, even, plan.epochs, plan.score_epochs, plan.extrapolation, plan.runs)
    assert same.total == pytest.approx(plan.epochs)
    assert (plan.total < plan.epochs) == (plan.keep < even) or plan.keep == pytest.approx(even)


@given(COSTS, COSTS, COSTS)
def test_costs_add_up_in_any_order_and_survive_json(a, b, c):
    left, right = (a + b) + c, a + (b + c)
    assert (left.forward, left.backward, left.nbytes) == (
        right.forward,
        right.backward,
        right.nbytes,
    )
    assert left.seconds == pytest.approx(right.seconds)
    assert a + NO_COST == a
    again = Cost.from_dict(json.loads(json.dumps(a.to_dict())))
    assert again.forward == a.forward
    assert again.seconds == pytest.approx(a.seconds, abs=0.0006)


@given(COSTS, COSTS, SHARES)
def test_a_ledger_balances(scoring, training, keep):
    full = training.times(1 / keep)
    made = account(
        {"scoring": scoring, "training": training}, full, full_is_measured=False, keep_fraction=keep
    )
    assert made["total"] == (scoring + training).to_dict()
    saved = made["saved"]["device_seconds"]
    assert saved == pytest.approx(
        full.device_seconds - scoring.device_seconds - training.device_seconds, abs=0.001
    )
    even = made["break_even_keep_fraction"]
    left = full.device_seconds - scoring.device_seconds
    if training.device_seconds > 1 and abs(left) > 1e-6 * full.device_seconds:
        assert (even is None) == (left < 0)
    if even is not None and even < 1 and training.device_seconds > 1:
        at_even = scoring.device_seconds + full.device_seconds * even
        assert at_even == pytest.approx(full.device_seconds, rel=1e-3)


def test_a_run_on_everything_is_its_own_measured_full_run():
    training = Cost(400, 400, 10.0, 20.0, 99)
    made = ledger(training, NOTHING, seen=400, samples=100, epochs=4)
    assert made["full_run"] == {"measured": True, **training.to_dict()}
    assert made["saved"]["device_seconds"] == 0
    half = ledger(Cost(200, 200, 5.0, 10.0, 49), NOTHING, seen=200, samples=100, epochs=4)
    assert half["full_run"]["measured"] is False
    assert half["full_run"]["device_seconds"] == 20.0
    assert half["saved"]["trained_samples_fraction"] == 0.5
    measured = Cost(400, 400, 8.0, 16.0, 99)
    compared = ledger(
        Cost(200, 200, 5.0, 10.0, 49),
        Overhead({"scoring": Cost(80, 80, 2.0, 4.0)}, ("embedding",)),
        seen=200,
        samples=100,
        epochs=4,
        full=measured,
    )
    assert compared["full_run"] == {"measured": True, **measured.to_dict()}
    assert compared["saved"]["device_seconds"] == 2.0  # 4 for scores, 10 for half of the samples
    assert compared["break_even_keep_fraction"] == 0.6
    assert compared["uncounted"] == ["embedding"]
    slow = Cost(400, 400, 40.0, 80.0, 99)  # more than twice what half of it took: any share saves
    saved = ledger(Cost(200, 200, 5.0, 10.0), NOTHING, seen=200, samples=100, epochs=4, full=slow)
    assert saved["break_even_keep_fraction"] == 1.0
    nothing = ledger(NO_COST, NOTHING, seen=0, samples=100, epochs=4)
    assert nothing["break_even_keep_fraction"] is None
    assert estimated_full(NO_COST, 0, 100) == NO_COST


@pytest.mark.slow
def test_a_full_run_of_other_settings_is_said_before_training_and_in_the_ledger(tmp_path, caplog):
    shards = pack("digits", tmp_path / "d", samples_per_shard=100, test_fraction=0.9)[0]
    path = ss.index(shards.pattern, tmp_path / "s.zarr").path
    half = {"rule": "random", "keep_fraction": 0.5}
    folder, how = tmp_path / "full", {"size": 8, "channels": 1}
    train_store(path, TrainConfig(epochs=2, **how), out=folder, rule={**half, "keep_fraction": 1})
    said = {}
    for epochs in (2, 3):
        out = tmp_path / str(epochs)
        result = train_store(
            path, TrainConfig(epochs=epochs, **how), out=out, rule=half, full_run=folder
        )
        said[epochs] = result["cost"]["full_run"], caplog.text
    assert "unlike" not in said[2][0]
    assert said[2][1] == ""
    assert said[3][0]["unlike"] == ["epochs"]
    assert "the full run differs in epochs; its costs are those of its own settings" in said[3][1]


def said(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["shardsieve", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return done.value.code, capsys.readouterr()


def test_plan_needs_no_store(capsys, monkeypatch):
    status, out = said(
        capsys,
        monkeypatch,
        *("plan", "--seeds", 0.2, "--keep", 0.5, "--epochs", 90, "--seconds-per-epoch", 3600),
        "--json",
    )
    made = json.loads(out.out)
    assert status == 0
    assert made["epochs_over_everything"]["total"] == pytest.approx(63.3333)
    assert made["break_even_keep_fraction"] == pytest.approx(0.7963)
    assert made["hours"]["full_run"] == 90
    assert "samples" not in made


@pytest.mark.parametrize("runs", [1, 5])
def test_scores_of_everything_are_shared_by_as_many_runs(capsys, monkeypatch, runs):
    how = ("plan", "--seeds", 0.2, "--keep", 0.5, "--epochs", 50, "--runs", runs, "--json")
    made = json.loads(said(capsys, monkeypatch, *how)[1].out)
    ours, theirs = (0.2 * 50 + 1 / 3) / runs + 25, 50 / runs + 25
    assert made["epochs_over_everything"]["total"] == pytest.approx(ours, abs=1e-4)
    assert made["times_faster_than_scoring_everything"] == round(theirs / ours, 3)


def test_a_plan_counts_the_samples_of_a_store(tmp_path):
    path = ss.index(write_shards(tmp_path / "d", [30, 20]), tmp_path / "s.zarr").path
    made = plan_store(Plan(seeds=0.2, keep=0.5, epochs=4, score_epochs=3), path, 0.9)
    seeds = {"seeds": 10, "trained_on_for_scores": 30, "embedded": 50}
    rest = {"all": 50, "kept": 25, "trained_on": 100, "full_run": 200}
    assert made["samples"] == seeds | rest
    assert made["hours"]["full_run"] == 0.001
    blind = plan_store(Plan(seeds=0, keep=0.5, epochs=4), path, None)
    assert blind["samples"] == dict.fromkeys(seeds, 0) | rest
    assert "hours" not in blind
    with pytest.raises(ValueError, match="seconds_per_epoch must be above 0, got 0"):
        plan_store(Plan(seeds=0, keep=0.5, epochs=4), None, 0)


def test_what_several_runs_share_is_planned_once():
    made = describe_plan(Plan(seeds=0.2, keep=0.4, epochs=60, extrapolation=3, runs=2))
    assert made["epochs_over_everything"] == {
        "scoring": 6.0,
        "embedding": 0.1667,
        "extrapolation": 1.5,
        "training": 24.0,
        "total": 31.6667,
        "full_run": 60,
    }
    assert made["saved_fraction"] == 0.4722
    assert made["times_faster_than_full_run"] == 1.895
    assert made["times_faster_than_scoring_everything"] == 1.705  # (60 / 2 + 24) / 31.67
    assert made["break_even_keep_fraction"] == 0.8722
    assert made["verdict"] == "saves time: keep 0.4 is below the break-even of 0.872"
    for keep, wanted in ((0.75, "saves nothing: keep 0.75 is not"), (0.7, "saves time: keep 0.7")):
        plan = Plan(seeds=0, keep=keep, epochs=4, extrapolation=1.0)
        assert describe_plan(plan)["verdict"].startswith(wanted)
    dear = describe_plan(Plan(seeds=1, keep=0.5, epochs=4))
    assert dear["verdict"].startswith("scoring alone costs more than the full run")
    assert dear["break_even_keep_fraction"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", 2), "seeds must lie in [0, 1], got 2.0"),
        (("--keep", 0), "keep must lie in (0, 1], got 0.0"),
        (("--epochs", 0), "epochs must be at least 1, got 0"),
    ],
)
def test_a_plan_that_cannot_be_is_one_line(capsys, monkeypatch, arguments, message):
    status, out = said(capsys, monkeypatch, "plan", *arguments)
    assert status == 2
    assert message in out.err
    assert out.err.count("\n") == 1


@pytest.mark.parametrize(
    ("choice", "phases"),
    [
        (["--policy", "ucb", "--policy-arg", "prior=made"], {"scoring"}),
        (["--policy", "ucb", "--score", "made"], {"scoring"}),
        (["--policy", "annealed", "--score", "made"], {"scoring"}),
        (["--policy", "random-dynamic"], set()),
        (["--rule", "top", "--score", "made"], {"scoring"}),
        (["--rule", "random", "--score", "made"], set()),
        (["--rule", "moderate"], {"embedding"}),
        (["--keep-set", "stored"], {"scoring"}),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_the_choice_goes_by_is_counted(tmp_path, capsys, monkeypatch, choice, phases):
    tars = pack("digits", tmp_path, samples_per_shard=50, test_fraction=0.95)[0]
    store = ss.index(tars.pattern, tmp_path / "s.zarr")
    spent = Cost(7, 7, 1.0, 1.0, 9).to_dict()
    store.put_score("made", range(len(store)), provenance={"definition": "x", "cost": spent})
    points = store.embedding_array("e", 2)
    points[:] = np.random.default_rng(0).random(points.shape)
    points.attrs["cost"] = spent
    at = ["--store", store.path, "--json"]
    said(capsys, monkeypatch, "select", *at, "--score", "made", "--save", "stored")
    how = ["train", *at, "--out", tmp_path / "run", "--epochs", 1]
    status, out = said(capsys, monkeypatch, *how, "--track", "", *choice)
    cost = json.loads(out.out)["cost"]
    assert status == 0
    assert cost["uncounted"] == []
    assert {name for name in cost["phases"] if name != "training"} == phases
    assert all(cost["phases"][name] == spent for name in phases)


def test_what_scores_took_is_added_up_and_what_they_have_in_common_counted_once(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [8]), tmp_path / "s.zarr")
    run, network, points = Cost(8, 8, 4.0, 8.0, 80), Cost(6, 5, 2.0, 2.0, 60), Cost(8, 0, 1.0, 1.0)
    kept = store.embedding_array("e", 2).attrs
    kept.update({"cost": points.to_dict(), "network_cost": network.to_dict()})
    measured = {"definition": "el2n", "cost": run.to_dict()}
    for name, seconds, of in (("a", 1.0, measured), ("b", 2.0, measured), ("c", 4.0, {"by": "me"})):
        made = {"embedding": "e", "of": of, "cost": Cost.timed(seconds).to_dict()}
        store.put_score(name, range(8), provenance={"definition": f"knn({name})", **made})
    counted = {"scoring": run + network, "embedding": points, "extrapolation": Cost.timed(3.0)}
    assert overhead_of(store, "a", None, "b") == (counted, ())
    counted = {"embedding": points, "extrapolation": Cost.timed(5.0)}
    assert overhead_of(store, "c", "a") == (counted, ("scoring",))
    counted = {"embedding": points, "scoring": network}
    assert embedding_overhead(store, "e") == (counted, ())
    del kept["network_cost"]
    assert embedding_overhead(store, "e") == ({"embedding": points}, ())
    del kept["cost"]
    assert embedding_overhead(store, "e") == ({}, ("embedding",))
    lost = {"definition": "far", "embedding": "gone", "cost": run.to_dict()}
    store.put_score("d", range(8), provenance=lost)
    assert overhead_of(store, "d") == ({"scoring": run}, ("embedding",))


def test_what_a_score_was_made_from_is_counted_with_it(tmp_path):
    """D2 goes by other scores, whose seed run cost more than all of it."""
    store = ss.index(write_shards(tmp_path / "d", [8]), tmp_path / "s.zarr")
    run, points, near = Cost(8, 8, 4.0, 8.0, 80), Cost(8, 0, 1.0, 1.0), Cost.timed(2.0)
    embedding = store.embedding_array("e", 2)
    embedding[:] = np.random.default_rng(0).random(embedding.shape)
    embedding.attrs["cost"] = points.to_dict()
    made = {"embedding": "e", "of": {"cost": run.to_dict()}, "cost": near.to_dict()}
    store.put_score("du", range(8), provenance=made)
    store.put_score("hard", range(8), provenance={"cost": Cost(5, 5, 1.0, 1.0, 50).to_dict()})
    specs = ["d2:score=du:k=2", "d2:score=du:k=2:difficulty=hard:hard_cutoff=0.2"]
    names = score_from_embedding(store.path, "e", specs, prefix=None)["scores"]
    store = ss.open_store(store.path)
    for name, trained in zip(names, (8, 13), strict=True):
        phases, uncounted = overhead_of(store, name)
        assert uncounted == ()
        assert (phases["scoring"].backward, phases["scoring"].nbytes) == (trained, 10 * trained)
        own = store.provenance(name)["cost"]["seconds"]
        assert phases["scoring"].seconds == pytest.approx(own + (4.0 if trained == 8 else 5.0))
        assert (phases["embedding"], phases["extrapolation"]) == (points, near)
    store.put_score("bought", range(8))
    twice = ["d2:score=bought:k=2", f"d2:score={names[0]}:k=2"]
    unknown, again = score_from_embedding(store.path, "e", twice, prefix=None)["scores"]
    assert overhead_of(store, unknown) == ({"embedding": points}, ("scoring",))
    assert overhead_of(store, again).phases["scoring"].backward == 8
    measured = [store.provenance(one)["measured"] for one in (*names, unknown, again)]
    assert measured == [False, False, True, False]
    store.put_score("words", range(8), provenance={"made_from": "thin air"})
    assert overhead_of(store, "words") == ({}, ("scoring",))


def test_a_full_run_is_a_finished_training_on_everything(tmp_path):
    spent, result = Cost(4, 4, 1.0, 1.0, 9), tmp_path / "result.json"
    whole = {"cost": {"phases": {"training": spent.to_dict()}}, "kept": 4, "of": 4, "policy": None}
    with pytest.raises(ss.ShardsieveError, match=r"must be finished; it has no result\.json"):
        full_run_in(tmp_path)
    for wrong, message in (
        ({"kept": 4, "of": 4}, "must be finished"),
        ({"cost": whole["cost"], "seeds": 4}, "must be a training of `shardsieve train`"),
        (whole | {"kept": 2}, "must have kept everything, got 2 of 4"),
        (whole | {"policy": {"policy": "infobatch"}}, "everything, got a policy's run"),
    ):
        result.write_text(json.dumps(wrong))
        with pytest.raises(ss.ShardsieveError, match=message):
            full_run_in(tmp_path)
    result.write_text(json.dumps(whole))
    assert full_run_in(tmp_path) == ({}, spent)
    (tmp_path / "run.json").write_text('{"epochs": 1}')
    assert full_run_in(tmp_path) == ({"epochs": 1}, spent)


def test_a_full_run_that_does_not_say_which_it_is_is_unlike_in_nothing():
    assert FullRun({}, NO_COST).unlike({"epochs": 2}) == []
    known = FullRun({"epochs": 3, "keep": "a", "seed": 0}, NO_COST)
    assert known.unlike({"epochs": 2, "keep": "b", "seed": 0}) == ["epochs"]


def test_who_puts_a_score_says_how_it_was_made_in_words_of_its_own(tmp_path):
    """Some of these words are the program's too: reading them as its own was a traceback."""
    store = ss.index(write_shards(tmp_path / "d", [8]), tmp_path / "s.zarr")
    made = {"quality": "good", "cost": "3 GPU days", "of": "CLIP", "embedding": ["ViT-B/32"]}
    made["against_second_run"] = 0.4
    for name, word in made.items():
        store.put_score(name, range(8), provenance={name: word})
    assert overhead_of(store, *made) == ({}, ("scoring",))
    for cost in ({"euros": 3}, {"seconds": 3.0}, {"bytes": 3, "euros": 3}):
        store.put_score("bought", range(8), provenance={"cost": cost})
        assert overhead_of(store, "bought") == ({}, ("scoring",))
    for name, word in made.items():
        assert doubt_of_score(store.provenance(name), 0.5) is None
        assert store.provenance(name)[name] == word
