# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Proposals for hidden blocks, drawn as structures."""

from collections import Counter
from pathlib import Path

from rdkit import Chem
from rdkit.Chem import Draw

from atomic_files import replacing, write_text


def molecule_of(smiles):
    """SMILES of a fragment -> molecule ready to be drawn. A fragment cut out of a ring system need not be a molecule by itself;
    it is then drawn as its atoms and bonds are."""
    mol = Chem.MolFromSmiles(smiles)
    if mol is not None:
        return Draw.PrepareMolForDrawing(mol)
    mol = Chem.MolFromSmiles(smiles, sanitize=False)
    mol.UpdatePropertyCache(strict=False)
    return Draw.PrepareMolForDrawing(mol, kekulize=False)


def draw_proposals(rows, path=None, cell=(190, 160), most=50):
    """The result of the pipeline `atomica-fill-mask` as a grid: a row for each hidden block, what it was (if known) in the
    first column, then the proposals with their probabilities; what it was is marked with a star among them.

    Args:
        rows (`list[dict]`): of one input or of several; rows that say why something was not read are passed over.
        path (`str` or `Path`): file to write, `.svg` or `.png`.
        cell (`tuple[int, int]`): width and height of one drawing, in pixels.
        most (`int`): blocks that are drawn, the first ones.

    Returns:
        The drawing: text of an SVG, or the bytes of a PNG for such a path.

    Raises:
        `ValueError`: if there are no proposals, or for another ending.
    """
    ending = "" if path is None else Path(path).suffix.lower()
    if ending not in ("", ".svg", ".png"):
        raise ValueError(f"{path}: drawings end in .svg or .png.")
    blocks, times = {}, Counter()  # inputs may have the same name: their blocks begin anew with rank 1
    for row in rows:
        if "score" in row:
            place = (row["name"], row.get("structure"), row["block"])
            times[place] += row.get("rank") == 1
            blocks.setdefault((*place, times[place]), []).append(row)
    if not blocks:
        raise ValueError("There are no proposals to draw.")
    drawn = list(blocks.values())[:most]
    width = 1 + max(map(len, drawn))
    mols, legends = [], []
    for proposals in drawn:
        first = proposals[0]
        true, where = first["true_token_str"], first["origin"] or "block"
        smiles = first.get("true_smiles")
        mols.append(molecule_of(smiles) if smiles else Chem.MolFromSmiles(""))
        legends.append(f"{where} #{first['block']}: {true or 'unknown'}"[:34])
        for row in proposals:
            mols.append(molecule_of(row["smiles"]))
            star = " *" if row["token_str"] == true else ""
            legends.append(f"{row['token_str'][:22]} {row['score']:.3f}{star}")
        mols += [Chem.MolFromSmiles("")] * (width - 1 - len(proposals))
        legends += [""] * (width - 1 - len(proposals))
    rows_of_cells = -(-len(mols) // width)
    size = (width * cell[0], rows_of_cells * cell[1])
    drawer = Draw.MolDraw2DCairo(*size, *cell) if ending == ".png" else Draw.MolDraw2DSVG(*size, *cell)
    drawer.drawOptions().prepareMolsBeforeDrawing = False
    drawer.drawOptions().legendFontSize = 13
    drawer.DrawMolecules(mols, legends=legends)
    drawer.FinishDrawing()
    drawing = drawer.GetDrawingText()
    if ending == ".png":
        with replacing(path) as temporary:
            temporary.write_bytes(drawing)
    elif path is not None:
        write_text(path, drawing)
    return drawing


__all__ = ["draw_proposals", "molecule_of"]
