"""What the report draws."""

import base64
import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from tars import write_shards, write_tar

import shardsieve as ss
from shardsieve.commands.classes import class_names, names_beside
from shardsieve.commands.reporting import report_score
from shardsieve.report.figures import _bins, against, contact_sheet, histogram, shares, spread_of
from shardsieve.report.page import _class_shares


@pytest.mark.parametrize(("classes", "by_share"), [(10, False), (1000, True)])
def test_many_classes_are_drawn_from_the_least_kept_to_the_most(classes, by_share):
    kept = np.linspace(0, 1, classes).tolist()
    names = [str(one) for one in range(classes)]
    assert (shares(names, kept, 0.5) == shares(names, kept[::-1], 0.5)) is by_share


def test_only_where_something_is_predicted_is_told_apart_what_was_measured(monkeypatch):
    scores, told = np.arange(9, dtype=np.float32), []
    monkeypatch.setattr(Axes, "legend", lambda self, *_, **how: told.append(_))
    for measured in (scores >= 0, scores > 3, scores < 0):
        histogram(scores, measured, 4.0)
    assert [names for _, names in told] == [["predicted", "measured"]] * 2


def test_far_tails_leave_more_than_one_bar():
    scores = np.random.default_rng(0).normal(1, 0.01, 10_000).astype(np.float32)
    plain, says = _bins(scores)
    assert (plain[0], plain[-1], says) == (scores.min(), scores.max(), "")
    scores[:20] = np.linspace(0, 3, 20)
    edges, says = _bins(scores)
    assert (np.histogram(scores, edges)[0] > 0).mean() > 0.9
    assert 0.95 < edges[0] < 1 < edges[-1] < 1.05
    assert "0.5%" in says
    drawn = histogram(scores, scores > 1, 0.2), spread_of(scores, scores > 1)
    assert len({*drawn}) == 2
    assert _bins(np.ones(9, np.float32))[1] == ""


@pytest.mark.parametrize(("samples", "as_points"), [(2_000, True), (30_000, False)])
def test_points_that_would_merge_are_drawn_as_counts(samples, as_points):
    scores = (np.arange(samples) % 2).astype(np.float32)
    drawn = base64.b64decode(against(scores, scores).partition(",")[2])
    colours = {one for _, one in Image.open(io.BytesIO(drawn)).convert("RGB").getcolors(1 << 24)}
    assert ((59, 110, 165) in colours) is as_points


def test_names_of_classes_beside_objects_are_found_where_they_may_be_read(s3, tmp_path):
    names = tmp_path / "classes.json"
    names.write_text('["ant", "bee", "cat"]')
    url, _ = s3.upload([*write_shards(tmp_path, [3]), names], "a b/")
    store = ss.index([url], tmp_path / "s.zarr")
    assert class_names(store) == ["ant", "bee", "cat"]
    assert names_beside(f"s3://{s3.bucket}/s-000.tar") is None
    s3.refuse = lambda environ: "403 Forbidden"
    assert class_names(store) is None


@pytest.mark.parametrize("text", ['{"bee": 1, "ant": 0}', "[1, 2, 3]", "5", "ant bee", "\xff"])
def test_what_others_call_classes_json_is_no_list_of_names(tmp_path, text):
    store = ss.index(write_shards(tmp_path, [3]), tmp_path / "s.zarr")
    (tmp_path / "classes.json").write_text(text, encoding="latin1")
    assert class_names(store) is None


def test_names_are_of_the_usual_labels(tmp_path):
    (tmp_path / "classes.json").write_text('["ant", "bee", "cat"]')
    write_tar(tmp_path / "s.tar", [("a.cls", b"0"), ("a.fine", b"2")])
    usual, fine = (
        ss.index([tmp_path / "s.tar"], tmp_path / m, label_member=m) for m in ("cls", "fine")
    )
    assert (class_names(usual), class_names(fine)) == (["ant", "bee", "cat"], None)


def test_samples_without_a_label_are_called_so(tmp_path):
    store = ss.index(write_shards(tmp_path, [4]), tmp_path / "s.zarr", label_member="none")
    names, kept = _class_shares(store, np.arange(2), ["ant", "bee"])
    assert (names, kept) == (["unlabelled"], [0.5])


def test_a_fraction_that_keeps_nothing_is_refused(tmp_path):
    store = ss.index(write_shards(tmp_path, [4]), tmp_path / "s.zarr")
    store.put_score("mine", range(4))
    how = {"score": "mine", "keep_fraction": 0.1, "reference": None}
    with pytest.raises(ValueError, match="keep_fraction must keep at least 1 of 4 samples"):
        report_score(store.path, tmp_path / "r.html", **how)


def test_names_of_classes_are_no_formulas_and_words_of_others_no_figures(tmp_path):
    """A `$` in two names, or a quality that is a word of the user's, was a traceback."""
    (tmp_path / "classes.json").write_text(r'["$\\over$", "<b>", "US$1 or $2"]')
    pixels = io.BytesIO()
    Image.new("RGB", (8, 8)).save(pixels, "PNG")
    members = [
        (f"{n}.{suffix}", data)
        for n in range(3)
        for suffix, data in (("png", pixels.getvalue()), ("cls", b"%d" % n))
    ]
    store = ss.index(write_tar(tmp_path / "s.tar", members), tmp_path / "s.zarr")
    made = {"definition": "<script>", "quality": "good"}
    store.put_score("mine", range(3), provenance=made)
    how = {"score": "mine", "keep_fraction": 0.5, "reference": None}
    report_score(store.path, tmp_path / "r.html", **how)
    page = (tmp_path / "r.html").read_text()
    assert "&lt;script&gt;: 3 samples measured" in page
    assert "<script>" not in page
    assert "Held-out quality" not in page


def test_samples_without_an_image_are_grey_squares(tmp_path):
    pixels = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(pixels, "PNG")
    members = [("a.txt", b"text"), ("b.png", b"damaged"), ("c.png", pixels.getvalue())]
    store = ss.index(write_tar(tmp_path / "s.tar", members), tmp_path / "s.zarr")
    sheet = contact_sheet(store, store.ids(), columns=3).partition(",")[2]
    tiles = Image.open(io.BytesIO(base64.b64decode(sheet)))
    across = [tiles.getpixel(((2 * n + 1) * tiles.width // 6, tiles.height // 2)) for n in range(3)]
    assert across == [(128, 128, 128), (128, 128, 128), (255, 0, 0)]
