"""The demo in a headless browser: molecules, files, bad ones, the 3D view, the zip, two visitors, no other host."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import zipfile

import pytest
import torch
from conftest import ROOT, load_script, tiny_config
from test_demo import ASPIRIN, pdb, structure  # noqa: F401

from atomica_hf import AtomicaForPreTraining


pytestmark = pytest.mark.slow
MEGABYTES = 0.1


@pytest.fixture(scope="module")
def tools():
    """The functions of demo/screenshot.py."""
    for package in ("gradio", "playwright.sync_api", "PIL"):
        pytest.importorskip(package, reason=f"needs {package}: pip install -r requirements-dev.txt")
    return load_script("demo/screenshot.py")


@pytest.fixture(scope="module")
def browser(tools):
    from playwright.sync_api import Error

    opened = tools.headless_browser()
    try:
        found = opened.__enter__()
    except Error as error:
        pytest.skip(f"no Chromium that starts: {str(error).splitlines()[0]}")
    yield found
    opened.__exit__(None, None, None)


def serve(folder, *options, **environment):
    """Starts the app on a free port -> the process and its address, when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "tmp").mkdir(parents=True)
    changes = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder / "tmp"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(ROOT / "demo" / "app.py"), "--port", str(port), "--device", "cpu", *map(str, options)]
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **changes, **environment}, stdout=subprocess.PIPE, stderr=log, text=True
        )
    for line in process.stdout:
        if "Running on local URL" in line:
            return process, f"http://127.0.0.1:{port}"
    raise AssertionError((folder / "log.txt").read_text(encoding="utf-8")[-2000:])


@pytest.fixture(scope="module")
def site(tmp_path_factory, tools, processor):
    """Address of the page with a tiny model, and the folder of the server's temporary files."""
    folder = tmp_path_factory.mktemp("site")
    torch.manual_seed(1)
    AtomicaForPreTraining(tiny_config()).save_pretrained(folder / "tiny")
    processor.save_pretrained(folder / "tiny")
    process, url = serve(folder / "run", "--model_name_or_path", folder / "tiny", ATOMICA_MEGABYTES=str(MEGABYTES))
    yield url, folder / "run"
    process.terminate()
    process.wait()
    log = (folder / "run" / "log.txt").read_text(encoding="utf-8")
    assert "Traceback" not in log, log[-3000:]


def upload(page, path):
    page.locator("#file input[type=file]").set_input_files(path)


def cells(page, table):
    """Texts of a table, row by row, as far as they are in sight."""
    page.locator(f"{table} [role=gridcell]").first.wait_for()
    read = "cells => cells.map(cell => [Number(cell.dataset.row), cell.innerText.trim()])"
    rows = {}
    for row, text in page.locator(f"{table} [role=gridcell]").evaluate_all(read):
        rows.setdefault(row, []).append(text)
    return list(rows.values())


def archive(page):
    """The files of the zip that the page gives."""
    link = page.locator("#archive a[download]")
    link.scroll_into_view_if_needed()
    with page.expect_download() as download:
        link.click()
    with zipfile.ZipFile(download.value.path()) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


def report(files):
    return json.loads(next(text for name, text in files.items() if name.endswith("_report.json")))


def test_a_molecule(browser, site, tools):
    page, elsewhere = tools.open_page(browser, site[0])
    assert page.locator(".banner").count() == 0
    page.locator("#smiles textarea").fill(ASPIRIN)
    assert "13 atoms in 2 blocks" in tools.look(page)
    assert tools.drawn_pixels(page) > 0
    rows = cells(page, "#scores")
    assert len(rows) == 2 and [row[0] for row in rows] == ["1", "2"]
    assert "aspirin" in page.locator("#neighbours").inner_text() and page.locator("#fragments img").count() == 1
    assert page.locator("#proposal-drawing img").count() == 1 and cells(page, "#proposals")[0][2] in "CC(=O)O O=C(O)c1ccccc1"
    files = archive(page)
    assert report(files)["readout"] == "h_graph" and any(name.endswith(".pdb") for name in files)
    table = next(text for name, text in files.items() if name.endswith("_scores.csv")).decode("utf-8").splitlines()
    assert [row.split(",") for row in table[1:]] == rows
    assert not elsewhere
    page.context.close()


def test_a_file_with_interfaces(browser, site, tools, pdb):  # noqa: F811
    page, elsewhere = tools.open_page(browser, site[0])
    upload(page, pdb)
    choice = page.locator("#choice input")
    choice.wait_for()
    assert "SAL_102" in choice.input_value() and "4 to choose from" in page.locator("#about-file").inner_text()
    assert "made_A_A_SAL_102" in tools.look(page)
    assert tools.drawn_pixels(page) > 0
    assert any("SAL" in " ".join(row) for row in cells(page, "#scores"))
    assert report(archive(page))["kind"] == "protein-ligand"

    choice.click()
    page.get_by_role("option", name=re.compile("protein-peptide")).click()
    assert "made_A_B" in tools.look(page)
    assert page.locator("#fragments img").count() == 0 and "No neighbours" in page.locator("#neighbour-drawing").inner_text()
    assert report(archive(page))["kind"] == "protein-peptide" and not elsewhere
    page.context.close()


