import html.parser
import json
import re
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run
from matplotlib.colors import to_hex
from matplotlib.text import Text
from sklearn.decomposition import PCA

import embedding_map
from atomica_hf import StructureError
from embedding_map import MISSING, OTHER, colours_of, draw_map, map_of_parquet, map_page, project, spread


NASTY = ["</script><script>alert(1)</script>", "<b>&amp;</b>", "a\u2028b", "$\\frac{$", "%DATA%", 'quote " \\ end', "plain"]


def vectors_of(count=60, width=8, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)) * np.arange(width, 0, -1)


def write(path, vectors, **columns):
    vectors = [None if vector is None else list(vector) for vector in vectors]
    names = columns.pop("name", [f"m{i}" for i in range(len(vectors))])
    data = {"index": range(len(vectors)), "name": names, **columns, "embedding": pa.array(vectors, pa.list_(pa.float32()))}
    pq.write_table(pa.table({key: value if isinstance(value, pa.Array) else list(value) for key, value in data.items()}), path)
    return path


class Parts(html.parser.HTMLParser):
    """Tags, and the text of the data."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.data, self.title, self.inside = [], "", "", None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.inside = tag if dict(attributes).get("id") != "data" else "data"

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, text):
        if self.inside == "data":
            self.data += text
        elif self.inside == "title":
            self.title += text


def test_the_two_directions_of_most_variance():
    vectors = vectors_of()
    points, axes = project(vectors)
    centred = vectors - vectors.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    assert np.abs(np.abs(points) - np.abs(centred @ directions[:2].T)).max() < 1e-9
    shares = (100 * sizes**2 / (sizes**2).sum()).round().astype(int)
    assert axes == (f"PC1 ({shares[0]} %)", f"PC2 ({shares[1]} %)")
    assert np.abs(points - PCA(2).fit_transform(vectors)).max() < 1e-9


def test_few_vectors_and_copies_have_a_map():
    for vectors in (np.ones((1, 4)), np.ones((5, 4)), vectors_of(2), vectors_of(7, 1)):
        points, axes = project(vectors)
        assert points.shape == (len(vectors), 2) and np.isfinite(points).all() and axes[1] == "PC2 (0 %)"
        draw_map(points, ["x"] * len(points), labels=3)
        map_page(points, ["x"] * len(points))
    for wrong, method, words in (
        (np.ones((0, 4)), "pca", "0 vectors"),
        (np.full((6, 4), np.nan), "pca", "not finite"),
        (np.ones((4, 4)), "tsne", "at least 5"),
        (np.ones((4, 4)), "mds", "'mds', expected one of pca, umap, tsne"),
    ):
        with pytest.raises(StructureError, match=words):
            project(wrong, method)


@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.slow)])  # it compiles itself
def test_neighbourhoods_stay_and_the_seed_decides(method):
    if method == "umap":
        pytest.importorskip("umap", reason="the optional package umap-learn is not installed")
    centres = np.repeat(np.eye(3, 6) * 10, 12, axis=0)
    vectors = centres + 0.1 * vectors_of(36, 6)
    points, _ = project(vectors, method, seed=1)
    again, _ = project(vectors, method, seed=1)
    assert np.array_equal(points, again)
    distances = np.linalg.norm(points[:, None] - points, axis=-1) + np.diag(np.full(36, np.inf))
    assert (distances.argmin(axis=1) // 12 == np.arange(36) // 12).all()


def test_umap_without_its_package_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(StructureError, match="pip install umap-learn"):
        project(vectors_of(), "umap")


def test_numbers_get_a_bar_and_no_value_is_grey():
    values = [1, "2.5", None, float("nan"), "", " ", float("inf"), 4, "nan", np.float32(3)]
    colours = colours_of(values, len(values))
    assert colours.missing == 6 and colours.legend == [(MISSING, "no value (6)")]
    assert [i for i, colour in enumerate(colours.points) if colour == MISSING] == [2, 3, 4, 5, 6, 8]
    low, high = np.percentile([1, 2.5, 4, 3], [1, 99])
    assert colours.limits == (low, high) and colours.beyond == "both" and len(set(colours.points)) == 5
    assert colours_of([5, 5, 5], 3).limits == (5, 5)
    assert colours_of([0, 1, 1], 3, "words").legend == [("#1f77b4", "1 (2)"), ("#ff7f0e", "0 (1)")]
    assert colours_of([True, False, True], 3).legend[0][1] == "True (2)"
    with pytest.raises(StructureError, match="1 values to colour by are no numbers: x"):
        colours_of([1, "x"], 2, "numbers")


def test_frequent_words_have_colours_and_the_others_one():
    values = [f"w{i}" for i in range(24) for _ in range(30 - i)] + [None, ""]
    colours = colours_of(values, len(values))
    assert [text for _, text in colours.legend] == [f"w{i} ({30 - i})" for i in range(20)] + ["other (34)", "no value (2)"]
    assert len({colour for colour, _ in colours.legend}) == 22
    assert colours.points.count(OTHER) == 34 and colours.points[-2:] == [MISSING, MISSING] and colours.limits is None


def test_a_picture_shows_each_point_in_its_colour():
    points, values = vectors_of(30, 2), ["a", "b", None] * 10
    figure = draw_map(points, [f"m{i}" for i in range(30)], values, value_name="kind", labels=4)
    axis = figure.axes[0]
    (dots,) = axis.collections
    drawn = {tuple(place): to_hex(colour) for place, colour in zip(np.asarray(dots.get_offsets()), dots.get_facecolors())}
    expected = {"a": "#1f77b4", "b": "#ff7f0e", None: MISSING}
    assert drawn == {tuple(point): expected[value] for point, value in zip(points, values)}
    assert [to_hex(c) for c in dots.get_facecolors()[:10]] == [MISSING] * 10  # below the others
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a (10)", "b (10)", "no value (10)"]
    assert len(axis.texts) == 4


def test_twenty_words_have_two_marks_and_the_others_are_small():
    values = [f"w{min(i // 5, 22)}" for i in range(120)]
    points = vectors_of(120, 2)
    figure = draw_map(points, values=values)
    circles, squares = figure.axes[0].collections
    assert len(circles.get_offsets()) + len(squares.get_offsets()) == 120 and len(squares.get_offsets()) == 50
    sizes = dict(zip(map(to_hex, circles.get_facecolors()), circles.get_sizes()))
    assert len(sizes) == 11 and sizes[OTHER] == min(sizes.values()) < max(sizes.values())
    marks = [line.get_marker() for line in figure.axes[0].get_legend().get_lines()]
    assert "".join(marks) == "o" * 10 + "s" * 10 + "o"


def test_labels_are_short_and_do_not_cover_each_other(tmp_path):
    points = vectors_of(60, 2) * 0.01
    figure = draw_map(points, ["C1CC[C@H]" * 10] * 60, axes=("x", "y"), title="t", labels=15)
    figure.savefig(tmp_path / "map.png")
    texts = figure.axes[0].texts
    assert len(texts) == 15 and {len(text.get_text()) for text in texts} == {24}
    boxes = [Text.get_window_extent(text).get_points() for text in texts]  # without the line to the point
    overlaps = [(a[0] < b[1]).all() and (a[1] > b[0]).all() for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(overlaps)


def test_the_title_names_the_method_as_the_axes_do(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(embedding_map, "save_figure", lambda figure, file, dpi: drawn.append(figure.axes[0]))
    map_of_parquet(write(tmp_path / "v.parquet", vectors_of(12)), tmp_path / "map.png", method="tsne")
    assert drawn[0].get_title().endswith("12 vectors, t-SNE") and drawn[0].get_xlabel() == "t-SNE 1"


def test_labels_lie_far_from_each_other():
    points = np.array([[0, 0], [0.1, 0], [10, 0], [10, 0.1], [0, 10], [5, 5]])
    assert sorted(i // 2 for i in spread(points, 3)) == [0, 1, 2]
    assert sorted(spread(points, 100)) == list(range(6)) and spread(points, 0) == []
    assert len(set(spread(np.zeros((4, 2)), 3))) == 3


def test_names_are_text_and_never_html_or_formulas(tmp_path):
    path = write(tmp_path / "<v>.parquet", vectors_of(7), name=NASTY, kind=NASTY[::-1])
    outputs = [tmp_path / f"map{ending}" for ending in (".png", ".svg", ".pdf", ".html")]
    map_of_parquet(path, outputs, "kind", labels=7)
    page = Parts(outputs[-1].read_text(encoding="utf-8"))
    assert page.tags.count("script") == 2 and "b" not in page.tags and "<v>.parquet" in page.title
    data = json.loads(page.data)
    assert data["names"] == NASTY and data["texts"] == NASTY[::-1] and data["valueName"] == "kind"
    assert not re.search(r"https?://|src=|href=|innerHTML", outputs[-1].read_text(encoding="utf-8"))
    points, _ = project(np.array(pq.read_table(path)["embedding"].to_pylist()))
    inside = (points - points.min(axis=0)) / np.ptp(points, axis=0)
    assert np.abs(np.array(data["x"]) - (0.03 + 0.94 * inside[:, 0])).max() < 1e-4
    assert np.abs(1 - np.array(data["y"]) - (0.03 + 0.94 * inside[:, 1])).max() < 1e-4
    assert [data["palette"][i] for i in data["colour"]] == colours_of(NASTY[::-1], 7).points
    heads = [outputs[i].read_bytes()[:5] for i in range(3)]
    assert heads[0] == b"\x89PNG\r" and heads[1] == b"<?xml" and heads[2] == b"%PDF-"
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([path.name, *(o.name for o in outputs)])


def test_values_come_from_a_table_of_the_user(tmp_path):
    path = write(tmp_path / "v.parquet", [*vectors_of(5), None, np.full(8, np.nan)])
    table = tmp_path / "t.csv"
    table.write_text("id,logp\nm0,1.5\nm1,\nm2,3\nm2,4\nm4,2\nm4,2\nz,9\n")
    lines = map_of_parquet(path, tmp_path / "m.html", "logp", table=table, join="name=id")
    data = json.loads(Parts((tmp_path / "m.html").read_text(encoding="utf-8")).data)
    assert data["names"] == ["m0", "m1", "m2", "m3", "m4"] and data["texts"] == ["1.5", "", "", "", "2"]
    text = "\n".join(lines)
    assert "5 of 7 vectors" in text and "2 vectors left out" in text and "3 points without a value of logp" in text
    assert "1 points are not in" in text and "'m3'" in text and "several values" in text and "'m2'" in text


def test_of_many_points_some_are_drawn_by_the_seed(tmp_path):
    path = write(tmp_path / "v.parquet", vectors_of(300))
    drawn = {}
    for seed in (0, 0, 1):
        lines = map_of_parquet(path, tmp_path / "m.html", max_points=40, seed=seed)
        assert "40 of 300 vectors" in lines[0] and f"drawn at random (seed {seed})" in lines[1]
        names = json.loads(Parts((tmp_path / "m.html").read_text(encoding="utf-8")).data)["names"]
        assert len(set(names)) == 40 and drawn.setdefault(seed, names) == names
    assert drawn[0] != drawn[1]


def test_what_does_not_fit_is_named(tmp_path):
    path, table = write(tmp_path / "v.parquet", vectors_of(6), parts=[["a"]] * 6), tmp_path / "t.csv"
    table.write_text("name,y\nzz,1\n")
    good = {"output": tmp_path / "m.png"}
    for change, words in (
        ({"output": tmp_path / "m.gif"}, "m.gif: expected a name that ends in .png"),
        ({"color_by": "nothing"}, "no column 'nothing'; there are index, name, parts, embedding"),
        ({"color_by": "parts"}, "parts has lists"),
        ({"color_by": "embedding"}, "holds the vectors"),
        ({"table": table}, "nothing to do without a column"),
        ({"table": table, "color_by": "x"}, "no column 'x'; there are name, y"),
        ({"table": table, "color_by": "y"}, "no name there is a name of the vectors, such as 'm0'; there is 'zz'"),
        ({"table": table, "color_by": "y", "join": "name=id"}, "no column 'id'"),
        ({"label_names": ["m0", "who"]}, "is called who"),
        ({"max_points": 0}, "0 points"),
    ):
        with pytest.raises(StructureError, match=words):
            map_of_parquet(path, **{**good, **change})
    empty = write(tmp_path / "empty.parquet", [np.full(3, np.nan)] * 2)
    with pytest.raises(StructureError, match="all of 2 vectors in embedding are missing or not finite"):
        map_of_parquet(empty, tmp_path / "m.png")
    assert not (tmp_path / "m.png").exists()


def test_the_command_draws_blocks_by_their_token(tmp_path):
    tokens = ["ALA", "GLY", "<global>"] * 4
    path = write(
        tmp_path / "v.parquet", vectors_of(12), block=range(12), token=tokens, origin=[f"A:{token}:1" for token in tokens]
    )
    done = run("embedding_map.py", "--vectors", path, "--output_file", tmp_path / "a/m.png", tmp_path / "a/m.html",
               "--color_by", "token", "--labels", 2, "--label_names", "m3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "12 vectors, pca, axes PC1" in done.stdout and (tmp_path / "a/m.png").stat().st_size > 5000
    data = json.loads(Parts((tmp_path / "a/m.html").read_text(encoding="utf-8")).data)
    assert data["names"][0] == "m0 A:ALA:1 ALA" and [text for _, text in data["legend"]] == [
        "<global> (4)",
        "ALA (4)",
        "GLY (4)",
    ]
    with pytest.raises(StructureError, match="--output_file: expected at least one file"):
        embedding_map.main(["--vectors", str(path)])


def test_numbers_of_any_size_have_their_place():
    vectors = np.random.default_rng(0).normal(size=(12, 4))
    points, axes = project(vectors)
    for scale in (1e300, 1e-300):
        large, same = project(vectors * scale)
        assert same == axes and np.allclose(large / np.ptp(large), points / np.ptp(points))
    far, _ = project(vectors * np.where(np.arange(12) == 3, 1e300, 1)[:, None], "tsne")
    assert np.isfinite(far).all() and np.allclose(far, project(vectors, "tsne")[0], atol=1e-3)


def test_a_title_that_looks_like_a_mark_is_only_a_title():
    page = map_page(np.zeros((2, 2)), ["a", "b"], title="%DATA% %AXES%", axes=("%DATA%", "y"))
    assert page.count('"names"') == 1 and page.count("%DATA% %AXES%") == 2 and "Across: %DATA%; up: y" in page


@pytest.mark.parametrize("options, words", [({"seed": -1}, "The seed is -1"), ({"output": "folder.png"}, "is a folder")])
def test_seeds_and_folders_are_checked(tmp_path, options, words):
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table({"name": ["a", "b"], "embedding": [[1.0, 2.0], [2.0, 1.0]]}), path)
    (tmp_path / "folder.png").mkdir()
    options = {"output": "map.html", **options}
    with pytest.raises(StructureError, match=words):
        map_of_parquet(path, tmp_path / options.pop("output"), **options)


def test_vectors_without_numbers_are_refused(tmp_path):
    pq.write_table(pa.table({"embedding": pa.array([[], []], pa.list_(pa.float32()))}), tmp_path / "v.parquet")
    with pytest.raises(StructureError, match="has no numbers"):
        map_of_parquet(tmp_path / "v.parquet", tmp_path / "map.png")
