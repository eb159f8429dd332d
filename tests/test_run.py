"""`shardsieve run`: the whole chain, what it skips, and what it refuses."""

import json
import signal
from pathlib import Path

import forks
import numpy as np
import pytest
import yaml
from tars import write_shards

import shardsieve as ss
from shardsieve.commands.recipe import read_recipe
from shardsieve.commands.running import run_recipe
from shardsieve.commands.steps import Steps
from shardsieve.pack import pack
from shardsieve.train.runfolder import RunFolder


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return pack("digits", folder, samples_per_shard=100, test_fraction=0.75)


def recipe(packed, folder, **changes):
    """Write a recipe; changes replace keys of its sections."""
    made = {
        "work": str(folder / "work"),
        "data": {"store": str(folder / "train.zarr"), "urls": packed[0].pattern},
        "score": {"seeds": 0.5, "epochs": 4, "window": 3, "batch_size": 32},
        "embed": {},
        "extrapolate": {"score": "dyn_unc", "k": 5},
        "select": {"keep_fraction": 0.5},
        "train": {"epochs": 2, "batch_size": 32},
        "report": {},
    }
    for name, values in changes.items():
        made[name] = {**made.get(name, {}), **values} if isinstance(values, dict) else values
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in made.items() if v is not None}))
    return path


ALL = ["score", "embed", "extrapolate", "train", "report"]


@pytest.mark.slow
def test_a_step_is_made_again_only_when_its_inputs_changed(packed, tmp_path):
    first = run_recipe(recipe(packed, tmp_path))
    assert first["skipped"] == []
    assert (tmp_path / "work" / "report.html").is_file()
    phases = first["train"]["cost"]["phases"]
    assert set(phases) == {"scoring", "embedding", "extrapolation", "training"}
    assert phases["embedding"]["forward"] == first["index"]["samples"]
    assert first["train"]["cost"]["uncounted"] == []
    again = run_recipe(recipe(packed, tmp_path, train={"workers": 1}))
    assert again == {**first, "skipped": ALL}
    other = run_recipe(recipe(packed, tmp_path, select={"keep_fraction": 0.25}))
    assert other["skipped"] == ["score", "embed", "extrapolate"]
    assert other["train"]["kept"] < first["train"]["kept"]
    before = ss.open_store(tmp_path / "train.zarr").score("seed_dyn_unc")
    seeded = run_recipe(recipe(packed, tmp_path, score={"seed": 5}))
    assert seeded["skipped"] == []
    after = ss.open_store(tmp_path / "train.zarr").score("seed_dyn_unc")
    assert not np.array_equal(before, after, equal_nan=True)
    back = run_recipe(recipe(packed, tmp_path))
    assert back["skipped"] == []
    same = ss.open_store(tmp_path / "train.zarr").score("seed_dyn_unc")
    np.testing.assert_array_equal(before, same)
    assert back["train"]["run"] == first["train"]["run"]


@pytest.mark.slow
def test_a_prediction_of_another_seed_run_is_refused_before_anything_is_trained(packed, tmp_path):
    first = recipe(packed, tmp_path)
    run_recipe(first, until="extrapolate")
    elsewhere = {"work": str(tmp_path / "elsewhere")}
    for changes, message in [
        ({"score": {"seed": 5}}, "was predicted from a seed run with seed 0, got 5; give"),
        ({"score": {"seeds": 0.4}}, "was predicted from other seeds than 0.4 of the samples"),
        ({"score": {"held_out": 0.2}}, "was predicted from other seeds"),
        ({"score": {"adversary": {"steps": 1}}}, "from a seed run that was attacked otherwise"),
    ]:
        with pytest.raises(ValueError, match=message):
            run_recipe(recipe(packed, tmp_path, **elsewhere, **changes))
    assert run_recipe(recipe(packed, tmp_path), until="extrapolate")["skipped"] == ALL[:3]
    # The same chain in another folder comes to the same; what it makes is its own from then on.
    same = run_recipe(recipe(packed, tmp_path, **elsewhere), until="extrapolate")
    assert same["skipped"] == []
    run_recipe(recipe(packed, tmp_path, **elsewhere, score={"seed": 5}), until="extrapolate")


