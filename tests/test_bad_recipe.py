"""A recipe that is wrong anywhere is refused in one line before any step, and nothing is made."""

import numpy as np
import pytest
import yaml
from chains import Makers, changed, recipe_in, write
from tars import write_shards

import shardsieve as ss
from shardsieve.commands import running
from shardsieve.commands.recipe import read_recipe
from shardsieve.commands.running import run_recipe
from shardsieve.train.recorder import Recorder

HEAD = "work: w\ndata: {store: s.zarr}\n"
CHAIN = {
    "work": "w",
    "data": {"store": "s.zarr"},
    "score": {"epochs": 12},
    "embed": {},
    "extrapolate": {},
    "train": {},
    "report": {},
}


def refused(path):
    with pytest.raises(ss.ShardsieveError) as error:
        read_recipe(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}train: {{epochs: 2}}\ntrain: {{}}\n", "must be YAML: the key train comes twice"),
        (f"{HEAD}train:\n  epochs: 2\n  epochs: 3\n", "the key epochs comes twice"),
        (f"{HEAD}yes: 2\n", "Keys should be strings"),
        (f"{HEAD}1: 2\n", "1 must be right, got 1: Keys should be strings"),
        (f"{HEAD}embed:\n", "embed must hold something, got nothing; write {}"),
        ("work: w\ndata:\n", "data must hold something"),
        ("[" * 5000, "must be YAML: it is nested too deeply"),
        (HEAD.encode("utf-16"), "must be text in UTF-8"),
        ("work: wé\n".encode("latin-1"), "must be text in UTF-8"),
    ],
)
def test_a_text_that_says_something_else_than_it_seems(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refused(path)


def test_numbers_with_an_exponent_are_numbers_and_a_byte_order_mark_is_nothing(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"{HEAD}train: {{learning_rate: 1e-3, policy: {{name: ucb, c: 5e-1}}}}\n",
        encoding="utf-8-sig",
    )
    recipe = read_recipe(path)
    assert recipe.train.learning_rate == 0.001
    assert recipe.train.policy["c"] == 0.5


@pytest.mark.parametrize(("method", "k"), [("knn", 50), ("gnn", 20)])
def test_every_method_has_its_own_usual_number_of_neighbours(tmp_path, method, k):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{HEAD}score: {{}}\nembed: {{}}\nextrapolate: {{method: {method}}}\n")
    assert read_recipe(path).extrapolate.k == k


ON_POLICY = {"train__policy": {"name": "ucb"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__epochs": True}, "train: epochs must not be true or false, got True"),
        ({"train__resolutions": [[True, 8]]}, "resolutions must not be true or false"),
        ({"train__resolutions": [[0, 8], [0, 9]]}, "resolutions must begin at different epochs"),
        ({"train__momentum": 1.5}, "train: momentum must lie in [0, 1), got 1.5"),
        ({"train__momentum": float("nan")}, "train: momentum must be a finite number, got nan"),
        ({"train__weight_decay": -1}, "train: weight_decay must be at least 0, got -1"),
        ({"train__learning_rate": float("inf")}, "learning_rate must be a finite number, got inf"),
        ({"train__seed": -1}, "train: seed must be at least 0, got -1"),
        ({"train__seed": 2**32}, "train: seed must be at most"),
        ({"train__shuffle_window": -1}, "train: shuffle_window must be at least 0, got -1"),
        ({"train__evaluate_every": -1}, "train: evaluate_every must be at least 0, got -1"),
        (
            {"train__evaluate_every": 2, "test": None},
            "train: evaluate_every must come with a section test, got none; add one",
        ),
        ({"train__checkpoint_steps": -1}, "train: checkpoint_steps must be at least 0, got -1"),
        ({"train__size": 10**9}, "train: size must be at most 65535 pixels, got 1000000000"),
        ({"train__adversary": {"beta": float("inf")}}, "beta must be a number of at least 0"),
        ({"train__full_run": ""}, "train: full_run must be the path of a file or folder, got ''"),
        ({"work": "s3://bucket/w"}, "work must be a local path, got s3://bucket/w"),
        ({"data__store": "s3://bucket/s"}, "data: store must be a local path"),
        ({"embed__size": 0}, "embed: size must be at least 1 pixel"),
        ({"embed__channels": 2}, "embed: channels must be 1 or 3"),
        ({"embed__batch_size": 0}, "embed: batch_size must be at least 1, got 0"),
        ({"embed__workers": -1}, "embed: workers must be at least 0, got -1"),
        ({"embed__max_unreadable": -1}, "embed: max_unreadable must be at least 0, got -1"),
        ({"embed__precision": "half"}, "embed: precision must be one of no, bf16, fp16"),
        ({"embed__weights": "file"}, "embed: weights must come with the model"),
        ({"embed__normalise": "half"}, "embed: normalise must come with the model"),
        ({"extrapolate__seed": -1}, "extrapolate: seed must be at least 0, got -1"),
        ({"extrapolate__layer": "sage"}, "extrapolate: layer must come with method gnn, got 'knn'"),
        (
            {"extrapolate__method": "gnn", "extrapolate__weights": "mean"},
            "extrapolate: weights must come with method knn, got 'gnn'",
        ),
        (
            {"extrapolate__method": "fused", "score__held_out": 0},
            "method fused learns from seeds held out",
        ),
        (
            {"extrapolate__method": "direct", "embed__model": "chains:tiny"},
            "method direct asks the seed run's networks; leave out embed.model",
        ),
        ({"ask": {}, "embed__model": "chains:tiny"}, "ask must come with score and embed, and"),
        ({"ask": {}, "embed": None, "extrapolate": None}, "ask must come with score and embed"),
        ({"ask__scores": []}, "ask: scores must name a score, got []"),
        ({"ask__scores": ["tdds"]}, "ask: score must be one of aum, "),
        ({"ask__scores": ["el2n:last=2"]}, "last must be at most the 1 recorded epochs, got 2"),
        ({"score__scores": []}, "score: scores must name a score, got []"),
        ({"score__match_steps_of": 9, "score__window": 0}, "window must be a whole number of at"),
        (
            {"score__match_steps_of": 9, "score__scores": ["dyn_unc", "el3n"]},
            "score must be one of dyn_unc",
        ),
        (
            {"score": {"turtle": {"classes": 0}}, "embed__model": "chains:tiny"},
            "score: turtle: classes must be at least 2, got 0",
        ),
        ({"select__rule": "threshold"}, "select: threshold must be given for rule 'threshold'"),
        (
            {"select__rule": "threshold", "select__threshold": float("nan")},
            "select: threshold must be a number, got nan",
        ),
        ({"select__rule": "beta"}, "select: difficulty must name the stored confidence"),
        (
            {"select__rule": "ccs", "select__hard_cutoff": 1.5},
            "select: hard_cutoff must lie in [0, 1), got 1.5",
        ),
        ({"select__rule": "ccs", "select__bins": 0}, "select: bins must be at least 1, got 0"),
        ({"train": None, "select__keep_fraction": 7}, "select: keep_fraction must lie in (0, 1]"),
        (
            {**ON_POLICY, "select__rule": "ccs", "select__bins": 3},
            "train: policy must come without rule, bins of select, got both",
        ),
        ({**ON_POLICY, "train__policy_score": "a/b"}, "train: name must be made of letters"),
        *(
            (
                {**ON_POLICY, "ask": {}, "train__policy_score": name},
                f"policy_score must not be a score of an earlier step, got '{name}'",
            )
            for name in ("dyn_unc", "asked_el2n", "seed_aum")
        ),
        (
            {"train__policy": {"name": "random-dynamic"}, "train__policy_score": "learned"},
            "train: RandomDynamic learns no score",
        ),
        ({"train__policy": {"name": ["ucb"]}}, "train: policy must be one of annealed"),
        ({"train__policy": {"name": "ucb", "seed": 3}}, "train: ucb must be given keep_fraction"),
        ({"train__policy": {"name": "ucb", "c": True}}, "c of ucb must be a number, got True"),
        ({"train__policy": {"name": "ucb", "c": "1"}}, "c of ucb must be a number, got '1'"),
        ({"train__policy": {"name": "ucb", "prior": 3}}, "prior of ucb must be a name, got 3"),
        (
            {"train__policy": {"name": "random-dynamic", "replacement": "no"}},
            "replacement of random-dynamic must be true or false, got 'no'",
        ),
        ({"extrapolate": None, "select__rule": "random"}, "report must have a score to show"),
        ({"data__urls": 5}, "data.urls must be right, got 5: Input should be a valid string"),
        ({"score": 5}, "score must be right, got 5: it should be a mapping of keys"),
        ({"score__scores": "x" * 999}, "xxx...': it should be a list"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(tmp_path, changes, message):
    assert message in refused(write(tmp_path, changed(CHAIN, **changes)))


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """A chain over a store, whose steps are quick stand-ins."""
    base = recipe_in(tmp_path, write_shards(tmp_path / "shards", [7, 12, 5]))
    return Makers(monkeypatch), base


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select__score": "typo"}, "select: score must be one of those in"),
        ({"select__rule": "ccs", "select__difficulty": "typo"}, "select: score must be one of"),
        ({"train__policy": {"name": "ucb", "prior": "typo"}}, "select: score must be one of those"),
        ({"train__policy": {"name": "annealed", "score": "typo"}}, "select: score must be one of"),
        ({"select__score": "seed_el2n"}, "select: score 'seed_el2n' is of the seeds alone"),
        (
            {"select__rule": "moderate", "select__embedding": "typo"},
            "select: embedding must be one of those stored",
        ),
        ({"extrapolate__folds": 9}, "must be tried on a seed per fold, 9, got 5 of 5 seeds"),
        ({"report__out": "."}, "is a folder; report.out must be the page to write"),
    ],
)
def test_what_the_store_does_not_hold_is_refused_before_any_step(tmp_path, chain, changes, message):
    makers, base = chain
    (tmp_path / "work").mkdir()
    with pytest.raises((ss.ShardsieveError, ValueError), match=message) as error:
        run_recipe(write(tmp_path, changed(base, **changes)))
    assert "\n" not in str(error.value)
    assert makers.ran == []


def test_a_users_own_score_is_not_predicted_over_after_hours(tmp_path, chain):
    makers, base = chain
    store = ss.open_store(base["data"]["store"])
    store.put_score("dyn_unc", np.arange(len(store)))
    with pytest.raises(ValueError, match=r"extrapolate: score 'dyn_unc' of .* was put there by a"):
        run_recipe(write(tmp_path, base))
    assert makers.ran == []


def test_anothers_prediction_is_not_replaced_and_the_chains_own_is(tmp_path, chain):
    makers, base = chain
    store = ss.open_store(base["data"]["store"])
    made = {"definition": "knn(seed_dyn_unc)", "source": "seed_dyn_unc", "method": "knn", "k": 9}
    store.put_score("dyn_unc", np.arange(len(store)), provenance=made)
    with pytest.raises(ValueError, match=r"score 'dyn_unc' was predicted with k 9, got"):
        run_recipe(write(tmp_path, base))
    assert makers.ran == []
    store.forget_score("dyn_unc")
    run_recipe(write(tmp_path, base))
    store.put_score("dyn_unc", np.arange(len(store)), provenance=made)
    run_recipe(write(tmp_path, changed(base, extrapolate__k=6)))
    assert "k" not in store.provenance("dyn_unc")  # that of the stand-in


def test_what_a_step_was_refused_to_make_is_not_removed_as_its_own(tmp_path, chain, monkeypatch):
    _, base = chain
    store = ss.open_store(base["data"]["store"])
    made = {"definition": "knn(seed_dyn_unc)", "source": "seed_dyn_unc"}
    store.put_score("dyn_unc", np.arange(len(store)), provenance=made)

    def refused(*given, **how):
        raise ss.StoreMismatchError("of another")

    with monkeypatch.context() as patch:
        patch.setattr(running, "extrapolate_score", refused)
        with pytest.raises(ss.StoreMismatchError):
            run_recipe(write(tmp_path, base))
    other = changed(base, extrapolate__score="el2n")
    run_recipe(write(tmp_path, other))
    assert store.score("dyn_unc").tolist() == list(range(len(store)))
    assert store.has_score("el2n")
    run_recipe(write(tmp_path, base))
    assert not store.has_score("el2n")
    run_recipe(write(tmp_path, other))
    assert not store.has_score("dyn_unc")  # by now it is the chain's


def test_a_seed_run_that_was_not_to_be_replaced_is_not_removed_either(tmp_path, chain):
    _, base = chain
    store = ss.open_store(base["data"]["store"])
    Recorder(store.ids()[:2], 3, signals=("loss",)).save(store, "seed")
    made = {"definition": "dyn_unc(9)", "dynamics": "seed"}
    store.put_score("seed_dyn_unc", np.arange(len(store)), provenance=made)
    for window in (3, 4):
        with pytest.raises(ss.StoreMismatchError, match=r"'dyn_unc\(9\)', got 'dyn_unc\("):
            run_recipe(write(tmp_path, changed(base, score__window=window)))
    assert store.score("seed_dyn_unc").tolist() == list(range(len(store)))


def test_a_users_own_score_is_not_learned_over_after_hours(tmp_path, chain):
    makers, base = chain
    store = ss.open_store(base["data"]["store"])
    store.put_score("mine", np.arange(len(store)))
    learns = {"train__policy": {"name": "infobatch"}, "train__policy_score": "mine"}
    with pytest.raises(ValueError, match=r"train: score 'mine' holds the definition 'user', got"):
        run_recipe(write(tmp_path, changed(base, **learns)))
    assert makers.ran == []


LEARNS = {"train__policy": {"name": "infobatch"}, "train__policy_score": "learned"}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"ask": {}}, {"ask": {"scores": ["variability"]}, "select__score": "asked_el2n"}),
        ({}, {"extrapolate__score": "el2n", "select__score": "dyn_unc"}),
        (
            {},
            {
                "extrapolate__score": "el2n",
                "select__rule": "ccs",
                "select__difficulty": "dyn_unc",
            },
        ),
        (LEARNS, {"select__score": "learned"}),
        (LEARNS, {"train__policy": {"name": "ucb", "prior": "learned"}}),
    ],
)
def test_a_score_that_its_own_step_would_remove_is_not_chosen_by(tmp_path, chain, first, then):
    makers, base = chain
    base = changed(base, score__snapshots=2)
    run_recipe(write(tmp_path, changed(base, **first)))
    held = ss.open_store(base["data"]["store"]).scores
    makers.ran.clear()
    with pytest.raises(ValueError, match="an earlier form of this recipe") as error:
        run_recipe(write(tmp_path, changed(base, **then)))
    assert "\n" not in str(error.value)
    assert makers.ran == []
    assert ss.open_store(base["data"]["store"]).scores == held


def test_a_recipe_is_what_yaml_writes(tmp_path):
    """Whatever is refused here is not refused for how it is written."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(CHAIN))
    assert read_recipe(path).report is not None
