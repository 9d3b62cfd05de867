# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""A picture of vectors that run_embedding.py wrote: one point each, in two dimensions, coloured by a column.

python embedding_map.py --vectors vectors.parquet --output_file map.png map.html
python embedding_map.py --vectors vectors.parquet --output_file map.svg --method umap \\
    --table molecules.csv --join name --color_by logp --labels 20
"""

import html
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from transformers.hf_argparser import HfArg

from atomic_files import save_figure, write_text
from atomica_hf import StructureError
from atomica_hf.structure_atomica import read_table
from embedding_files import EmbeddingFiles, describe
from script_arguments import ScriptParser, run_script
from structure_page import json_for_html


METHODS = {"pca": "PCA", "umap": "UMAP", "tsne": "t-SNE"}
PICTURES, PAGE = (".png", ".svg", ".pdf"), ".html"
COLOUR_AS = ("auto", "numbers", "words")
SMALLEST, LARGEST = 1e-100, 1e100  # whose squares, and sums of them, are numbers
PAIRS = [to_hex(colour) for colour in colormaps["tab20"].colors]
PAIRS[14:16] = "#000000", "#e3b505"  # its greys would look like what has no value
SQUARES = PAIRS[1::2]  # a second round of colours, lighter and with another mark
PALETTE = PAIRS[::2] + SQUARES
PLAIN, OTHER, MISSING = "#1f77b4", "#b3bfca", "#d0d0d0"
LABEL_LENGTH, LABEL_SIZE, LABEL_DISTANCES = 24, 7, (4, 10, 18, 28, 40)  # characters; points


# projection -----------------------------------------------------------------------------------------------------------------


def project(vectors, method="pca", seed=0):
    """Vectors `(n, width)` -> (points `(n, 2)`, names of the two axes).

    Args:
        method (`str`): `pca`, the two directions in which they vary most, with their share of the variance; `umap` (McInnes et
            al., 2018), 15 neighbours; or `tsne` (van der Maaten and Hinton, 2008), perplexity 30. The last two take fewer for
            few vectors, and cosine distances.
        seed (`int`): of `umap` and `tsne`.

    Raises:
        `StructureError`: if a number is not finite, there are fewer than 1 (`pca`) or 5 vectors, the method is unknown, or its
            package is missing.
    """
    vectors = np.asarray(vectors, np.float64)
    if method not in METHODS:
        raise StructureError("usage", f"The method is {method!r}, expected one of {', '.join(METHODS)}.")
    if not np.isfinite(vectors).all():
        raise StructureError("bad_vectors", "Some vectors have numbers that are not finite, which have no place on a map.")
    needed = 1 if method == "pca" else 5
    if len(vectors) < needed:
        raise StructureError("few_vectors", f"{len(vectors)} vectors, expected at least {needed} for {method}.")
    largest = np.abs(vectors).max(axis=None if method == "pca" else 1, keepdims=True, initial=0)
    as_it_is = (largest == 0) | ((largest > SMALLEST) & (largest < LARGEST))
    vectors = vectors / np.where(as_it_is, 1, largest)  # neither angles nor shares of the variance change
    if method == "pca":
        return _principal_components(vectors)
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise StructureError("no_package", "--method umap needs the package umap-learn: pip install umap-learn") from error
        neighbours = min(15, len(vectors) - 1)
        init = "spectral" if len(vectors) > 10 else "random"
        points = UMAP(n_neighbors=neighbours, metric="cosine", init=init, random_state=seed, n_jobs=1).fit_transform(vectors)
        return np.asarray(points, np.float64), ("UMAP 1", "UMAP 2")
    from sklearn.manifold import TSNE

    perplexity = min(30, (len(vectors) - 1) / 3)
    points = TSNE(metric="cosine", perplexity=perplexity, random_state=seed, init="random").fit_transform(vectors)
    return np.asarray(points, np.float64), ("t-SNE 1", "t-SNE 2")


def _principal_components(vectors):
    from sklearn.decomposition import PCA

    number = min(2, *vectors.shape)
    points, shares = np.zeros((len(vectors), 2)), np.zeros(2)
    if len(vectors) > 1 and vectors.var() > 0:
        fitted = PCA(number, svd_solver="full").fit(vectors)
        points[:, :number], shares[:number] = fitted.transform(vectors), np.nan_to_num(fitted.explained_variance_ratio_)
    return points, tuple(f"PC{i} ({100 * share:.0f} %)" for i, share in enumerate(shares, 1))


# colours --------------------------------------------------------------------------------------------------------------------


@dataclass
class Colours:
    """What the points look like.

    Attributes:
        points (`list[str]`): colour of each point, `#rrggbb`.
        legend (`list[tuple[str, str]]`): (colour, text) of words, and of what has no value.
        limits (`tuple[float, float]`, *optional*): of the colour bar, if the values are numbers.
        beyond (`str`): which ends of the bar stand for more extreme values: `neither`, `min`, `max`, `both`.
        texts (`list[str]`): the value of each point.
        missing (`int`): points without a value.
    """

    points: list
    legend: list
    limits: tuple | None
    beyond: str
    texts: list
    missing: int


def _number(value):
    """A finite number, or None."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def _is_missing(value):
    return value is None or (isinstance(value, float) and not np.isfinite(value)) or not str(value).strip()


