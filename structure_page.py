# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Scores of blocks made visible: rows of a table, a drawing of a molecule's fragments, and a page with a 3D view.

A page holds everything it needs, 3Dmol.js included, asks for nothing over the network, and takes no text for code.
"""

import html
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D
from scipy.spatial import cKDTree

from atomica_hf.component_atomica import Origin
from atomica_hf.molecule_atomica import METALS, perceive_bonds
from atomica_hf.processing_atomica import ATOM_GLOBAL


THIRD_PARTY = Path(__file__).resolve().parent / "third_party"
COLUMNS = ("rank", "block", "segment", "chain", "number", "insertion", "name", "token", "score", "distance", "b_factor")
HEADS = {"distance": "distance (Å)"}  # to the partner
_PALE, _STRONG, _NONE = np.array([242, 242, 242]), np.array([232, 80, 62]), "#9aa5b1"  # black letters show on all of them
_MOST_B = 999.99  # what a B-factor of a PDB file holds


def contact_distances(example):
    """Smallest distance of each block's atoms to those of the other segments, `(num_blocks,)`, in angstrom; globals are left
    out. Infinite where there is no other segment, and for global blocks."""
    to_block, positions = (
        np.asarray(example["atom_to_block"]),
        np.asarray(example["positions"], dtype=np.float64).reshape(-1, 3),
    )
    of_atom, ordinary = np.asarray(example["token_type_ids"])[to_block], np.asarray(example["atom_ids"]) != ATOM_GLOBAL
    distances = np.full(len(example["input_ids"]), np.inf)
    for segment in np.unique(of_atom):
        mine, others = ordinary & (of_atom == segment), ordinary & (of_atom != segment)
        if mine.any() and others.any():
            np.minimum.at(distances, to_block[mine], cKDTree(positions[others]).query(positions[mine])[0])
    return distances


def b_factors(scores):
    """1000 (1 - cosine), at most 999.99, so that a PDB file's two decimals tell scores near one apart; 0 without a score."""
    found = np.clip(1000 * (1 - np.asarray(scores, dtype=np.float64)), 0, _MOST_B)
    return np.where(np.isnan(found), 0.0, found).round(2)


