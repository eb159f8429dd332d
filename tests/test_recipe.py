"""A step of a recipe is made again exactly when one of its inputs has changed.

The steps here are quick stand-ins; `test_run.py` has the real ones.
"""

import json
import shutil
from dataclasses import fields

import chains
import numpy as np
import pytest
from chains import (
    SHARDS,
    Again,
    Killed,
    Makers,
    changed,
    full_run,
    outcome,
    recipe_in,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import write_shards, write_tar

import shardsieve as ss
from shardsieve.commands.running import run_recipe
from shardsieve.commands.sections import Recipe
from shardsieve.train.config import TrainConfig

ALL = {"score", "embed", "extrapolate", "train", "report"}
AFTER_SCORE = ALL - {"embed"}
AFTER_EMBED = ALL - {"score"}
AFTER_EXTRAPOLATE = {"extrapolate", "train", "report"}
NOTHING = set()
UNTIL_SCORE = {"score"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_shards(folder, SHARDS)


@pytest.fixture
def makers(monkeypatch):
    return Makers(monkeypatch)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """A chain that was made with everything as usual."""
    folder = tmp_path_factory.mktemp("made") / "chain"
    with pytest.MonkeyPatch.context() as patch:
        Makers(patch)
        base = recipe_in(folder, data)
        run_recipe(write(folder, base))
    return Again(folder, base)


# Every setting, what it changes to, and which steps then have another input. Where a setting only
# has a meaning beside others, these come first.
POLICY = {"train__policy": {"name": "infobatch"}}
ASKED = {"ask": {}, "select__score": "asked_el2n"}
CCS = {"select__rule": "ccs", "select__hard_cutoff": 0.1}
# Of 24 samples two are held out, on which predictions are tried.
HELD_OUT = {"score__seeds": 1.0, "extrapolate__folds": 2}
MODERATE = {"select__rule": "moderate", "select__embedding": "other"}
OF_TRAINING = {
    "model": "resnet18",
    "epochs": 13,
    "batch_size": 16,
    "learning_rate": 0.2,
    "schedule": "cosine",
    "momentum": 0.8,
    "weight_decay": 0.1,
    "label_smoothing": 0.1,
    "size": 16,
    "channels": 1,
    "augment": "flip",
    "precision": "bf16",
    "normalise": "imagenet",
    "accumulate": 2,
    "ema": 0.9,
    "resolutions": [[1, 8]],
    "channels_last": True,
    "compile": True,
    "pseudo_labels": "mine",
    "shuffle": "global",
    "shuffle_window": 2,
    "seed": 1,
}
TABLE = [
    ("data__store", "{folder}/new.zarr", {}, {"score", "embed", "extrapolate"}),
    ("data__urls", "{data}/s-{{000..002}}.tar", {}, NOTHING),
    ("data__urls", "{data}/s-{{000..001}}.tar", {}, "made from other shards"),
    ("data__label_member", "jpg", {}, "has its labels from cls"),
    ("test__store", "{folder}/new.zarr", {}, NOTHING),
    ("test__urls", "{data}/s-{{000..002}}.tar", {}, NOTHING),
    ("test__urls", "{data}/s-{{000..001}}.tar", {}, "made from other shards"),
    ("test", {"store": "{folder}/few.zarr", "urls": "{data}/s-{{000..001}}.tar"}, {}, {"train"}),
    ("test__label_member", "jpg", {}, "has its labels from cls"),
    ("test", None, {}, {"train"}),
    ("work", "{folder}/elsewhere", {}, ALL),
    # Another seed run is another network; only one of these goes on to the end, to save time.
    *((f"score__{name}", value, {}, UNTIL_SCORE) for name, value in OF_TRAINING.items()),
    ("score__epochs", 14, {}, ALL),
    *((f"train__{name}", value, {}, {"train"}) for name, value in OF_TRAINING.items()),
    ("score__workers", 1, {}, NOTHING),
    ("score__max_unreadable", 9, {}, NOTHING),
    ("score__checkpoint_steps", 9, {}, NOTHING),
    ("score__seeds", 0.3, {}, ALL),
    ("score__per_class", True, {}, ALL),
    ("score__window", 4, {}, AFTER_SCORE),
    ("score__scores", ["dyn_unc"], {}, {"score"}),
    ("score__clean_pass", True, {}, AFTER_SCORE),
    ("score__held_out", 0.1, HELD_OUT, ALL),
    ("score__snapshots", 3, {}, ALL),
    ("score__match_steps_of", 9, {}, ALL),
    ("score__adversary", {"method": "pgd"}, {}, ALL),
    ("score__turtle", {"classes": 3}, {}, "turtle must come with embed and its model"),
    ("score__ceiling", True, {}, {"score", "extrapolate", "report"}),
    ("embed__model", "chains:tiny", {}, AFTER_EMBED),
    ("embed__weights", "{folder}/weights", {"embed__model": "chains:tiny"}, AFTER_EMBED),
    ("embed__size", 16, {}, AFTER_EMBED),
    ("embed__channels", 1, {}, AFTER_EMBED),
    ("embed__batch_size", 16, {}, AFTER_EMBED),
    ("embed__normalise", "imagenet", {"embed__model": "chains:tiny"}, AFTER_EMBED),
    ("embed__precision", "bf16", {}, AFTER_EMBED),
    ("embed__max_unreadable", 9, {}, NOTHING),
    ("embed__workers", 1, {}, NOTHING),
    ("ask__scores", ["entropy"], {}, {"ask"}),
    ("ask__scores", ["el2n", "entropy"], ASKED, {"ask"}),  # what is kept by comes out as it was
    ("score__seed", 5, ASKED, ALL | {"ask"}),
    ("extrapolate__score", "el2n", {}, AFTER_EXTRAPOLATE),
    ("extrapolate__method", "gnn", {}, AFTER_EXTRAPOLATE),
    ("extrapolate__method", "fused", HELD_OUT, ALL),  # such a seed run holds seeds out
    ("extrapolate__method", "direct", {}, "tried on a held-out seed per fold, 5, got 1 of 5 seeds"),
    ("extrapolate__k", 6, {}, AFTER_EXTRAPOLATE),
    ("extrapolate__weights", "mean", {}, AFTER_EXTRAPOLATE),
    ("extrapolate__search", "exact", {}, AFTER_EXTRAPOLATE),
    ("extrapolate__min_recall", 0.9, {}, AFTER_EXTRAPOLATE),
    ("extrapolate__layer", "sage", {"extrapolate__method": "gnn"}, AFTER_EXTRAPOLATE),
    ("extrapolate__graph", "seeds", {"extrapolate__method": "gnn"}, AFTER_EXTRAPOLATE),
    ("extrapolate__labels", True, {"extrapolate__method": "gnn"}, AFTER_EXTRAPOLATE),
    ("extrapolate__folds", 4, {}, {"extrapolate", "report"}),  # quality, not predictions
    ("extrapolate__match", True, {}, AFTER_EXTRAPOLATE),
    (
        "extrapolate__seed_scores",
        "neighbours",
        {**HELD_OUT, "extrapolate__method": "direct"},
        AFTER_EXTRAPOLATE,
    ),
    ("extrapolate__seed", 1, {}, AFTER_EXTRAPOLATE),
    ("select__keep_fraction", 0.4, {}, {"train", "report"}),
    ("select__rule", "random", {}, {"train"}),
    ("select__rule", "moderate", {}, {"train"}),
    ("select__score", "mine", {}, {"train", "report"}),
    ("select__threshold", 0.9, {"select__rule": "threshold", "select__threshold": 0.1}, {"train"}),
    ("select__class_floor", 4, {"select__rule": "class_balanced"}, {"train"}),
    ("select__class_floor", 1, {"select__rule": "class_balanced"}, NOTHING),  # keeps the same
    ("select__hard_cutoff", 0.4, CCS, {"train"}),
    ("select__difficulty", "mine", CCS, {"train"}),
    ("select__bins", 3, CCS, {"train"}),
    ("select__embedding", "another", MODERATE, {"train"}),
    ("select__drop_missing", True, {}, NOTHING),  # nothing is missing
    ("train__workers", 1, {}, NOTHING),
    ("train__max_unreadable", 9, {}, NOTHING),
    ("train__checkpoint_steps", 9, {}, NOTHING),
    ("train__track", [], {}, NOTHING),
    ("train__policy", {"name": "infobatch"}, {}, {"train"}),
    ("train__policy", {"name": "infobatch", "prune_probability": 0.5}, POLICY, NOTHING),
    ("train__policy", {"name": "infobatch", "prune_probability": 0.4}, POLICY, {"train"}),
    ("train__policy", {"name": "infobatch", "prior": "mine"}, POLICY, {"train"}),
    ("train__policy_score", "learned", POLICY, {"train"}),
    ("train__full_run", "{folder}/full", {}, {"train"}),
    ("train__adversary", {"steps": 1}, {}, {"train"}),
    ("train__evaluate_every", 1, {}, {"train"}),
    ("report__out", "other.html", {}, {"report"}),
]


def filled(value, **where):
    if isinstance(value, dict):
        return {key: filled(part, **where) for key, part in value.items()}
    return value.format(**where) if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("name", "value", "beside", "steps"), TABLE, ids=[f"{r[0]}={r[1]}" for r in TABLE]
)
def test_a_setting_makes_just_the_steps_again_that_depend_on_it(
    made, makers, data, name, value, beside, steps
):
    base, where = made.restore(), {"folder": made.folder, "data": data[0].parent}
    if beside:
        base = changed(base, **{k: filled(v, **where) for k, v in beside.items()})
        put_embeddings(made.folder)
        run_recipe(write(made.folder, base))
        makers.ran.clear()
    path = write(made.folder, changed(base, **{name: filled(value, **where)}))
    if isinstance(steps, str):
        with pytest.raises((ss.ShardsieveError, ValueError), match=steps):
            run_recipe(path)
        assert makers.ran == []
        return
    cut = steps is UNTIL_SCORE
    result = run_recipe(path, until="score" if cut else "report")
    assert set(makers.ran) == steps
    assert set(result["skipped"]) == (NOTHING if cut else ALL - steps)
    assert len(makers.ran) == len(steps)


def put_embeddings(folder):
    store = ss.open_store(folder / "train.zarr")
    for seed, one in enumerate(("other", "another")):
        points = np.random.default_rng(seed).random((3, store.rows_per_shard, 2))
        store.embedding_array(one, 2)[:] = points


def test_the_table_has_every_setting():
    known = {"work"}
    for name, field in Recipe.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        sections = [kind for kind in kinds if hasattr(kind, "model_fields")]
        known |= {f"{name}__{one}" for kind in sections for one in kind.model_fields}
    assert known == {row[0] for row in TABLE} - {"test"}
    assert {f.name for f in fields(TrainConfig)} == {*OF_TRAINING, "workers", "max_unreadable"}


OF_RELEASE_0_1 = {"model", "epochs", "batch_size", "learning_rate", "schedule", "momentum"}
OF_RELEASE_0_1 |= {"weight_decay", "label_smoothing", "size", "channels", "augment", "precision"}
OF_RELEASE_0_1 |= {"normalise", "accumulate", "ema", "resolutions", "channels_last", "compile"}
OF_RELEASE_0_1 |= {"shuffle_window", "seed", "data"}
SCORE_0_1 = {"seeds", "per_class", "window", "scores", "clean_pass", "held_out", "snapshots"}
SCORE_0_1 |= {"match_steps_of", "ceiling", "seed_run"}
TRAIN_0_1 = {"policy", "policy_score", "full_run", "evaluate_every", "score", "test", "keep"}


def test_a_step_that_an_earlier_release_made_is_not_made_again(makers, data, tmp_path, monkeypatch):
    """A step is known by its inputs: a later setting that is not used must not be among them."""
    read, digest_of = {}, chains.chain.marks.digest_of

    def seen(values):
        if isinstance(values[1], dict):
            read[values[0]] = set(values[1])
        return digest_of(values)

    monkeypatch.setattr(chains.chain.marks, "digest_of", seen)
    run_recipe(write(tmp_path, recipe_in(tmp_path, data)))
    assert read["score"] == OF_RELEASE_0_1 | SCORE_0_1
    assert read["train"] == OF_RELEASE_0_1 | TRAIN_0_1


def by_hand(name):
    """Write over a score, as a command of the user's would."""

    def change(folder):
        store = ss.open_store(folder / "train.zarr")
        store.put_score(name, np.ones(len(store)), provenance=store.provenance(name))

    return change


def lost(name):
    def change(folder):
        for path in folder.glob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def rewritten(name, text):
    return lambda folder: (folder / name).write_text(text)


def of_an_earlier_release(folder):
    """Write the names of scores as one string."""
    path = folder / "work" / "steps.json"
    held = json.loads(path.read_text())
    held["score"]["result"]["scores"] = " ".join(held["score"]["result"]["scores"])
    path.write_text(json.dumps(held))


WEIGHTS = {"embed__model": "chains:tiny", "embed__weights": "{folder}/weights"}
OUTSIDE = {
    "nothing": (lambda folder: None, {}, NOTHING),
    "a score that is kept by": (by_hand("mine"), {"select__score": "mine"}, {"train", "report"}),
    "another score": (by_hand("mine"), {}, NOTHING),
    "a seed score": (by_hand("seed_dyn_unc"), {}, {"score"}),  # it comes out as it was
    "a prediction": (by_hand("dyn_unc"), {}, {"extrapolate"}),
    "what networks were asked for": (by_hand("asked_el2n"), {"ask": {}}, {"ask"}),
    "a file of weights": (rewritten("weights", "3"), WEIGHTS, AFTER_EMBED),
    "a full run": (
        rewritten("full/result.json", full_run(9)),
        {"train__full_run": "{folder}/full"},
        {"train"},
    ),
    "the store is lost": (lost("train.zarr"), {}, {"score", "embed", "extrapolate"}),
    "embeddings are lost": (lost("train.zarr/embedding"), {}, {"embed"}),
    "the seed run is lost": (lost("work/score-*"), {}, {"score"}),
    "the training is lost": (lost("work/train-*/model.pt"), {}, {"train"}),
    "the report is lost": (lost("work/report.html"), {}, {"report"}),
    "what is known is of an earlier release": (of_an_earlier_release, {}, NOTHING),
    "what is known is lost": (lost("work/steps.json"), {}, ALL),
    "names of the classes": (
        rewritten("shards/classes.json", '["a", "b", "c"]'),
        {},
        {"report"},
    ),
}


@pytest.mark.parametrize(("change", "beside", "steps"), OUTSIDE.values(), ids=OUTSIDE)
def test_what_changes_outside_of_the_recipe_counts_too(makers, tmp_path, change, beside, steps):
    shards = write_shards(tmp_path / "shards", SHARDS)
    base = changed(
        recipe_in(tmp_path, shards), **{k: filled(v, folder=tmp_path) for k, v in beside.items()}
    )
    run_recipe(write(tmp_path, base))
    makers.ran.clear()
    change(tmp_path)
    run_recipe(write(tmp_path, base))
    assert set(makers.ran) == steps
    makers.ran.clear()
    run_recipe(write(tmp_path, base))
    assert makers.ran == []


def test_shards_that_changed_are_refused(makers, tmp_path):
    shards = write_shards(tmp_path / "shards", SHARDS)
    base = recipe_in(tmp_path, shards)
    run_recipe(write(tmp_path, base))
    write_tar(shards[1], [("z.jpg", b"1"), ("z.cls", b"0")])
    with pytest.raises(ss.StoreMismatchError, match="index again"):
        run_recipe(write(tmp_path, base))


def test_labels_that_a_later_training_needs_are_asked_for_before_the_first_step(makers, tmp_path):
    bare = write_tar(tmp_path / "bare.tar", [(f"{n}.jpg", b"1") for n in range(4)])
    base = {
        "work": str(tmp_path / "work"),
        "data": {"store": str(tmp_path / "bare.zarr"), "urls": str(bare)},
        "embed": {"model": "chains:tiny"},
        "select": {"rule": "random"},
    }
    turtle = {"score": {"turtle": {"classes": 2}}}
    for changes, message in (
        ({"score": {"turtle": {}}}, "score: classes must be given, as .* without a label"),
        ({"score": {"epochs": 12}}, "score: 4 of 4 samples of .* have no label"),
        ({**turtle, "train": {}}, "train: 4 of 4 samples of .* have no label"),
        ({**turtle, "train": {"pseudo_labels": "sed"}}, "train: pseudo-labels must be among"),
        ({"train": {"pseudo_labels": "seed"}}, "train: pseudo-labels must be among"),
    ):
        with pytest.raises(ValueError, match=message):
            run_recipe(write(tmp_path, {**base, **changes}))
    assert makers.ran == []
    makes_them = {**base, **turtle, "train": {"pseudo_labels": "seed"}}
    assert run_recipe(write(tmp_path, makes_them), until="embed")["skipped"] == []


def test_a_work_folder_that_was_moved_goes_on(makers, data, tmp_path):
    base = recipe_in(tmp_path, data)
    run_recipe(write(tmp_path, base))
    makers.ran.clear()
    (tmp_path / "work").rename(tmp_path / "moved")
    run_recipe(write(tmp_path, changed(base, work=str(tmp_path / "moved"))))
    assert makers.ran == ["report"]  # whose page is named by its place


VARIANTS = [
    {},
    {"score__seed": 5},
    {"score__window": 4},
    {"extrapolate__method": "gnn"},
    {**HELD_OUT, "extrapolate__method": "fused"},
    {"extrapolate__score": "el2n"},
    {"select__keep_fraction": 0.3},
    {"embed__batch_size": 3},
    {**POLICY, "train__policy_score": "learned"},
    {"train__policy": {"name": "seta"}, "train__policy_score": "learned"},
    ASKED,
    {"ask": {"scores": ["entropy", "el2n"]}, "select__score": "asked_entropy", "score__seed": 5},
]


@pytest.mark.slow
@settings(max_examples=8)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 50)), min_size=1, max_size=3))
def test_killed_anywhere_and_changed_anyhow_a_chain_ends_as_if_undisturbed(
    data, tmp_path_factory, story
):
    """Run some recipes that are killed at some moment; then the last one to its end."""
    folder = tmp_path_factory.mktemp("chain")
    base = recipe_in(folder, data)
    with pytest.MonkeyPatch.context() as patch:
        makers = Makers(patch)
        for variant, moments in story:
            recipe, makers.left = changed(base, **VARIANTS[variant]), moments
            try:
                run_recipe(write(folder, recipe))
            except Killed:
                continue
        makers.left = None
        result = run_recipe(write(folder, recipe))
        fresh = changed(recipe, work=f"{folder}/fresh", data__store=f"{folder}/fresh.zarr")
        again = run_recipe(write(folder, fresh))
        assert outcome(result, recipe) == outcome(again, fresh)
        makers.ran.clear()
        run_recipe(write(folder, recipe))
        assert makers.ran == []
    shutil.rmtree(folder)
