"""Whatever is wrong ends in one line with the cure, status 2, and nothing half-written."""

import bz2
import gzip
import sys

import numpy as np
import pytest
from tars import write_shards, write_tar

import shardsieve as ss
from shardsieve import cli


@pytest.fixture
def data(tmp_path):
    """Two good shards and the store of them."""
    return ss.index(write_shards(tmp_path / "d", [5, 4]), tmp_path / "s.zarr")


def empty(tmp_path, data):
    (tmp_path / "d" / "s-000.tar").write_bytes(b"")
    return ["index", f"{tmp_path}/d/s-*.tar", "--store", f"{tmp_path}/new.zarr"]


def truncated(tmp_path, data):
    path = tmp_path / "d" / "s-001.tar"
    path.write_bytes(path.read_bytes()[:3000])
    return ["index", f"{tmp_path}/d/s-*.tar", "--store", f"{tmp_path}/new.zarr"]


def compressed(tmp_path, data):
    path = tmp_path / "d" / "s-001.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    return ["index", f"{tmp_path}/d/s-*.tar", "--store", f"{tmp_path}/new.zarr"]


def no_tar(tmp_path, data):
    (tmp_path / "d" / "s-001.tar").write_bytes(b"no tar at all" * 100)
    return ["index", f"{tmp_path}/d/s-*.tar", "--store", f"{tmp_path}/new.zarr"]


def nothing(tmp_path, data):
    return ["index", f"{tmp_path}/none-*.tar", "--store", f"{tmp_path}/new.zarr"]


def unlabelled(tmp_path, data):
    write_tar(tmp_path / "d" / "bare.tar", [("a.jpg", b"1"), ("b.jpg", b"2")])
    ss.index(tmp_path / "d" / "bare.tar", tmp_path / "bare.zarr")
    return ["score", "--store", f"{tmp_path}/bare.zarr", "--seeds", "1", "--epochs", "12"]


def not_an_image(tmp_path, data):
    return ["score", "--store", str(data.path), "--seeds", "1", "--epochs", "12"]


def not_scored(tmp_path, data):
    data.put_score("mine", np.r_[np.nan, np.arange(8)])
    return ["select", "--store", str(data.path), "--score", "mine"]


def no_score(tmp_path, data):
    return ["select", "--store", str(data.path), "--score", "other"]


def too_much(tmp_path, data):
    return ["select", "--store", str(data.path), "--rule", "random", "--keep-fraction", "1.5"]


def store_of_objects(tmp_path, data):
    return ["info", "--store", "s3://bucket/set.zarr"]


def other_shards(tmp_path, data):
    return ["index", f"{tmp_path}/d/s-000.tar", "--store", str(data.path)]


def replaced(tmp_path, data):
    write_tar(tmp_path / "d" / "s-001.tar", [("z.jpg", b"1")])
    return ["info", "--store", str(data.path)]


def newer(tmp_path, data):
    data.group.attrs["format_version"] = 2
    return ["info", "--store", str(data.path)]


def another_run(tmp_path, data):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"epochs": 3}')
    arguments = ["train", "--store", str(data.path), "--out", f"{tmp_path}/run"]
    return [*arguments, "--keep-fraction", "1", "--size", "8", "--channels", "3"]


def no_paradigm(tmp_path, data):
    return ["score", "--store", str(data.path), "--paradigm", "semi", "--name", "mine"]


def run_on_two_levels(tmp_path, data):
    return ["score", "--store", str(data.path), "--seeds", "1", "--name", "a/b"]


def pseudo_labels_on_two_levels(tmp_path, data):
    data.embedding_array("mine", 2)[:] = 1
    how = ["--paradigm", "unsupervised", "--embedding", "mine", "--epochs", "12"]
    return ["score", "--store", str(data.path), "--seeds", "1", "--name", "a/b", *how]


def embedding_on_two_levels(tmp_path, data):
    return ["embed", "--store", str(data.path), "--model", "light", "--name", "a/b"]


def a_ceiling_of_pseudo_labels(tmp_path, data):
    how = ["--paradigm", "unsupervised", "--ceiling", "--held-out", "0.1"]
    return ["score", "--store", str(data.path), *how]