@pytest.mark.slow
def test_a_chain_may_ask_the_networks_of_a_short_run_on_everything(packed, tmp_path):
    short = {"seeds": 1.0, "epochs": 2, "scores": ["el2n"], "batch_size": 32}
    asked = {"score": None, "extrapolate": None, "report": None, "ask": {}}
    path = recipe(packed, tmp_path, **asked)
    made = yaml.safe_load(path.read_text()) | {"score": short}
    path.write_text(yaml.safe_dump(made))
    first = run_recipe(path)
    assert first["ask"]["scores"] == ["asked_el2n"]
    assert "warning" not in first["ask"]
    store = ss.open_store(tmp_path / "train.zarr", mode="r")
    assert np.isfinite(store.score("asked_el2n")).all()
    half = ss.select(store, score="asked_el2n", keep_fraction=0.5)
    assert RunFolder(first["train"]["run"]).identity()["keep"] == half.digest
    assert set(first["train"]["cost"]["phases"]) == {"scoring", "embedding", "training"}
    assert run_recipe(path) == {**first, "skipped": ["score", "embed", "ask", "train"]}
    # Other scores of the same networks embed nothing anew.
    path.write_text(yaml.safe_dump(made | {"ask": {"scores": ["threshold_closeness"]}}))
    other = run_recipe(path)
    assert other["skipped"] == ["score", "embed"]
    assert other["ask"]["scores"] == ["asked_threshold_closeness"]
    assert not ss.open_store(tmp_path / "train.zarr").has_score("asked_el2n")


def test_a_score_of_the_users_own_is_not_asked_for_again(packed, tmp_path):
    store = ss.index(packed[0].pattern, tmp_path / "train.zarr")
    store.put_score("asked_el2n", np.arange(len(store)))
    with pytest.raises(ValueError, match=r"ask: score 'asked_el2n' of .* was made by no"):
        run_recipe(recipe(packed, tmp_path, ask={}))
    assert store.dynamics == []


def test_a_prediction_that_no_recipe_made_is_refused_before_anything_is_trained(packed, tmp_path):
    store = ss.index(packed[0].pattern, tmp_path / "train.zarr")
    made = {"definition": "knn(seed_dyn_unc)", "source": "seed_dyn_unc", "embedding": "seed"}
    store.put_score("dyn_unc", np.arange(len(store)), provenance=made)
    with pytest.raises(ValueError, match="over embedding 'seed', which no recipe made"):
        run_recipe(recipe(packed, tmp_path))
    assert store.dynamics == []


@pytest.mark.parametrize("damaged", ["", "{", "[1]", "\0\0"])
def test_a_damaged_record_of_steps_is_named(packed, tmp_path, damaged):
    path = recipe(packed, tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "steps.json").write_text(damaged)
    with pytest.raises(ss.ShardsieveError, match=r"steps.json is damaged; delete it"):
        run_recipe(path, until="index")


def test_a_record_of_steps_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "work").touch()
    steps = Steps(tmp_path / "work" / "steps.json")
    with pytest.raises(ss.ShardsieveError, match=r"cannot write .*steps.json: .*; free some space"):
        steps.begin("score", "inputs", [], "s.zarr", print)