def score_rows(example, scores, tokens):
    """Rows of a table: the scored blocks from the lowest score up, then those without a score (no rank).

    Args:
        example (`dict`): as `AtomicaProcessor.encode` gives it.
        scores (array of shape `(num_blocks,)`): cosines, NaN where there is none.
        tokens (`list[str]`): names of the block tokens.

    Returns:
        List of `dict`s with `COLUMNS`; unknown cells are empty. Global blocks are left out.

    Raises:
        `ValueError`: if there are not as many scores as blocks.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (len(example["input_ids"]),):
        raise ValueError(f"Scores have shape {scores.shape}, expected one per block: ({len(example['input_ids'])},).")
    distances, b, rows = contact_distances(example), b_factors(scores), []
    has_atoms = np.zeros(len(scores), dtype=bool)
    has_atoms[np.asarray(example["atom_to_block"])[np.asarray(example["atom_ids"]) != ATOM_GLOBAL]] = True
    for place, block in enumerate(np.argsort(scores, kind="stable").tolist()):  # NaN comes last
        if not has_atoms[block]:
            continue
        origin, score = Origin.from_text(example["block_origins"][block]), float(scores[block])
        known = {
            "rank": "" if np.isnan(score) else place + 1,
            "block": block,
            "segment": int(example["token_type_ids"][block]),
            "chain": origin.chain,
            "number": "" if origin.number is None else origin.number,
            "insertion": origin.insertion,
            "name": origin.name,
            "token": tokens[example["input_ids"][block]],
            "score": "" if np.isnan(score) else round(score, 8),
            "distance": round(float(distances[block]), 2) if np.isfinite(distances[block]) else "",
            "b_factor": float(b[block]),
        }
        rows.append({column: known[column] for column in COLUMNS})
    return rows


def colors(scores):
    """Colours `#rrggbb`, one per score: pale for 1, red for the lowest of them, grey for NaN."""
    scores = np.asarray(scores, dtype=np.float64)
    depth = 1 - scores
    largest = np.nanmax(depth, initial=0)
    share = np.zeros_like(depth) if largest <= 0 else np.clip(depth / largest, 0, 1)
    mixed = _PALE + np.where(np.isnan(share), 0, share)[:, None] * (_STRONG - _PALE)
    return [_NONE if np.isnan(s) else "#{:02x}{:02x}{:02x}".format(*row) for s, row in zip(scores, mixed.round().astype(int))]


def molecule_of(example, segment: int):
    """A segment that is a small molecule -> (RDKit molecule with bonds from the geometry, or None; block of each atom)."""
    to_block = np.asarray(example["atom_to_block"])
    inside = np.asarray(example["token_type_ids"])[to_block] == segment
    atoms = np.flatnonzero(inside & (np.asarray(example["atom_ids"]) != ATOM_GLOBAL))
    positions = np.asarray(example["positions"], dtype=np.float64).reshape(-1, 3)[atoms]
    return perceive_bonds(np.asarray(example["atom_ids"])[atoms] - ATOM_GLOBAL, positions), to_block[atoms]


def draw_fragments(mol, blocks, scores, width: int = 480, height: int = 330) -> str:
    """A molecule in two dimensions, its fragments coloured by score, as SVG.

    Args:
        mol (`rdkit.Chem.Mol`): without hydrogens.
        blocks (array of shape `(num_atoms,)`): block of each atom.
        scores (array of shape `(num_blocks,)`): cosines, NaN where there is none.
        width, height (`int`): in pixels.

    Raises:
        `ValueError`: if there are not as many blocks as atoms.
    """
    blocks, scores = np.asarray(blocks), np.asarray(scores, dtype=np.float64)
    if len(blocks) != mol.GetNumAtoms():
        raise ValueError(f"{len(blocks)} blocks for {mol.GetNumAtoms()} atoms, expected one for each atom.")
    mol = Chem.Mol(mol)
    rdDepictor.Compute2DCoords(mol)
    own = scores[blocks]
    as_rgb = {block: tuple(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)) for block, c in zip(blocks.tolist(), colors(own))}
    bonds = {
        bond.GetIdx(): as_rgb[int(blocks[bond.GetBeginAtomIdx()])]
        for bond in mol.GetBonds()
        if blocks[bond.GetBeginAtomIdx()] == blocks[bond.GetEndAtomIdx()]
    }
    depth = np.nanmax(1 - own, initial=0)
    decimals = int(np.clip(np.ceil(-np.log10(depth)) + 1, 2, 4)) if depth > 0 else 2  # two digits tell the lowest from 1
    for block in dict.fromkeys(blocks.tolist()):
        label = "no score" if np.isnan(scores[block]) else f"{scores[block]:.{decimals}f}"
        mol.GetAtomWithIdx(int((blocks == block).argmax())).SetProp("atomNote", label)
    drawer = rdMolDraw2D.MolDraw2DSVG(width, height)
    options = drawer.drawOptions()
    options.fillHighlights, options.annotationFontScale, options.minFontSize, options.padding = True, 0.85, 11, 0.02
    rdMolDraw2D.PrepareAndDrawMolecule(
        drawer,
        mol,
        highlightAtoms=list(range(len(blocks))),
        highlightAtomColors={i: as_rgb[int(block)] for i, block in enumerate(blocks)},
        highlightBonds=list(bonds),
        highlightBondColors=bonds,
    )
    drawer.FinishDrawing()
    return drawer.GetDrawingText()


@cache
def _viewer_code():
    return tuple((THIRD_PARTY / name).read_text(encoding="utf-8") for name in ("3Dmol-min.js", "3Dmol-LICENSE.txt"))


def json_for_html(value) -> str:
    """JSON that can stand in an element of HTML: nothing in it ends the element, or is the end of a line for some readers."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda mark: f"\\u{ord(mark[0]):04x}", text)