def colours_of(values, count, colour_as="auto"):
    """`Colours` of `count` points.

    Args:
        values (`list`, *optional*): numbers, or words; None, NaN, infinite or blank is no value. Texts that are all numbers
            are numbers. The bar reaches from the 1st to the 99th hundredth of them, so that no single one takes it all. Of
            more than twenty words, the twenty most frequent have colours.
        colour_as (`str`): `numbers` or `words`, whatever they look like.

    Raises:
        `StructureError`: if values are no numbers and should be.
    """
    if values is None:
        return Colours([PLAIN] * count, [], None, "neither", [""] * count, 0)
    values = [None if _is_missing(value) else value for value in values]
    numbers = [None if value is None or isinstance(value, bool) else _number(value) for value in values]
    texts = ["" if value is None else str(value).strip() for value in values]
    wrong = [
        text for text, number in zip(texts, numbers) if text and number is None and text.lower() not in ("nan", "inf", "-inf")
    ]
    if colour_as == "numbers" and wrong:
        raise StructureError("no_numbers", f"{len(wrong)} values to colour by are no numbers: {', '.join(wrong[:3])}.")
    present = np.array([number for number in numbers if number is not None])
    if colour_as != "words" and not wrong and len(present):
        return _bar(numbers, present, texts)
    return _words(texts)


def _bar(numbers, present, texts):
    low, high = np.percentile(present, [1, 99])
    if low == high:
        low, high = present.min(), present.max()
    beyond = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    ends = beyond[bool(present.min() < low), bool(present.max() > high)]
    span = high - low or 1.0
    shades = [to_hex(colour) for colour in colormaps["viridis"].colors]
    place = lambda value: shades[int(np.clip((value - low) / span, 0, 1) * (len(shades) - 1))]
    points = [MISSING if value is None else place(value) for value in numbers]
    missing = len(numbers) - len(present)
    texts = [text if number is not None else "" for text, number in zip(texts, numbers)]
    return Colours(points, _no_value(missing), (float(low), float(high)), ends, texts, missing)


def _words(texts):
    counts = Counter(text for text in texts if text)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    colour = dict(zip(ranked, PALETTE))
    legend = [(colour[word], f"{word} ({counts[word]})") for word in colour]
    if rest := sum(counts[word] for word in ranked[len(colour) :]):
        legend.append((OTHER, f"other ({rest})"))
    missing = len(texts) - counts.total()
    points = [colour.get(text, OTHER) if text else MISSING for text in texts]
    return Colours(points, legend + _no_value(missing), None, "neither", texts, missing)


def _no_value(missing):
    return [(MISSING, f"no value ({missing})")] if missing else []


# pictures -------------------------------------------------------------------------------------------------------------------


def spread(points, number):
    """So many points that lie far from each other: the one farthest from the centre, then always the one farthest from those
    chosen. Their numbers."""
    number = min(number, len(points))
    if number < 1:
        return []
    nearest, chosen = np.full(len(points), np.inf), [int(((points - points.mean(axis=0)) ** 2).sum(axis=1).argmax())]
    while len(chosen) < number:
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return chosen


def _drawing_order(colours):
    """Points without a value and the rare words' grey first, so that they hide nothing."""
    rank = {MISSING: 0, OTHER: 1}
    return np.argsort([rank.get(colour, 2) for colour in colours.points], kind="stable")