@pytest.mark.slow
def test_a_killed_chain_goes_on_and_two_processes_make_it_too(packed, tmp_path):
    folders = [tmp_path / "cut", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    policy = {"name": "infobatch", "prune_probability": 0.5}
    changes = {"train": {"epochs": 3, "policy": policy, "policy_score": "learned"}}
    paths = [recipe(packed, folder, **changes) for folder in folders]
    command = ["-m", "shardsieve", "run", paths[0], "--json"]
    embedding = folders[0] / "train.zarr/embedding/*"
    assert forks.killed_at(embedding, *command) == -signal.SIGKILL
    done = json.loads(forks.run(*command).splitlines()[-1])
    assert "score" in done["skipped"]
    assert "train" not in done["skipped"]
    program = ["-m", "shardsieve", "run", paths[1], "--json"]
    two = json.loads(forks.run(*program, ranks=2).splitlines()[-1])
    assert two["train"]["processes"] == 2
    assert two["train"]["policy"]["policy"] == "infobatch"
    assert np.isfinite(ss.open_store(folders[1] / "train.zarr").score("learned")).all()


UNSUPERVISED = {
    "score": None,
    "embed": {"model": "test_pseudo_labels:Pixels"},
    "train": {"pseudo_labels": "seed"},
}


def unsupervised(packed, folder, **turtle):
    """A recipe without a network for the scores; the rest is that of `recipe`."""
    path = recipe(packed, folder, **UNSUPERVISED)
    made = yaml.safe_load(path.read_text())
    made["score"] = {"seeds": 0.5, "turtle": {"classes": 8, "epochs": 60, **turtle}}
    path.write_text(yaml.safe_dump(made))
    return path


@pytest.mark.slow
def test_an_unsupervised_chain_embeds_first_and_trains_on_its_pseudo_labels(packed, tmp_path):
    first = run_recipe(unsupervised(packed, tmp_path))
    assert list(first) == ["index", "embed", "score", "extrapolate", "train", "report", "skipped"]
    assert first["score"]["pseudo_labels"] == "seed"
    store = ss.open_store(tmp_path / "train.zarr")
    assert store.provenance("dyn_unc")["of"]["paradigm"] == "unsupervised"
    run = json.loads((Path(first["train"]["run"]) / "run.json").read_text())
    assert run["pseudo_labels_digest"]
    again = run_recipe(unsupervised(packed, tmp_path))
    assert again == {**first, "skipped": ["embed", "score", "extrapolate", "train", "report"]}
    other = run_recipe(unsupervised(packed, tmp_path, classes=9))
    assert other["skipped"] == ["embed"]
    assert ss.open_store(tmp_path / "train.zarr").pseudo_label_making("seed")["training"] == {
        **store.pseudo_label_making("seed")["training"],
        "classes": 9,
    }
    assert run_recipe(unsupervised(packed, tmp_path), until="embed")["skipped"] == ["embed"]


@pytest.mark.slow
def test_an_unsupervised_chain_finds_the_same_on_two_processes(packed, tmp_path):
    stores = []
    for name in ("alone", "two"):
        (tmp_path / name).mkdir()
        path = unsupervised(packed, tmp_path / name)
        if name == "alone":
            run_recipe(path)
        else:
            forks.run("tools/train_subset.py", path, ranks=2)
        stores.append(ss.open_store(tmp_path / name / "train.zarr"))
    alone, two = stores
    assert two.pseudo_labels("seed").tolist() == alone.pseudo_labels("seed").tolist()
    assert two.scores == alone.scores


@pytest.mark.slow
def test_an_adversarial_chain_attacks_where_it_is_told_to(packed, tmp_path):
    attack = {"method": "pgd", "steps": 1}
    path = recipe(packed, tmp_path, score={"adversary": attack}, train={"adversary": attack})
    done = run_recipe(path)
    made = ss.open_store(tmp_path / "train.zarr").provenance("seed_dyn_unc")
    assert (made["paradigm"], made["adversary"]["method"]) == ("adversarial", "pgd")
    run = json.loads((Path(done["train"]["run"]) / "run.json").read_text())
    assert run["adversary"]["steps"] == 1
    path = recipe(packed, tmp_path, score={"adversary": attack}, train={"adversary": None})
    assert run_recipe(path)["skipped"] == ["score", "embed", "extrapolate", "report"]


@pytest.mark.parametrize(
    ("of_train", "message"),
    [({"pseudo_labels": "sed"}, "recipe.yaml: train: pseudo-labels must be among"), ({}, None)],
)
def test_what_labels_do_not_allow_is_refused_before_anything_is_trained(
    packed, tmp_path, of_train, message
):
    path = unsupervised(packed, tmp_path)
    made = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**made, "train": {**made["train"], **of_train}}))
    if message is None:
        assert run_recipe(path, until="index")["skipped"] == []
        return
    with pytest.raises(ValueError, match=message):
        run_recipe(path)
    assert ss.open_store(tmp_path / "train.zarr").embeddings == []