def an_attack_on_nobody(tmp_path, data):
    return ["score", "--store", str(data.path), "--attack", "pgd"]


def a_layer_of_no_network(tmp_path, data):
    how = ["--score", "mine", "--name", "other", "--layer", "sage", "--labels"]
    return ["extrapolate", "--store", str(data.path), *how]


def no_scores(tmp_path, data):
    return ["score", "--store", str(data.path), "--scores", ""]


def weights_of_no_neighbours(tmp_path, data):
    how = ["--score", "mine", "--name", "other", "--method", "direct", "--weights", "mean"]
    return ["extrapolate", "--store", str(data.path), *how]


def no_seeds(tmp_path, data):
    return ["score", "--store", str(data.path), "--seeds", "0"]


def too_few_seeds(tmp_path, data):
    return ["score", "--store", str(data.path), "--seeds", "0.01", "--size", "8", "--channels", "3"]


def training(tmp_path, data, *options):
    known = ["--out", f"{tmp_path}/run", "--size", "8", "--channels", "3"]
    return ["train", "--store", str(data.path), *known, *options]


def nothing_kept(tmp_path, data):
    return training(tmp_path, data, "--rule", "random", "--keep-fraction", "0.01")


def nothing_kept_by_a_policy(tmp_path, data):
    return training(tmp_path, data, "--policy", "random-dynamic", "--keep-fraction", "0.01")


def a_fraction_twice(tmp_path, data):
    how = ["--policy", "random-dynamic", "--policy-arg", "keep_fraction=0.2"]
    return training(tmp_path, data, *how, "--keep-fraction", "0.3")


def constants_of_no_policy(tmp_path, data):
    return training(tmp_path, data, "--rule", "random", "--policy-arg", "epsilon=1")


def no_policy(tmp_path, data):
    return training(tmp_path, data, "--policy", "infobatc", "--rule", "random")


def a_rule_beside_a_policy(tmp_path, data):
    return training(tmp_path, data, "--policy", "ucb", "--rule", "ccs", "--bins", "5")


def a_fraction_beside_a_policy_without(tmp_path, data):
    return training(tmp_path, data, "--policy", "infobatch", "--keep-fraction", "0.3")


def a_score_beside_a_policy_without(tmp_path, data):
    return training(tmp_path, data, "--policy", "random-dynamic", "--score", "mine")


def tracked_by_nothing(tmp_path, data):
    return training(tmp_path, data, "--rule", "random", "--track", "nothing")


def a_score_in_no_folder(tmp_path, data):
    return ["select", "--store", str(data.path), "--score", "../x"]


def batches_of_less_than_nothing(tmp_path, data):
    data.put_score("mine", np.arange(9))
    how = ["--score", "mine", "--batch-size", "-1", "--out", f"{tmp_path}/ids.txt"]
    return ["select", "--store", str(data.path), *how]


def a_score_for_no_keep_set(tmp_path, data):
    return ["info", "--store", str(data.path), "--score", "mine"]


def a_predicted_reference(tmp_path, data):
    data.put_score("mine", np.arange(9))
    data.put_score("knn", np.arange(9), provenance={"definition": "knn", "source": "mine"})
    how = ["--score", "mine", "--reference", "knn", "--out", f"{tmp_path}/page.html"]
    return ["report", "--store", str(data.path), *how]


def a_reference_with_gaps(tmp_path, data):
    data.put_score("mine", np.arange(9))
    data.put_score("some", np.r_[np.nan, np.arange(8)])
    how = ["--score", "mine", "--reference", "some", "--out", f"{tmp_path}/page.html"]
    return ["report", "--store", str(data.path), *how]


def no_reference(tmp_path, data):
    data.put_score("mine", np.arange(9))
    how = ["--score", "mine", "--reference", "other", "--out", f"{tmp_path}/page.html"]
    return ["report", "--store", str(data.path), *how]


def no_score_to_report(tmp_path, data):
    return ["report", "--store", str(data.path), "--score", "x", "--out", f"{tmp_path}/page.html"]


def a_page_among_objects(tmp_path, data):
    data.put_score("mine", np.arange(9))
    return ["report", "--store", str(data.path), "--score", "mine", "--out", "s3://bucket/p.html"]