def draw_map(points, names=None, values=None, *, axes=("", ""), title="", value_name="", colour_as="auto", labels=0):
    """A `matplotlib.figure.Figure`.

    Args:
        points (`np.ndarray` of shape `(n, 2)`): of `project`.
        names (`list[str]`, *optional*): of the points, for labels.
        values (`list`, *optional*): numbers or words to colour by, as for `colours_of`.
        labels (`int` or `list[int]`): how many points have their names written beside them, or which.
    """
    points = np.asarray(points, np.float64)
    colours = colours_of(values, len(points), colour_as)
    order, size = _drawing_order(colours), float(np.clip(6000 / max(len(points), 1), 3, 40))
    figure = Figure(figsize=(8, 6))
    axis = figure.add_subplot()
    for mark in "os":
        if chosen := [i for i in order if _mark(colours.points[i]) == mark]:
            colour = [colours.points[i] for i in chosen]
            sizes = [size / 2 if c in (OTHER, MISSING) else size for c in colour]
            axis.scatter(*points[chosen].T, s=sizes, c=colour, marker=mark, linewidths=0, rasterized=len(points) > 5000)
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(axes[0], parse_math=False)
    axis.set_ylabel(axes[1], parse_math=False)
    axis.set_title(title, fontsize=10, parse_math=False)
    if colours.limits:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        bar = figure.colorbar(ScalarMappable(Normalize(*colours.limits), "viridis"), ax=axis, extend=colours.beyond)
        bar.ax.set_ylabel(value_name, parse_math=False)
    if colours.legend:
        _draw_legend(axis, colours, "" if colours.limits else value_name)
    if chosen := spread(points, labels) if isinstance(labels, int) else labels:
        _draw_labels(figure, axis, points, chosen, [_short(names[i], LABEL_LENGTH) for i in chosen])
    return figure


def _mark(colour):
    return "s" if colour in SQUARES else "o"