def test_bad_input_is_answered_and_clears_what_was_there(browser, site, tools, pdb, tmp_path):  # noqa: F811
    page, _ = tools.open_page(browser, site[0])
    assert "Nothing was given" in tools.look(page)
    page.locator("#smiles textarea").fill("CCO")
    assert "3 atoms" in tools.look(page)
    page.locator("#smiles textarea").fill("<img src=x onerror=alert(1)>")
    assert "expected one SMILES" in tools.look(page)
    assert page.locator("#message img, iframe.structure, #fragments img, #archive a[download]").count() == 0
    page.locator("#smiles textarea").fill("C1CC")
    assert "C1CC" in tools.look(page)

    page.locator("#smiles textarea").fill("")
    broken = tmp_path / "broken.pdb"
    broken.write_bytes(bytes(range(256)) * 20)
    upload(page, broken)
    told = page.locator("#about-file .error")
    told.wait_for()
    assert "broken.pdb" in told.inner_text() and str(site[1]) not in told.inner_text()
    assert "broken.pdb" in tools.look(page)

    page.locator("#file button[aria-label='Clear'], #file button[aria-label*='emove']").first.click()
    told.wait_for(state="detached")
    large = tmp_path / "large.pdb"
    large.write_text(pdb.read_text(encoding="utf-8") * 20, encoding="utf-8")
    assert large.stat().st_size > 1e6 * MEGABYTES
    upload(page, large)
    told.wait_for()
    assert f"{large.stat().st_size / 1e6:.2f} MB" in told.inner_text() and f"{MEGABYTES:g} MB are allowed" in told.inner_text()
    page.context.close()


def test_a_huge_file_is_refused_before_it_is_stored(browser, site, tools, tmp_path):
    page, _ = tools.open_page(browser, site[0])
    huge = tmp_path / "huge.pdb"
    with open(huge, "wb") as stream:
        stream.truncate(120_000_000)
    upload(page, huge)
    page.get_by_text(re.compile("maximum allowed size.*huge.pdb")).first.wait_for()
    assert not list((site[1] / "tmp").rglob("huge.pdb"))
    page.locator("#smiles textarea").fill("CCO")
    assert "3 atoms" in tools.look(page)
    page.context.close()


def test_two_visitors_at_once_see_each_their_own(browser, site, tools, pdb):  # noqa: F811
    (first, _), (second, _) = (tools.open_page(browser, site[0]) for _ in range(2))
    upload(first, pdb)
    first.locator("#choice input").wait_for()
    second.locator("#smiles textarea").fill("c1ccccc1CCN")
    for page in (first, second):
        page.locator("#look").click()
    for page, name in ((first, "made_A_A_SAL_102"), (second, "c1ccccc1CCN")):
        page.locator("#message .done").wait_for()
        assert name in page.locator("#message").inner_text()
        assert report(archive(page))["input"] == name
        assert tools.drawn_pixels(page) > 0
    assert second.locator("#choice").count() == 0 and "made_A" not in second.content()
    assert not [path for path in (site[1] / "tmp").iterdir() if path.name.startswith("atomica-demo-")]
    for page in (first, second):
        page.context.close()


def test_without_weights_there_is_a_banner_and_the_picture_is_taken(browser, tools, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "demo" / "app.py"), "--model_name_or_path", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 1 and "no Atomica model there" in done.stderr and "Traceback" not in done.stderr
    for name in ("config.json", "vocab.json", "tokenizer_config.json", "processor_config.json"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    process, url = serve(tmp_path / "run", "--allow_random_weights", ATOMICA_MODEL_NAME_OR_PATH=str(tmp_path))
    try:
        command = [sys.executable, str(ROOT / "demo" / "screenshot.py"), "--url", url, "--output_file", str(tmp_path / "x.png")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "13 atoms" in done.stdout and "0 addresses elsewhere" in done.stdout
        page, _ = tools.open_page(browser, url)
        assert "mean nothing" in page.locator(".banner").inner_text()
        page.context.close()
    finally:
        process.terminate()
        process.wait()
    from PIL import Image

    with Image.open(io.BytesIO((tmp_path / "x.png").read_bytes())) as image:
        assert image.width == 1200 and image.height > 1500 and (tmp_path / "x.png").stat().st_size < 300_000
