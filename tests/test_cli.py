import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from tars import write_shards, write_tar
from torch.utils.data import DataLoader
from typer.main import get_command

import shardsieve as ss
from shardsieve.cli import app, main, run
from shardsieve.commands.extrapolating import extrapolate_score


@pytest.fixture
def cli(monkeypatch, capfd):
    """Runs the program here; returns its exit status, output and error output."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["shardsieve", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capfd.readouterr()

    return call


@pytest.fixture
def store(tmp_path):
    return ss.index(write_shards(tmp_path / "d", [30, 30]), tmp_path / "s.zarr")


def test_index_info_and_select_speak_json(cli, tmp_path):
    write_shards(tmp_path / "d", [4, 2])
    pattern, path = f"{tmp_path}/d/s-{{000..001}}.tar", tmp_path / "s.zarr"

    def told(*arguments):
        status, output, _ = cli(*arguments, "--store", path, "--json")
        assert status == 0
        return json.loads(output)

    assert told("index", pattern)["samples"] == 6
    assert told("info")["classes"] == 3
    assert (told("info")["members"], told("info")["scores"]) == (["cls", "jpg"], [])
    assert cli("info", "--store", path)[1].splitlines()[5] == "members: cls jpg"
    chosen = ["--rule", "random", "--keep-fraction", "0.5", "--out", tmp_path / "ids"]
    kept = told("select", *chosen)
    assert sum(row["kept"] for row in kept["classes"]) == kept["kept"] == 3
    assert len((tmp_path / "ids").read_text().split()) == 3
    assert told("check")["same"] is True


def test_an_error_of_a_loaders_worker_is_one_line(store, capfd):
    Path(store.urls[0]).unlink()
    loader = DataLoader(ss.ShardDataset(store), collate_fn=list, num_workers=1)
    assert run(lambda: list(loader)) == 2
    wanted = r"shardsieve: cannot read shard .*No such file or directory \(sample 00-0000, .*\)\n"
    assert re.fullmatch(wanted, capfd.readouterr().err)


def test_a_ctrl_c_is_one_line(cli, capfd, monkeypatch, tmp_path):
    def walked(*_, **__):
        raise KeyboardInterrupt

    write_shards(tmp_path / "d", [4])
    monkeypatch.setattr("shardsieve.store.walking.index_shard", walked)
    status, _, said = cli("index", tmp_path / "d" / "s-000.tar", "--store", tmp_path / "s.zarr")
    assert (status, said.count("\n")) == (130, 1)
    assert "interrupted; the same command goes on" in said
    assert run(walked) == 130  # of a tool that is none of typer's
    assert capfd.readouterr().err == said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "nothing-*.tar", "--store", "s"], "no shards match nothing-*.tar"),
        (["info", "--store", "nowhere"], "no store at nowhere"),
    ],
)
def test_a_users_error_is_one_line_with_status_2(cli, arguments, message):
    status, output, said = cli(*arguments)
    assert (status, output) == (2, "")
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score"], "missing option '--store'; see `shardsieve score --help`"),
        (["index", "--store", "s"], "missing argument 'urls'; see `shardsieve index --help`"),
        (["score", "--bogus"], "no such option: --bogus; see `shardsieve score --help`"),
        (["select", "--keep", "1"], "no such option: --keep (Possible options: --keep-fraction, "),
        (
            ["plan", "--keep-fraction", "1"],
            "no such option: --keep-fraction (Possible options: --keep)",
        ),
        (["sort"], "no such command 'sort'. Did you mean 'score', "),
        (["select", "--store", "s", "--bins", "few"], "invalid value for '--bins': "),
    ],
)
def test_a_misspelt_command_line_is_one_line_with_status_2(cli, arguments, message):
    status, output, said = cli(*arguments)
    assert (status, output) == (2, "")
    assert said.startswith(f"shardsieve: {message}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (
            ["train", "--out", "x", "--evaluate-every", "2"],
            "--evaluate-every must come with --test",
        ),
        (["score", "--from-dynamics", "seed", "--epochs", "3"], "--epochs must come without --fr"),
        (["score", "--from-dynamics", "seed", "--model", "x"], "--model must come without --from"),
        (["score", "--from-embedding", "--ceiling"], "--ceiling must come without --from-embedd"),
        (["score", "--from-embedding", "--window", "5"], "--window must come without --from-emb"),
        (["score", "--epochs", "9", "--match-steps-of", "6"], "--epochs must come without --match"),
        (["score", "--classes", "5"], "--classes must come with --paradigm unsupervised"),
        (
            ["score", "--paradigm", "unsupervised", "--workers", "2"],
            "--workers must come without --paradigm unsupervised",
        ),
        (
            ["extrapolate", "--name", "x", "--append", "--k", "5", "--score", "y"],
            "--score, --k must come without --append",
        ),
        (
            ["extrapolate", "--name", "x", "--append", "--folds", "5"],  # the usual value
            "--folds must come without --append",
        ),
        (
            ["extrapolate", "--name", "x", "--score", "y", "--method", "gnn", "--search", "ivf"],
            "--search must come with --method knn",
        ),
        (
            ["extrapolate", "--name", "x", "--score", "y", "--keep-fraction", "7"],
            "keep_fraction must lie in (0, 1], got 7",
        ),
        (["embed", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["embed", "--size", "0"], "size must be at least 1 pixel, got 0"),
        (["embed", "--precision", "fp8"], "precision must be one of no, bf16, fp16, got 'fp8'"),
        (["score", "--channels", "2"], "channels must be 1 or 3, got 2"),
        (["embed"], "; run `shardsieve score` first, or pass --model"),
    ],
)
def test_what_would_not_be_looked_at_or_cannot_be_is_refused(cli, store, arguments, message):
    status, output, said = cli(*arguments, "--store", store.path)
    assert (status, output) == (2, "")
    assert message in said
    assert said.count("\n") == 1
    assert not store.scores
    assert not store.embeddings


def test_every_option_says_what_it_is_for():
    commands = get_command(app).commands
    silent = [
        f"{name} {parameter.opts[0]}"
        for name, command in commands.items()
        for parameter in command.params
        if not parameter.help
    ]
    assert not silent
    assert all(
        command.help and "Example: shardsieve" in command.epilog for command in commands.values()
    )


def test_help_is_no_error_and_who_says_nothing_gets_it(cli):
    assert cli("select", "--help")[::2] == (0, "")
    status, output, said = cli()
    assert (status, "Usage: shardsieve" in output + said) == (2, True)
    assert "shardsieve: " not in said


def test_the_program_is_a_process_that_says_no_more_than_that():
    command = [sys.executable, "-m", "shardsieve", "info", "--store", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("shardsieve: no store at nowhere")
    assert done.stderr.count("\n") == 1


def test_extrapolation_keeps_seeds_and_fills_the_rest(store):
    points = np.random.default_rng(0).normal(size=(60, 2))
    array = store.embedding_array("mine", 2)
    array[:, :30] = points.reshape(2, 30, 2)
    seeds = np.where(np.arange(60) % 2, points.sum(axis=1), np.nan)
    store.put_score("seed", seeds, provenance={"definition": "sum"})
    made = extrapolate_score(store.path, "seed", "full", None, k=5)
    full = store.score("full")
    assert np.isfinite(full).all()
    np.testing.assert_array_equal(full[1::2], seeds[1::2].astype(np.float32))
    assert (made["seeds"], made["predicted"]) == (30, 30)
    assert store.provenance("full")["quality"]["spearman"] == made["spearman"] > 0.7
    assert np.corrcoef(full, points.sum(axis=1))[0, 1] > 0.8
    with pytest.raises(ss.MissingScoreError, match=r"\(mine\), got 'other'"):
        extrapolate_score(store.path, "seed", "x", "other")


COMMANDS = get_command(app).commands


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["info", "--help", "--version"])
def test_output_to_a_full_disk_is_one_line(store, command, unbuffered):
    options = ["--store", str(store.path)] if command == "info" else []
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "shardsieve", command, *options],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ended.returncode == 2
    told = "cannot print the result: " if options else ""
    assert re.fullmatch(f"shardsieve: {told}No space left .*\n", ended.stderr)


def test_a_name_that_a_terminal_would_obey_is_printed_as_what_it_is(cli, tmp_path):
    clear = "\x1b[2J"
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b""), (f"a.{clear}x", b"")])
    store = ss.index(path, tmp_path / "s.zarr").path
    assert r"members: \x1b[2jx jpg" in cli("info", "--store", store)[1]
    write_tar(tmp_path / "b.tar", [(f"{clear}.x", b"")] * 2)
    status, output, told = cli("index", tmp_path / "b.tar", "--store", tmp_path / "t.zarr")
    assert (status, output) == (2, "")
    assert r"repeats the member \x1b[2J.x" in told


def test_the_program_says_which_release_it_is(cli):
    assert cli("--version") == (0, f"shardsieve {version('shardsieve')}\n", "")
    assert ss.__version__ == version("shardsieve")


def test_commands_stand_in_the_order_of_the_work():
    assert list(COMMANDS)[:3] == ["pack", "realign", "index"]
    assert list(COMMANDS)[-2:] == ["train", "run"]
    at = list(COMMANDS).index("ask")
    assert list(COMMANDS)[at - 1 : at + 2] == ["embed", "ask", "extrapolate"]
    assert len(COMMANDS) == 17


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_it_understands(name):
    command = COMMANDS[name]
    program, given, *arguments = shlex.split(command.epilog.removeprefix("Example: "))
    assert (program, given) == ("shardsieve", name)
    context = command.make_context(name, arguments)
    assert context.params
    assert len(command.epilog) <= 90


def rows_under(name, shown):
    """The rows of a table that a command shows, by the names above its columns."""
    lines = shown.split(f"{name}:\n")[1].splitlines()
    table = list(itertools.takewhile(lambda line: line.startswith("  "), lines))
    return [dict(zip(table[0].split(), row.split(), strict=True)) for row in table[1:]]


def test_select_shows_a_page_of_many_classes(cli, tmp_path):
    write_shards(tmp_path / "d", [90, 10], classes=40)
    store = ss.index(f"{tmp_path}/d/*.tar", tmp_path / "s.zarr")
    store.put_score("label", store.labels() + np.arange(100) / 1000)
    asked = ["select", "--store", store.path, "--score", "label", "--keep-fraction", 0.3]
    shown = cli(*asked)[1]
    assert "classes: 40\n" in shown
    least, most = (rows_under(name, shown) for name in ("least_kept", "most_kept"))
    assert [row["class"] for row in least] == list(map(str, range(10)))
    assert [row["class"] for row in most] == list(map(str, range(39, 29, -1)))
    every = json.loads(cli(*asked, "--json")[1])["classes"]
    assert [row["class"] for row in every] == list(range(40))
    (tmp_path / "d" / "classes.json").write_text('["ant", "bee"]')
    named = [line.split() for line in cli(*asked)[1].split("least_kept:\n")[1].splitlines()[:4]]
    assert [cells[1] for cells in named[:3]] == ["name", "ant", "bee"]
    assert len(named[3]) == len(named[2]) - 1  # the third class has no name
    assert sum(row["kept"] for row in every) == 30
    assert [str(row["kept"]) for row in every[:10]] == [row["kept"] for row in least]


@pytest.mark.parametrize("command", ["select", "export"])
def test_a_result_makes_its_folder_or_is_refused_in_one_line(cli, store, tmp_path, command):
    def write(out):
        option = ["--out"] if command == "select" else []
        how = ["--rule", "random", "--keep-fraction", "0.5"]
        return cli(command, "--store", store.path, *how, *option, out)

    assert write(tmp_path / "new" / "folder" / "ids")[0] == 0
    assert len((tmp_path / "new" / "folder" / "ids").read_text().split()) == 30
    status, _, said = write(tmp_path)
    assert status == 2
    assert said.startswith(f"shardsieve: cannot write {tmp_path}: ")
    assert said.count("\n") == 1


def test_a_damaged_image_does_not_keep_a_report_from_being_written(cli, store, tmp_path):
    store.put_score("up", range(60))
    members = ss.ShardDataset(store)[0]
    assert not members["jpg"].startswith(b"\xff\xd8")  # no image at all
    page = tmp_path / "report.html"
    assert cli("report", "--store", store.path, "--score", "up", "--out", page)[0] == 0
    assert page.read_text().count("data:image/png") >= 2


def test_commands_that_train_nothing_load_no_torch(store, tmp_path):
    """The program starts faster without."""
    at = f"--store {store.path}"
    store.put_score("mine", np.arange(60.0))
    ss.index(store.urls, tmp_path / "other.zarr")
    commands = ["--help", "train --help", "plan --seeds 0.2", f"info {at} --keep 0.5"]
    commands += [f"select {at} --score mine", f"export {at} --score mine {tmp_path}/ids.txt"]
    commands += [f"check {at}", f"realign {store.path} {tmp_path}/other.zarr"]
    commands += [f"index {store.urls[0]} --store {tmp_path}/third.zarr"]
    code = "import sys; from shardsieve.cli import app\n"
    code += f"for command in {commands}:\n"
    code += "    try: app(command.split(), standalone_mode=False)\n"
    code += "    except SystemExit: pass\n"
    code += "    assert 'torch' not in sys.modules, command"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