def _draw_labels(figure, axis, points, chosen, texts):
    """Writes each text near its point: of some places around it, where it covers no other label and the fewest points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.tight_layout()
    renderer, unit = FigureCanvasAgg(figure).get_renderer(), figure.dpi / 72
    frame, dots, placed = axis.get_window_extent(renderer), axis.transData.transform(points), []
    directions = [(x, y) for x in (1, -1, 0) for y in (0, 1, -1) if x or y]
    for i, text in zip(chosen, texts):
        label = axis.annotate(
            text, points[i], (0, 0), textcoords="offset points", fontsize=LABEL_SIZE, ha="center", va="center",
            parse_math=False, arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "grey", "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
        box = label.get_window_extent(renderer)
        half, best = np.array([box.width, box.height]) / 2, None
        for distance in LABEL_DISTANCES:
            for direction in directions:
                shift = np.array(direction) * (half + distance * unit)
                low, high = dots[i] + shift - half, dots[i] + shift + half
                inside = (low > frame.min).all() and (high < frame.max).all()
                covered = sum((low < other_high).all() and (high > other_low).all() for other_low, other_high in placed)
                dotted = ((dots > low - unit) & (dots < high + unit)).all(axis=1).sum()
                cost = (not inside) + covered, dotted + distance / 10
                if best is None or cost < best[0]:
                    best = cost, shift, distance, (low, high)
        _, shift, distance, where = best
        placed.append(where)
        label.xyann = tuple(shift / unit)
        label.arrow_patch.set_visible(distance > LABEL_DISTANCES[0])


def _draw_legend(axis, colours, title):
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], marker=_mark(colour), linestyle="", color=colour) for colour, _ in colours.legend]
    place = {"loc": "best"} if colours.limits else {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    legend = axis.legend(marks, [_short(text) for _, text in colours.legend], fontsize=8, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)
    legend.set_title(title, prop={"size": 8})
    legend.get_title().set_parse_math(False)


def _short(text, length=40):
    return text if len(text) <= length else text[: length - 1] + "…"


PAGE_TEXT = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>%TITLE%</title>
<style>
body { font: 14px sans-serif; margin: 12px; color: #222; background: #fff }
main { display: flex; gap: 16px } canvas { border: 1px solid #ccc; width: 800px; height: 600px; touch-action: none }
#tip { position: fixed; display: none; background: #fff; border: 1px solid #888; padding: 3px 6px; pointer-events: none;
  max-width: 400px; overflow-wrap: anywhere; white-space: pre-line }
.mark { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 6px }
.bar { width: 18px; height: 200px }
</style></head><body>
<h1 style="font-size: 16px">%TITLE%</h1>
<main><div><canvas id="map" width="1600" height="1200"></canvas>
<div>%AXES%. Wheel: larger or smaller; drag: move; double click: all.</div></div><div id="legend"></div></main>
<div id="tip"></div>
<script id="data" type="application/json">%DATA%</script>
<script>
const data = JSON.parse(document.getElementById("data").textContent);
const canvas = document.getElementById("map"), pen = canvas.getContext("2d"), tip = document.getElementById("tip");
const ratio = 2, radius = data.size, legend = document.getElementById("legend");
let scale = 1, shiftX = 0, shiftY = 0, held = null;
const place = i => [data.x[i] * canvas.width * scale + shiftX, data.y[i] * canvas.height * scale + shiftY];
function draw() {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  for (const i of data.order) {
    const [x, y] = place(i);
    if (x < 0 || y < 0 || x > canvas.width || y > canvas.height) continue;
    pen.fillStyle = data.palette[data.colour[i]];
    pen.beginPath();
    if (data.squares.includes(data.palette[data.colour[i]])) pen.rect(x - radius, y - radius, 2 * radius, 2 * radius);
    else pen.arc(x, y, data.small.includes(data.palette[data.colour[i]]) ? 0.7 * radius : radius, 0, 7);
    pen.fill();
  }
}
function at(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
}
function hover(event) {
  const [mouseX, mouseY] = at(event);
  if (held) { shiftX += mouseX - held[0]; shiftY += mouseY - held[1]; held = [mouseX, mouseY]; draw(); }
  let best = -1, least = (radius + 6) ** 2;
  for (const i of data.order) {
    const [x, y] = place(i), far = (x - mouseX) ** 2 + (y - mouseY) ** 2;
    if (far <= least) { best = i; least = far; }
  }
  tip.style.display = best < 0 ? "none" : "block";
  if (best < 0) return;
  const value = data.valueName ? "\\n" + data.valueName + ": " + (data.texts[best] || "no value") : "";
  tip.textContent = data.names[best] + value;
  tip.style.left = event.clientX + 12 + "px"; tip.style.top = event.clientY + 12 + "px";
}
canvas.addEventListener("pointermove", hover);
canvas.addEventListener("pointerdown", event => { held = at(event); canvas.setPointerCapture(event.pointerId); });
canvas.addEventListener("pointerup", () => { held = null; });
canvas.addEventListener("pointerleave", () => { tip.style.display = "none"; });
canvas.addEventListener("dblclick", () => { scale = 1; shiftX = shiftY = 0; draw(); });
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  const [x, y] = at(event), factor = event.deltaY < 0 ? 1.2 : 1 / 1.2;
  shiftX = x - (x - shiftX) * factor; shiftY = y - (y - shiftY) * factor; scale *= factor; draw();
}, { passive: false });
function line(text, colour) {
  const row = legend.appendChild(document.createElement("div"));
  if (colour) {
    const mark = row.appendChild(document.createElement("span"));
    mark.className = "mark"; mark.style.background = colour;
    if (data.squares.includes(colour)) mark.style.borderRadius = "0";
  }
  row.appendChild(document.createTextNode(text));
}
if (data.valueName) line(data.valueName);
if (data.limits) {
  line(data.limits[1]);
  const bar = legend.appendChild(document.createElement("div"));
  bar.className = "bar"; bar.style.background = "linear-gradient(to top," + data.bar.join(",") + ")";
  line(data.limits[0]);
}
for (const [colour, text] of data.legend) line(text, colour);
draw();
</script></body></html>
"""


def map_page(points, names, values=None, *, axes=("", ""), title="", value_name="", colour_as="auto"):
    """Text of an HTML page that needs nothing else: the map, where the mouse shows name and value of a point. Arguments as for
    `draw_map`. Names and values are data and text, never HTML."""
    points = np.asarray(points, np.float64)
    colours = colours_of(values, len(points), colour_as)
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    inside = 0.03 + 0.94 * (points - low) / np.where(span > 0, span, 1)
    palette = list(dict.fromkeys(colours.points))
    number = {colour: i for i, colour in enumerate(palette)}
    shades = [to_hex(colour) for colour in colormaps["viridis"].colors[::15]]
    less, more = ("≤ " if colours.beyond in ("min", "both") else ""), ("≥ " if colours.beyond in ("max", "both") else "")
    limits = colours.limits and [f"{less}{colours.limits[0]:.4g}", f"{more}{colours.limits[1]:.4g}"]
    data = {
        "x": inside[:, 0].round(4).tolist(), "y": (1 - inside[:, 1]).round(4).tolist(), "names": [str(name) for name in names],
        "colour": [number[colour] for colour in colours.points], "palette": palette, "order": _drawing_order(colours).tolist(),
        "texts": colours.texts if values is not None else [], "legend": colours.legend, "limits": limits, "bar": shades,
        "squares": SQUARES if colours.limits is None else [], "small": [OTHER, MISSING],
        "valueName": value_name if values is not None else "", "size": float(np.clip(250 / len(points) ** 0.5, 3, 9)),
    }  # fmt: skip
    parts = {
        "%TITLE%": html.escape(title),
        "%AXES%": html.escape(f"Across: {axes[0]}; up: {axes[1]}"),
        "%DATA%": json_for_html(data),
    }
    return re.sub("|".join(parts), lambda mark: parts[mark[0]], PAGE_TEXT)  # at once: what looks like a mark in a name stays