def stores_of_objects(tmp_path, data):
    return ["realign", "s3://bucket/set.zarr", str(data.path)]


def no_time(tmp_path, data):
    return ["plan", "--seconds-per-epoch", "nan"]


def no_share_of_an_epoch(tmp_path, data):
    return ["plan", "--extrapolation", "nan"]


def no_value(tmp_path, data):
    return training(tmp_path, data, "--policy", "ucb", "--policy-arg", "c={")


def the_second_of_two_trackers(tmp_path, data):
    return training(tmp_path, data, "--rule", "random", "--track", "nothing", "--track", "wandb")


def a_window_too_small_for_a_score(tmp_path, data):
    store = ["--store", f"{tmp_path}/new.zarr", "--seeds", "1", "--size", "8", "--channels", "3"]
    return ["build", f"{tmp_path}/d/s-*.tar", *store, "--window", "2"]


def a_folder_of_shards(tmp_path, data):
    return ["index", f"{tmp_path}/d", "--store", f"{tmp_path}/new.zarr"]


def folders_among_shards(tmp_path, data):
    (tmp_path / "d" / "more").mkdir()
    return ["index", f"{tmp_path}/d/*", "--store", f"{tmp_path}/new.zarr"]


def half_a_brace(tmp_path, data):
    return ["index", f"{tmp_path}/d/s-{{000..001.tar", "--store", f"{tmp_path}/new.zarr"]


def no_list(tmp_path, data):
    (tmp_path / "shards.txt").write_bytes(b"\xff\xfe\x00")
    return ["index", f"{tmp_path}/shards.txt", "--store", f"{tmp_path}/new.zarr"]


def a_place_that_is_taken(tmp_path, data):
    (tmp_path / "taken").mkdir()
    return ["index", f"{tmp_path}/d/s-*.tar", "--store", f"{tmp_path}/taken"]


def a_shard_that_is_gone(tmp_path, data):
    (tmp_path / "d" / "s-001.tar").unlink()
    return ["select", "--store", str(data.path), "--rule", "random"]


def a_full_run_of_seeds(tmp_path, data):
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "result.json").write_text('{"cost": {"forward": 1}, "seeds": 3}')
    return training(tmp_path, data, "--rule", "random", "--full-run", f"{tmp_path}/seeds")


def packed_otherwise(tmp_path, data):
    path = tmp_path / "d" / "s-001.tar"
    path.write_bytes(bz2.compress(path.read_bytes()))
    return ["index", f"{tmp_path}/d/s-*.tar", "--store", f"{tmp_path}/new.zarr"]


def a_label_of_no_class(tmp_path, data):
    members = [("a.jpg", b"1"), ("a.cls", b"0"), ("b.jpg", b"1"), ("b.cls", b"1000000000")]
    write_tar(tmp_path / "d" / "far.tar", members)
    ss.index(tmp_path / "d" / "far.tar", tmp_path / "far.zarr")
    known = ["--out", f"{tmp_path}/run", "--size", "8", "--channels", "3"]
    return ["train", "--store", f"{tmp_path}/far.zarr", "--rule", "random", *known]


def images_of_three_pixels(tmp_path, data):
    how = ["--rule", "random", "--out", f"{tmp_path}/run", "--size", "3", "--channels", "3"]
    return ["train", "--store", str(data.path), *how]


def a_resolution_of_three_pixels(tmp_path, data):
    return training(tmp_path, data, "--rule", "random", "--resolutions", "0:3")


def no_image_to_guess_by(tmp_path, data):
    return ["train", "--store", str(data.path), "--rule", "random", "--out", f"{tmp_path}/run"]


def seeds_for_no_folds(tmp_path, data):
    how = ["--epochs", "12", "--seeds", "0.4", "--size", "8", "--channels", "3"]
    return ["build", f"{tmp_path}/d/s-*.tar", "--store", str(data.path), *how]


def held_out_for_no_folds(tmp_path, data):
    """All are seeds, and of a tenth of them fused learns."""
    return [*seeds_for_no_folds(tmp_path, data), "--seeds", "1", "--method", "fused"]


