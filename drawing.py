# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Proposals for hidden blocks, drawn as structures."""

from collections import Counter
from pathlib import Path

from rdkit import Chem, rdBase
from rdkit.Chem import Draw
from rdkit.Geometry import Point2D

from atomic_files import replacing, write_text


HIDDEN, AROMATIC = (0.91, 0.94, 1.0), (1.0, 0.87, 0.6)  # behind what was hidden; behind aromatic atoms


def molecule_of(smiles):
    """SMILES of a fragment -> (molecule ready to be drawn, its atoms to mark). A fragment cut out of an aromatic ring need not
    be a molecule by itself: its aromatic bonds are then single ones, and its aromatic atoms marked."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    if mol is not None:
        return Draw.PrepareMolForDrawing(mol), []
    mol = Chem.MolFromSmiles(smiles, sanitize=False)
    aromatic = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetIsAromatic()]
    for bond in mol.GetBonds():
        if bond.GetIsAromatic():
            bond.SetBondType(Chem.BondType.SINGLE)
        bond.SetIsAromatic(False)
    for atom in mol.GetAtoms():
        atom.SetIsAromatic(False)
        atom.SetNoImplicit(True)  # its other neighbours are not here
    mol.UpdatePropertyCache(strict=False)
    return Draw.PrepareMolForDrawing(mol, kekulize=False, addChiralHs=False), aromatic


def draw_proposals(rows, path=None, cell=(190, 160), most=50):
    """The result of the pipeline `atomica-fill-mask` as a grid: a row for each hidden block, what it was (if known) in the
    first column, on a ground of its own, then the proposals with their probabilities; what it was is marked with a star among
    them. Atoms of aromatic rings of which a fragment is only a part are marked by a colour.

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
    mols, legends, nothing = [], [], (Chem.MolFromSmiles(""), [])
    for proposals in drawn:
        first = proposals[0]
        true, where = first["true_token_str"], first["origin"] or "block"
        smiles = first.get("true_smiles")
        mols.append(molecule_of(smiles) if smiles else nothing)
        legends.append(f"hidden: {true or 'unknown'}, {where} #{first['block']}"[:34])
        for row in proposals:
            mols.append(molecule_of(row["smiles"]))
            star = " *" if row["token_str"] == true else ""
            legends.append(f"{row['token_str'][:22]} {row['score']:.3f}{star}")
        mols += [nothing] * (width - 1 - len(proposals))
        legends += [""] * (width - 1 - len(proposals))
    rows_of_cells = -(-len(mols) // width)
    size = (width * cell[0], rows_of_cells * cell[1])
    drawer = Draw.MolDraw2DCairo(*size, *cell) if ending == ".png" else Draw.MolDraw2DSVG(*size, *cell)
    options = drawer.drawOptions()
    options.prepareMolsBeforeDrawing = options.clearBackground = False
    options.legendFontSize, options.fixedBondLength, options.padding = 13, 30, 0.1
    options.setHighlightColour(AROMATIC)
    drawer.ClearDrawing()
    drawer.SetColour(HIDDEN)
    drawer.DrawRect(Point2D(0, 0), Point2D(cell[0], size[1]), rawCoords=True)
    drawer.SetColour((0, 0, 0))
    mols, marked = zip(*mols)
    drawer.DrawMolecules(mols, highlightAtoms=list(map(list, marked)), highlightBonds=[[]] * len(mols), legends=legends)
    drawer.FinishDrawing()
    drawing = drawer.GetDrawingText()
    if ending == ".png":
        with replacing(path) as temporary:
            temporary.write_bytes(drawing)
    elif path is not None:
        write_text(path, drawing)
    return drawing


__all__ = ["draw_proposals", "molecule_of"]