# files ----------------------------------------------------------------------------------------------------------------------


def read_points(files, columns=(), max_points=50_000, seed=0):
    """(Vectors `(n, width)`, rows as dictionaries, how many rows were left out because a vector is missing or not finite): all
    rows of `EmbeddingFiles`, or so many drawn at random."""
    if files.num_rows > max_points:
        chosen = np.sort(np.random.default_rng(seed).choice(files.num_rows, max_points, replace=False))
    else:
        chosen = np.arange(files.num_rows)
    vectors, rows, left_out = [], [], 0
    for first, block, table in files.blocks(columns):
        inside = chosen[(chosen >= first) & (chosen < first + len(block))] - first
        usable = inside[np.isfinite(block[inside]).all(axis=1)]
        left_out += len(inside) - len(usable)
        vectors.append(block[usable])
        rows += table.take(usable).to_pylist() if columns else [{"row": int(i) + first} for i in usable]
    vectors = np.concatenate(vectors)
    if not len(vectors):
        raise StructureError(
            "no_vectors", f"{files.path}: all of {left_out} vectors in {files.column} are missing or not finite."
        )
    return vectors, rows, left_out


def values_from_table(path, join, column, rows):
    """(Value of `column` for each row, lines to say): from the row of a table that has the same text in the column `join`, or
    `join` is `"here=there"` where the names differ. A text that stands there with several values has none."""
    here, _, there = join.partition("=")
    there, table = there or here, read_table(path)
    for name in (there, column):
        if name not in table[0]:
            raise StructureError("no_column", f"{path}: no column {name!r}; there are {', '.join(table[0])}.")
    found, unclear = {}, set()
    for row in table:
        key, value = row[there], row.get(column, "")
        if found.setdefault(key, value) != value:
            unclear.add(key)
    keys = ["" if row[here] is None else str(row[here]) for row in rows]
    if not any(key in found for key in keys):
        raise StructureError(
            "no_match",
            f"{path}: no {there} there is a {here} of the vectors, such as {keys[0]!r}; there is {table[0][there]!r}.",
        )
    notes = []
    if absent := [key for key in keys if key not in found]:
        notes.append(f"{len(absent)} points are not in {path}, such as {absent[0]!r}.")
    if used := sorted(unclear & set(keys)):
        notes.append(f"{len(used)} names have several values of {column} in {path} and so none here, such as {used[0]!r}.")
    return [None if key in unclear else found.get(key) for key in keys], notes