def a_prediction_of_a_recipe(tmp_path, data):
    made = {"definition": "knn(seed_dyn_unc)", "source": "seed_dyn_unc", "embedding": "embedding-1"}
    data.put_score("dyn_unc", np.arange(len(data)), provenance=made)
    how = ["--epochs", "12", "--seeds", "1", "--size", "8", "--channels", "3"]
    return ["build", f"{tmp_path}/d/s-*.tar", "--store", str(data.path), *how]


def a_fraction_beside_a_threshold(tmp_path, data):
    how = ["--rule", "threshold", "--threshold", "1", "--keep-fraction", "0.1"]
    return ["select", "--store", str(data.path), *how]


def half_of_nothing_chosen(tmp_path, data):
    return ["pack", "digits", f"{tmp_path}/tars", "--keep-fraction", "0.5"]


def a_split_of_shards(tmp_path, data):
    how = ["--to", "beton", "--test-fraction", "0.1"]
    return ["pack", f"{tmp_path}/d/s-*.tar", f"{tmp_path}/all.beton", *how]


def tars_of_a_beton(tmp_path, data):
    how = ["--to", "beton", "--samples-per-shard", "10"]
    return ["pack", "digits", f"{tmp_path}/betons", *how]


def pages_of_tars(tmp_path, data):
    return ["pack", "digits", f"{tmp_path}/tars", "--page-size", "4194304"]


def weights_of_no_model(tmp_path, data):
    return ["embed", "--store", str(data.path), "--weights", f"{tmp_path}/weights.pt"]


def checkpoints_backwards(tmp_path, data):
    how = ["--epochs", "12", "--checkpoint-steps", "-1", "--size", "8", "--channels", "3"]
    return ["score", "--store", str(data.path), "--seeds", "1", *how]