_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 0; color: #1c2733; }
header { padding: 10px 16px; border-bottom: 1px solid #d5dbe1; } h1 { font-size: 18px; margin: 0; } p { margin: 4px 0; }
main { display: flex; flex-wrap: wrap; } #view { position: relative; flex: 1 1 400px; height: 80vh; min-height: 320px; }
#side { flex: 0 1 auto; max-width: 100%; max-height: 80vh; overflow: auto; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; } th, td { padding: 3px 5px; text-align: left; }
td { white-space: nowrap; } td.token { white-space: normal; overflow-wrap: anywhere; max-width: 150px; }
th { position: sticky; top: 0; background: #f1f4f7; } tbody tr { cursor: pointer; }
tbody tr:hover, tbody tr:focus { background: #e7eef6; }
.dot { display: inline-block; width: 12px; height: 12px; border-radius: 6px; border: 1px solid #8895a3; margin-right: 6px; }
"""

_SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent), place = document.getElementById("view");
try {
  const viewer = $3Dmol.createViewer(place, {backgroundColor: "white"});
  const model = viewer.addModel(data.xyz, "xyz");
  const block = atom => data.blocks[atom.index], color = atom => data.colors[block(atom)];
  const show = chosen => {
    viewer.removeAllLabels();
    data.segments.forEach((atoms, i) => viewer.setStyle({index: atoms}, {stick: {radius: i ? 0.22 : 0.14, colorfunc: color}}));
    viewer.setStyle({index: data.single}, {sphere: {scale: 0.5, colorfunc: color}});
    if (chosen === undefined) { viewer.zoomTo(); } else {
      const atoms = data.blocks.flatMap((b, i) => b === chosen ? [i] : []);
      viewer.addStyle({index: atoms}, {sphere: {scale: 0.3, colorfunc: color}});
      viewer.addLabel(data.names[chosen], {fontSize: 13}, {index: atoms});
      viewer.zoomTo({index: atoms.concat(data.near[chosen])}, 400);
    }
    viewer.render();
  };
  document.querySelectorAll("tbody tr").forEach(row => {
    row.onclick = () => show(Number(row.dataset.block));
    row.onkeydown = event => { if (event.key === "Enter") row.onclick(); };
  });
  document.getElementById("all").onclick = () => show();
  show();
} catch (error) { place.textContent = "The 3D view needs WebGL: " + error; }
"""


def page(title, example, scores, rows, caption: str = "", drawings=(), top: int | None = None) -> str:
    """A page of HTML with a 3D view beside a table; a click on a row shows its block. It works without a network.

    Args:
        title, caption (`str`): plain text.
        example (`dict`): as `AtomicaProcessor.encode` gives it.
        scores (array of shape `(num_blocks,)`): cosines, NaN where there is none.
        rows (`list[dict]`): of `score_rows`.
        drawings (`Iterable[str]`): SVG of `draw_fragments`.
        top (`int`): rows to show; None for all.
    """
    ordinary = np.flatnonzero(np.asarray(example["atom_ids"]) != ATOM_GLOBAL)
    positions = np.asarray(example["positions"], dtype=np.float64).reshape(-1, 3)[ordinary]
    blocks = np.asarray(example["atom_to_block"])[ordinary]
    numbers = (np.asarray(example["atom_ids"])[ordinary] - ATOM_GLOBAL).tolist()
    table, tree = Chem.GetPeriodicTable(), cKDTree(positions)
    symbols = [table.GetElementSymbol(n) if n > 0 else "X" for n in numbers]
    atoms = [f"{s} {x:.2f} {y:.2f} {z:.2f}" for s, (x, y, z) in zip(symbols, positions)]
    painted, shown = colors(scores), rows if top is None else rows[:top]
    of_atom = np.asarray(example["token_type_ids"])[blocks]
    pairs = tree.query_pairs(2.2, output_type="ndarray")
    bonded = np.isin(
        np.arange(len(blocks)), pairs[~np.isin(numbers, list(METALS))[pairs].any(1)]
    )  # bonds of metals do not count
    data = {
        "xyz": f"{len(atoms)}\n\n" + "\n".join(atoms) + "\n",
        "blocks": blocks.tolist(),
        "segments": [np.flatnonzero(of_atom == segment).tolist() for segment in np.unique(of_atom)],
        "single": np.flatnonzero(~bonded).tolist(),  # ions and the like, which no stick would show
        "colors": painted,
        "names": {row["block"]: _name(row) for row in shown},
        "near": {row["block"]: _around(tree, positions[blocks == row["block"]]) for row in shown},
    }
    single = "; spheres: single atoms, such as ions" if data["single"] else ""
    listed = [{**row, "token": _other_token(row)} for row in shown]
    columns = [column for column in COLUMNS if any(row[column] != "" for row in listed)] if listed else list(COLUMNS)
    columns = [column for column in columns if column not in ("block", "b_factor")]
    head = "".join(f"<th>{HEADS.get(column, column)}</th>" for column in columns)
    body = "\n".join(
        f'<tr tabindex="0" data-block="{row["block"]}">'
        + "".join(_cell(column, row[column], painted[row["block"]]) for column in columns)
        + "</tr>"
        for row in listed
    )
    code, licence = _viewer_code()
    title, caption = html.escape(str(title)), html.escape(caption)
    count = f"{len(shown)} of {len(rows)} blocks are listed." if len(shown) < len(rows) else f"{len(rows)} blocks."
    policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title><style>{_STYLE}</style></head>
<body><header><h1>{title}</h1><p>{caption}</p>
<p>Red: the read-out turns most when this block is hidden; pale: it stays; grey: no score. {count}
<button id="all">whole complex</button></p><p>{html.escape(_legend(rows) + single)}.</p></header>
<main><div id="view"></div><div id="side">{"".join(map(_inline, drawings))}
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></div></main>
<script type="application/json" id="data">{json_for_html(data)}</script>
<script type="text/plain" id="licence-of-3dmol">{html.escape(licence)}</script>
<script>{code}</script>
<script>{_SCRIPT}</script>
</body></html>
"""


def _inline(svg: str) -> str:
    """An SVG file as part of a page: without the line that says it is XML."""
    return svg[svg.index("<svg") :]


def _cell(column, value, color):
    if column == "score" and value != "":
        return f'<td><span class="dot" style="background:{color}"></span>{value:.4f}</td>'
    return f'<td class="{column}">{html.escape(str(value))}</td>'


def _other_token(row):
    """The token of a block, where it says more than the name: of a fragment, or a modified residue."""
    return "" if row["token"].upper() == row["name"].upper() else row["token"]


def _residue(row):
    """Where a block comes from, such as `ASP A:144`; empty for a molecule that no file numbers."""
    return f"{row['name']} {row['chain']}:{row['number']}{row['insertion']}" if row["chain"] or row["number"] != "" else ""


def _name(row):
    """What a block is called in the view."""
    return " ".join(filter(None, (_residue(row), _other_token(row)))) or row["token"]


def _legend(rows):
    """Which segment is drawn how, and what it is."""
    texts = []
    for segment in sorted({row["segment"] for row in rows}):
        mine = [row for row in rows if row["segment"] == segment]
        residues, chains = dict.fromkeys(map(_residue, mine)), dict.fromkeys(row["chain"] or "without a name" for row in mine)
        blocks = f"{len(mine)} block{'s' * (len(mine) > 1)}"
        what = [*residues] if len(residues) < 3 else [f"chain{'s' * (len(chains) > 1)} {', '.join(chains)}"]
        texts.append(f"{'thick' if segment else 'thin'} sticks: segment {segment} ({', '.join(filter(None, [*what, blocks]))})")
    return "; ".join(texts)[:1].upper() + "; ".join(texts)[1:]


def _around(tree, points):
    """Atoms within 6 angstrom of some points."""
    return sorted({atom for near in tree.query_ball_point(points, 6.0) for atom in near})


__all__ = [
    "COLUMNS", "b_factors", "colors", "contact_distances", "draw_fragments", "json_for_html", "molecule_of", "page",
    "score_rows",
]  # fmt: skip