def map_of_parquet(
    parquet, output, color_by=None, *, column=None, table=None, join="name", method="pca", labels=0, label_names=(),
    color_as="auto", max_points=50_000, seed=0,
):  # fmt: skip
    """Draws the map of a Parquet file of vectors (or a folder of them) into one file or several, by their endings: `.png`,
    `.svg`, `.pdf`, `.html`.

    Args:
        output (`str` or `list[str]`): files to write.
        color_by (`str`, *optional*): a column of the Parquet file, or of `table`.
        column (`str`, *optional*): column with the vectors; by default the only one there is.
        table (`str`, *optional*): file with a column to colour by; `join` names the column that both have.
        labels (`int`), label_names (`list[str]`): how many points, and which, have their names written beside them.
        max_points (`int`): of more, so many are drawn at random by `seed`.

    Returns:
        Lines that say what was drawn, and what was not.

    Raises:
        `StructureError`: if something is not there, does not fit, or an ending is another.
    """
    outputs = [Path(file) for file in ([output] if isinstance(output, (str, Path)) else output)]
    for file in outputs:
        if file.suffix.lower() not in (*PICTURES, PAGE):
            raise StructureError("usage", f"{file}: expected a name that ends in {', '.join((*PICTURES, PAGE))}.")
        if file.is_dir():
            raise StructureError("usage", f"{file} is a folder, expected the name of a file.")
    if max_points < 1 or labels < 0:
        raise StructureError("usage", f"{max_points} points and {labels} labels, expected at least 1 and 0.")
    if not 0 <= seed < 2**32:
        raise StructureError("usage", f"The seed is {seed}, expected 0 to {2**32 - 1}.")
    if table and not color_by:
        raise StructureError("usage", f"The table {table} has nothing to do without a column to colour by (--color_by).")
    files = EmbeddingFiles(parquet, column)
    wanted = [join.partition("=")[0]] if table else [color_by] if color_by else []
    if wanted and wanted[0] == files.column:
        raise StructureError("usage", f"{wanted[0]} holds the vectors; expected a column with one value each.")
    vectors, rows, left_out = read_points(files, list(dict.fromkeys((*files.text_columns(), *wanted))), max_points, seed)
    notes, values = [], None
    if table:
        values, notes = values_from_table(table, join, color_by, rows)
    elif color_by:
        values = [row[color_by] for row in rows]
        if any(isinstance(value, (list, dict)) for value in values):
            raise StructureError("no_column", f"{parquet}: {color_by} has lists, expected a column with one value each.")
    names = [describe(row) for row in rows]
    points, axes = project(vectors, method, seed)
    chosen = spread(points, labels)
    plain = [row.get("name") for row in rows]
    if absent := [name for name in label_names if name not in plain]:
        raise StructureError("no_name", f"No point to label is called {', '.join(absent)}.")
    chosen += [i for i, name in enumerate(plain) if name in set(label_names) and i not in chosen]
    drawn = f"{len(points):,} of {files.num_rows:,} vectors" if len(points) < files.num_rows else f"{len(points):,} vectors"
    title = f"{Path(parquet).name}: {drawn}, {METHODS[method]}"
    shared = {"axes": axes, "title": title, "value_name": color_by or "", "colour_as": color_as}
    for file in outputs:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() == PAGE:
            write_text(file, map_page(points, names, values, **shared))
        else:
            save_figure(draw_map(points, names, values, labels=chosen, **shared), file, dpi=150)
    lines = [f"{', '.join(map(str, outputs))}: {drawn}, {method}, axes {axes[0]} and {axes[1]}."]
    if files.num_rows > max_points:
        lines.append(f"{max_points:,} of {files.num_rows:,} were drawn at random (seed {seed}).")
    if left_out:
        lines.append(f"{left_out} vectors left out: missing, or not finite.")
    missing = colours_of(values, len(points), color_as).missing
    return lines + ([f"{missing} points without a value of {color_by} are grey."] if missing else []) + notes


# the script -----------------------------------------------------------------------------------------------------------------


@dataclass
class MapArguments:
    vectors: str = HfArg(help="Parquet file of run_embedding.py, or a folder of them.")
    output_file: list[str] = HfArg(default_factory=list, help="Files to write: .png, .svg, .pdf, or .html for a page.")
    column: str | None = HfArg(default=None, help="Column with the vectors; by default the only one there is.")
    method: str = HfArg(
        default="pca", metadata={"choices": list(METHODS)}, help="Into two dimensions; umap needs the package umap-learn."
    )
    color_by: str | None = HfArg(default=None, help="Column of --vectors, or of --table: numbers get a bar, words a legend.")
    color_as: str = HfArg(default="auto", metadata={"choices": list(COLOUR_AS)}, help="How to take its values.")
    table: str | None = HfArg(default=None, help="Table with the column of --color_by: .csv, .tsv or .parquet.")
    join: str = HfArg(default="name", help="Column that --vectors and --table share, or here=there.")
    labels: int = HfArg(default=0, help="How many points, far from each other, have their names beside them.")
    label_names: list[str] = HfArg(default_factory=list, help="Names of points to label besides.")
    max_points: int = HfArg(default=50_000, help="Of more vectors, so many are drawn at random.")
    seed: int = HfArg(default=0, help="Of that draw, and of umap and tsne.")


def main(argv=None):
    parser = ScriptParser(MapArguments, description=__doc__)
    (arguments,) = parser.parse_args_into_dataclasses(argv)
    if not arguments.output_file:
        raise StructureError("usage", "--output_file: expected at least one file to write.")
    options = dict(vars(arguments))
    for line in map_of_parquet(options.pop("vectors"), options.pop("output_file"), **options):
        print(line)


if __name__ == "__main__":
    run_script(main)