CASES = [
    (empty, "is empty"),
    (truncated, "truncated"),
    (compressed, "gzip"),
    (no_tar, "not a tar"),
    (nothing, "no shards match"),
    (unlabelled, "label"),
    (not_an_image, "cannot"),
    (not_scored, "run `shardsieve extrapolate` first"),
    (no_score, "put_score"),
    (too_much, "keep_fraction must lie in (0, 1], got 1.5"),
    (store_of_objects, "--store must be a local path, got s3:/bucket/set.zarr"),
    (other_shards, "choose another --store"),
    (replaced, "index again"),
    (newer, "upgrade shardsieve"),
    (another_run, "choose another folder"),
    (no_paradigm, "paradigm must be one of supervised, adversarial, unsupervised, got 'semi'"),
    (run_on_two_levels, "name must be made of letters"),
    (pseudo_labels_on_two_levels, "name must be made of letters"),
    (embedding_on_two_levels, "name must be made of letters"),
    (a_ceiling_of_pseudo_labels, "--held-out, --ceiling must come without --paradigm unsup"),
    (an_attack_on_nobody, "must come with --paradigm adversarial"),
    (a_layer_of_no_network, "--layer, --labels must come with --method gnn"),
    (no_scores, "--scores must name a score, got ''; leave it out for all"),
    (weights_of_no_neighbours, "--weights must come with --method knn"),
    (no_seeds, "seeds must lie in (0, 1], got 0.0"),
    (too_few_seeds, "seeds must draw a sample, got 0.01 of 9"),
    (nothing_kept, "the keep set must hold a sample, got none of 9"),
    (nothing_kept_by_a_policy, "the keep set must hold a sample, got none of 9"),
    (a_fraction_twice, "--keep-fraction must come without --policy-arg keep_fraction, or"),
    (constants_of_no_policy, "--policy-arg must come with --policy, got 'epsilon' alone"),
    (no_policy, "policy must be one of annealed, epsilon-greedy"),
    (a_fraction_beside_a_policy_without, "--keep-fraction must come without --policy infobatch"),
    (a_score_beside_a_policy_without, "--score must come without --policy random-dynamic"),
    (a_rule_beside_a_policy, "--rule, --bins must come without --policy"),
    (tracked_by_nothing, "leave it empty for none"),
    (checkpoints_backwards, "checkpoint_steps must be at least 0, got -1"),
    (a_fraction_beside_a_threshold, "--keep-fraction must come without --rule threshold"),
    (half_of_nothing_chosen, "--keep-fraction must come with --keep, or would be left unused"),
    (a_split_of_shards, "--test-fraction must come with images"),
    (tars_of_a_beton, "--samples-per-shard must come with --to tar"),
    (pages_of_tars, "--page-size must come with --to beton"),
    (weights_of_no_model, "--weights must come with --model"),
    (packed_otherwise, "is bzip2-compressed; unpack it"),
    (a_label_of_no_class, "labels must number the classes from 0, got 1000000000"),
    (images_of_three_pixels, "size must be at least 4 pixels for model light, got 3"),
    (a_resolution_of_three_pixels, "size must be at least 4 pixels for model light, got 3"),
    (no_image_to_guess_by, "it is no image that Pillow knows; give size and channels"),
    (a_prediction_of_a_recipe, "was predicted with embedding embedding-1, got seed; give"),
    (seeds_for_no_folds, "must be tried on a seed per fold, 5, got 4 of 4 seeds; give more seeds"),
    (held_out_for_no_folds, "tried on a held-out seed per fold, 5, got 1 of 9 seeds; give more"),
    (a_folder_of_shards, "shards must be files, got the folder"),
    (folders_among_shards, "/d/more; name"),
    (half_a_brace, "shards must be named as in train-{000..099}.tar, got"),
    (no_list, "it must be text with one shard a line"),
    (a_place_that_is_taken, "is there and holds no store; choose another place"),
    (a_shard_that_is_gone, "were indexed, `shardsieve check --moved-to FOLDER`"),
    (a_full_run_of_seeds, "must be a training of `shardsieve train`, got another run"),
    (a_score_in_no_folder, "got '../x'; run `shardsieve score`"),
    (batches_of_less_than_nothing, "batch_size must be a whole number of at least 1, got -1"),
    (a_score_for_no_keep_set, "--score must come with --keep"),
    (a_predicted_reference, "measured on every sample, got 'knn', predicted from 'mine'"),
    (a_reference_with_gaps, "measured on every sample, got 'some', which 1 of 9 lack"),
    (no_score_to_report, "score must be one of those in"),
    (no_reference, "score must be one of those in"),
    (a_page_among_objects, "--out must be a local path, got s3:/bucket/p.html"),
    (stores_of_objects, "SOURCE must be a local path, got s3:/bucket/set.zarr"),
    (no_time, "seconds_per_epoch must be above 0, got nan"),
    (no_share_of_an_epoch, "extrapolation must be at least 0, got nan"),
    (no_value, "--policy-arg c must be a value as in YAML: "),
    (the_second_of_two_trackers, "track must be among tensorboard, wandb, got 'nothing'"),
    (
        a_window_too_small_for_a_score,
        "of score tdds, which `shardsieve score --scores` can leave out",
    ),
]


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_misspelt_model_does_not_take_the_folder_of_the_right_one(
    tmp_path, data, monkeypatch, capsys
):
    for model, message in (("lihgt", "model must be light"), ("light", "cannot decode sample")):
        how = ["--seeds", "1", "--epochs", "12", "--size", "8", "--channels", "3"]
        arguments = ["score", "--store", str(data.path), *how, "--model", model]
        monkeypatch.setattr(sys, "argv", ["shardsieve", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        err = capsys.readouterr().err
        assert message in err
    assert "leave such samples out: --max-unreadable" in err


@pytest.mark.parametrize(("spoil", "message"), CASES, ids=[c[0].__name__ for c in CASES])
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path, data, monkeypatch, capsys, spoil, message
):
    arguments = spoil(tmp_path, data)
    before = files(tmp_path)
    monkeypatch.setattr(sys, "argv", ["shardsieve", *arguments])
    with pytest.raises(SystemExit) as done:
        cli.main()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("shardsieve:")]
    assert done.value.code == 2
    assert len(said) == 1
    assert message in said[0]
    after = files(tmp_path)
    assert all(after[path] == before[path] for path in before)
    assert not [path for path in set(after) - set(before) if ".runs" not in str(path)]
