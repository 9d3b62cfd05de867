# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""A page on which Atomica looks at a molecule or complex: scores of its blocks, proposals for hidden ones, neighbours.

python demo/app.py --model_name_or_path my-atomica
python demo/app.py --port 7861

Every option can be given by an environment variable too, as a Space needs it: ATOMICA_MODEL_NAME_OR_PATH, ATOMICA_SECONDS, ...
"""

import base64
import html
import os
import sys
import tempfile
import traceback
from dataclasses import dataclass, fields
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

try:
    import gradio as gr
except ImportError:
    sys.exit("demo/app.py: error: the package gradio is missing: pip install -r demo/requirements.txt")
from transformers.hf_argparser import HfArg  # noqa: E402

from atomica_hf import StructureError  # noqa: E402
from atomica_hf.structure_atomica import MACROMOLECULE_SUFFIXES, MOLECULE_SUFFIXES  # noqa: E402
from demo.analysis import NO_MEANING, Limits, Settings, analyse, list_choices, open_demo  # noqa: E402
from model_loading import best_device  # noqa: E402
from script_arguments import ScriptParser  # noqa: E402
from structure_page import COLUMNS, HEADS  # noqa: E402


EXAMPLES = ("CC(=O)Oc1ccccc1C(=O)O", "CC(C)Cc1ccc(cc1)C(C)C(=O)O", "Cn1cnc2c1c(=O)n(C)c(=O)n2C.Oc1ccccc1C(=O)O")
PROPOSALS = {
    "block": "block", "origin": "what", "true_token_str": "it was", "token_str": "proposal", "score": "probability",
    "kind": "kind",
}  # fmt: skip
NEIGHBORS = ("molecule", "rank", "name", "distance", "smiles")
STORED_MOST = 100_000_000  # bytes of an upload that is answered with its size; gradio refuses what is larger still
CLEARED_AFTER = 3600  # seconds that uploads and archives stay
FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # of the visitor's own machine: nothing is fetched


@dataclass
class DemoArguments:
    model_name_or_path: str = HfArg(default=str(ROOT), help="Folder or hub id of an Atomica model.")
    allow_random_weights: bool = HfArg(
        default=False, help="Where the model has no weights, go on with random ones, under a banner that says so."
    )
    device: str | None = HfArg(default=None, help="cpu, cuda, mps; by default the best there is.")
    host: str | None = HfArg(default=None, help="Address to listen at; by default gradio's, this machine only.")
    port: int | None = HfArg(default=None, help="Port to listen at; by default the first free one from 7860.")
    share: bool = HfArg(default=False, help="Open a public address by gradio's servers.")
    megabytes: float = HfArg(default=Limits.megabytes, help="Largest file, unpacked, in MB.")
    atoms: int = HfArg(default=Limits.atoms, help="Largest complex or molecule: atoms without hydrogens.")
    smiles_atoms: int = HfArg(default=Limits.smiles_atoms, help="Largest SMILES: atoms without hydrogens.")
    seconds: float = HfArg(default=Limits.seconds, help="Longest time for one input, in seconds.")
    at_once: int = HfArg(default=2, help="Inputs that are computed at the same time.")
    queue: int = HfArg(default=20, help="Inputs that may wait for their turn.")


def parse(argv=None, environment=os.environ):
    """Options from environment variables, then from the command line, which goes before them."""
    given = []
    for option in fields(DemoArguments):
        if value := environment.get(f"ATOMICA_{option.name.upper()}"):
            given += [f"--{option.name}", value]
    parser = ScriptParser(DemoArguments, description=__doc__)
    (arguments,) = parser.parse_args_into_dataclasses([*given, *(sys.argv[1:] if argv is None else argv)])
    for name in ("at_once", "queue"):
        if getattr(arguments, name) < 1:
            raise StructureError("usage", f"--{name} is {getattr(arguments, name)}, expected at least 1.")
    return arguments


# what is shown --------------------------------------------------------------------------------------------------------------


def as_picture(svg: str, what: str):
    """An SVG as an image, which cannot run anything."""
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return f'<img alt="{html.escape(what)}" style="max-width:100%" src="data:image/svg+xml;base64,{data}">'


def as_frame(page: str):
    """A whole page in a frame of its own, without rights to this one."""
    style = "width:100%;height:640px;border:1px solid #d5dbe1"
    return f'<iframe class="structure" sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(page)}"></iframe>'


def as_message(text: str, kind: str):
    return f'<div class="message {kind}" role="{"alert" if kind == "error" else "status"}">{html.escape(text)}</div>'


def rounded(value):
    return round(value, 4) if isinstance(value, float) else value


def reason(error: Exception):
    """What a visitor is told of an error; the log has the rest if nobody expected it."""
    if isinstance(error, StructureError):
        return str(error)
    traceback.print_exception(error)
    return f"This input could not be computed ({type(error).__name__}); the log of the server says more."


def shown(result):
    """A `Result` -> values of the outputs, in their order."""
    drawings = "".join(as_picture(svg, "fragments coloured by score") for svg in result.drawings)
    proposals, neighbors = result.proposal_drawing, result.neighbor_drawing
    text = " ".join([result.summary, *result.notes])
    return [
        as_message(text, "done"),
        f'<div class="side-by-side">{drawings}</div>'
        if drawings
        else as_message("No small molecule that could be drawn in two dimensions.", "note"),
        as_frame(result.page),
        [[row[column] for column in COLUMNS] for row in result.score_rows],
        as_picture(proposals, "proposals for hidden blocks") if proposals else as_message("No proposals.", "note"),
        [[rounded(row[column]) for column in PROPOSALS] for row in result.proposals],
        as_picture(neighbors, "nearest bundled molecules") if neighbors else as_message("No neighbours.", "note"),
        [[row[column] for column in NEIGHBORS] for row in result.neighbors],
        str(result.archive),
    ]


NOTHING = ["", "", "", [], "", [], "", [], None]
CSS = """
.message { padding: 8px 12px; border-radius: 6px; border: 1px solid #c3ccd5; background: #f1f4f7; color: #1c2733; }
.message.error { border-color: #b2182b; background: #fdecea; } .banner { font-weight: 600; font-size: 16px; }
.side-by-side { display: flex; flex-wrap: wrap; } .side-by-side img { width: 49%; }
"""


def build(demo, limits: Limits):
    """The page of a `Demo`."""

    def compute(smiles, file, choice, top_k, hidden_blocks, neighbors, progress=gr.Progress()):  # noqa: B008
        with tempfile.TemporaryDirectory(prefix="atomica-demo-") as folder:
            try:
                settings = Settings(int(top_k), int(hidden_blocks), int(neighbors))
                result = analyse(
                    demo, folder, smiles or "", file, choice, limits, settings,
                    lambda share, words: progress(share, desc=words),
                )  # fmt: skip
                outputs = shown(result)
            except Exception as error:  # noqa: BLE001
                outputs = [as_message(reason(error), "error"), *NOTHING[1:]]
            yield outputs  # gradio takes its copy of the archive before it comes back

    def list_contents(file):
        if file is None:
            return gr.update(choices=[], value=None, visible=False), ""
        try:
            labels, default, total = list_choices(demo, file, limits)
        except Exception as error:  # noqa: BLE001
            return gr.update(choices=[], value=None, visible=False), as_message(reason(error), "error")
        rest = "" if total == len(labels) else f" {total} in the file, of which {len(labels)} are listed."
        text = as_message(f"{len(labels)} to choose from.{rest}", "note") if total > 1 else ""
        return gr.update(choices=labels, value=labels[default], visible=total > 1), text

    endings = [ending for suffix in MACROMOLECULE_SUFFIXES + MOLECULE_SUFFIXES for ending in (suffix, f"{suffix}.gz")]
    allowed = f"At most {limits.megabytes:g} MB, {limits.atoms} atoms (a SMILES {limits.smiles_atoms}), {limits.seconds:g} s."
    with gr.Blocks(title="Atomica", analytics_enabled=False, delete_cache=(CLEARED_AFTER // 6, CLEARED_AFTER)) as page:
        gr.Markdown(
            "# Atomica\nHides the blocks of a molecule or complex one by one: how far does the model's view of it turn, and "
            f"what would it put there? Model: {html.escape(demo.name)}."
        )
        if demo.is_random:
            gr.HTML(f'<div class="message error banner" role="alert">{html.escape(NO_MEANING)}</div>')
        with gr.Row():
            with gr.Column():
                smiles = gr.Textbox(label="SMILES", placeholder="CC(=O)Oc1ccccc1C(=O)O", elem_id="smiles", max_lines=3)
                gr.Examples([[text] for text in EXAMPLES], smiles, label="Examples; a dot joins the partners of a complex")
            with gr.Column():
                file = gr.File(label="or a file: PDB, mmCIF, SDF, MOL2, XYZ", elem_id="file", file_types=[*endings])
                choice = gr.Dropdown([], label="Interface or record", visible=False, elem_id="choice")
                about_file = gr.HTML(elem_id="about-file")
        with gr.Row():
            hidden = gr.Slider(1, 50, Settings.hidden_blocks, step=1, label="Blocks to ask proposals for, lowest score first")
            top_k = gr.Slider(1, 20, Settings.top_k, step=1, label="Proposals for each")
            neighbors = gr.Slider(1, 50, Settings.neighbors, step=1, label="Neighbours")
        button = gr.Button("Look", variant="primary", elem_id="look")
        gr.Markdown(allowed)
        message = gr.HTML(elem_id="message")
        archive = gr.File(label="Everything as a zip", interactive=False, height=90, elem_id="archive")
        drawing = gr.HTML(elem_id="fragments")
        frame = gr.HTML(elem_id="structure")
        heads = [HEADS.get(column, column) for column in COLUMNS]
        title = "Scores: the lower, the more hangs on the block"
        scores = gr.Dataframe(headers=heads, label=title, interactive=False, elem_id="scores")
        proposal_drawing = gr.HTML(elem_id="proposal-drawing")
        proposals = gr.Dataframe(headers=list(PROPOSALS.values()), label="Proposals", interactive=False, elem_id="proposals")
        neighbor_drawing = gr.HTML(elem_id="neighbour-drawing")
        nearest = gr.Dataframe(
            headers=list(NEIGHBORS), label="Nearest bundled molecules", interactive=False, elem_id="neighbours"
        )
        outputs = [message, drawing, frame, scores, proposal_drawing, proposals, neighbor_drawing, nearest, archive]
        button.click(
            compute, [smiles, file, choice, top_k, hidden, neighbors], outputs, api_name="look", show_progress_on=message
        )
        file.change(list_contents, file, [choice, about_file], api_name=False)
    return page


def main(argv=None):
    arguments = parse(argv)
    limits = Limits(arguments.megabytes, arguments.atoms, arguments.smiles_atoms, arguments.seconds)
    print(f"Opening {arguments.model_name_or_path}, and embedding the bundled molecules ...", flush=True)
    demo = open_demo(arguments.model_name_or_path, arguments.allow_random_weights, arguments.device or best_device())
    if demo.is_random:
        print(NO_MEANING, flush=True)
    page = build(demo, limits).queue(max_size=arguments.queue, default_concurrency_limit=arguments.at_once)
    theme = gr.themes.Default(font=FONTS[0], font_mono=FONTS[1])
    page.launch(
        server_name=arguments.host, server_port=arguments.port, share=arguments.share, ssr_mode=False, show_error=False,
        max_file_size=max(STORED_MOST, int(1e6 * limits.megabytes)), theme=theme, css=CSS,
    )  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except (StructureError, OSError) as error:
        sys.exit(f"demo/app.py: error: {error}")