def test_a_test_store_of_other_classes_is_refused_before_anything_is_trained(packed, tmp_path):
    write_shards(tmp_path, [11], classes=11)
    test = {"store": str(tmp_path / "test.zarr"), "urls": str(tmp_path / "s-000.tar")}
    path = recipe(packed, tmp_path, test=test)
    with pytest.raises(ValueError, match=r"recipe.yaml: test: .* labels below 10, .* got 10 in"):
        run_recipe(path)
    assert not ss.open_store(tmp_path / "train.zarr").scores


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"epocs": 3}}, "train.epocs is no known key; did you mean epochs?"),
        ({"training": {}}, "training is no known key; did you mean train?"),
        ({"select": {"keep_fraction": "half"}}, "select.keep_fraction must be right, got 'half'"),
        ({"data": None}, "data must be given"),
        ({"train": {"epochs": 0}}, "train: epochs must be at least 1, got 0"),
        ({"train": {"policy": {"name": "seto"}}}, "train: policy must be one of annealed"),
        ({"train": {"policy": {"name": "ucb", "perio": 2}}}, "ucb must be given"),
        ({"train": {"model": "resnet"}}, "train: model must be light, resnet18, resnet50 or"),
        ({"train": {"track": ["mlflow"]}}, "train: track must be among tensorboard, wandb"),
        ({"select": {"keep_fraction": 0}}, "select: keep_fraction must lie in (0, 1], got 0"),
        ({"score": {"epochs": 3}}, "score: p_true must have more than window=3 epochs, got 3"),
        ({"score": {"seeds": 3}}, "score: seeds must lie in (0, 1], got 3"),
        ({"score": {"held_out": 1.0}}, "score: held_out must lie in [0, 1), got 1"),
        ({"score": {"snapshots": 0}}, "score: snapshots must be at least 1, got 0"),
        ({"score": {"match_steps_of": 0}}, "score: match_steps_of must be at least 1 epoch, got"),
        ({"score": {"scores": ["el3n"]}}, "score: score must be one of dyn_unc"),
        ({"extrapolate": {"score": "dyn_unk"}}, "extrapolate: score must be one that the seed run"),
        ({"score": {"scores": ["el2n"]}}, "makes (el2n), got 'dyn_unc'"),
        (
            {"score": {"adversary": {"method": "x"}}},
            "score: adversary: method must be one of trades, pgd",
        ),
        ({"score": {"turtle": {}}, "embed": {"model": "a:b"}}, "batch_size, epochs must come with"),
        ({"score": {"turtle": {"class": 3}}}, "score.turtle.class is no known key; did you mean c"),
        ({"embed": {"model": "a.b:c"}}, "embed: cannot load model 'a.b:c': No module named 'a'"),
        ({"embed": None}, "extrapolate must come with score and embed"),
        ({"extrapolate": None}, "score, rule random, or keep_fraction 1 to train on everything"),
    ],
)
def test_a_wrong_key_is_named_before_anything_starts(packed, tmp_path, changes, message):
    path = recipe(packed, tmp_path, **changes)
    with pytest.raises(ss.ShardsieveError) as error:
        run_recipe(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.yaml"]


def test_a_file_that_is_no_recipe_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    with pytest.raises(ss.ShardsieveError, match="no configuration at"):
        read_recipe(path)
    path.write_text("a: [1")
    with pytest.raises(ss.ShardsieveError, match="must be YAML"):
        read_recipe(path)
    path.write_text("- 1")
    with pytest.raises(ss.ShardsieveError, match="must be a mapping with the keys work, data"):
        read_recipe(path)
    with pytest.raises(ValueError, match="until must be one of index, score"):
        run_recipe(path, until="eval")
