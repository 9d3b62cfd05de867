# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""A picture of the page, taken in a headless browser that may talk to the page's own machine only.

python demo/app.py --port 7861
python demo/screenshot.py --url http://127.0.0.1:7861 --smiles "CC(=O)Oc1ccccc1C(=O)O" --output_file docs/demo_page.png
"""

import io
import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image
from transformers.hf_argparser import HfArg


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atomic_files import replacing  # noqa: E402
from script_arguments import ScriptParser  # noqa: E402


HERE = ("127.0.0.1", "localhost", "")  # data: and blob: have no host
MILLISECONDS = 60_000
BACKGROUND, LEAST_PIXELS = (255, 255, 255), 500
COLORS = 128  # of the picture


@dataclass
class ScreenshotArguments:
    url: str = HfArg(help="Address of a page that demo/app.py has opened.")
    output_file: str = HfArg(help="PNG to write.")
    smiles: str = HfArg(default="CC(=O)Oc1ccccc1C(=O)O", help="What to look at.")
    width: int = HfArg(default=1200, help="Of the window, in pixels.")
    height: int = HfArg(default=2000, help="Of the picture, from the top of the page, at most, in pixels.")


def find_chromium():
    """Path of an installed Chromium or Chrome; None for the one that playwright brings."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@contextmanager
def headless_browser():
    """A headless browser that draws WebGL without a graphics card."""
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=options)
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser, url, width=1200):
    """The page in a context of its own, as a visitor has it, and the addresses elsewhere that it asked for in vain."""
    page, elsewhere = browser.new_context(viewport={"width": width, "height": 1200}).new_page(), []
    page.set_default_timeout(MILLISECONDS)

    def decide(route):
        if urlsplit(route.request.url).hostname in (*HERE, None):
            return route.continue_()
        elsewhere.append(route.request.url)
        return route.abort()

    page.route("**/*", decide)
    page.goto(url)
    page.locator("#look").wait_for()
    return page, elsewhere


def look(page):
    """Presses the button and waits for the answer, which it returns."""
    page.evaluate("document.querySelectorAll('#message .message').forEach(found => found.classList.add('old'))")
    page.locator("#look").click()
    answer = page.locator("#message .message:not(.old)")
    answer.wait_for()
    return answer.inner_text()


def drawn_pixels(page):
    """Pixels of the 3D view that are not background, as soon as there are some; 0 if none come."""
    canvas = page.frame_locator("iframe.structure").locator("canvas").first
    page.locator("iframe.structure").evaluate("frame => frame.scrollIntoView({block: 'center'})")  # else nothing is drawn
    canvas.wait_for()
    for _ in range(100):
        image = Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")
        found = image.width * image.height - sum(n for n, color in image.getcolors(1 << 24) if color == BACKGROUND)
        if found > LEAST_PIXELS:
            return found
    return 0


def main(argv=None):
    (arguments,) = ScriptParser(ScreenshotArguments, description=__doc__).parse_args_into_dataclasses(argv)
    with headless_browser() as browser:
        page, elsewhere = open_page(browser, arguments.url, arguments.width)
        page.locator("#smiles textarea").fill(arguments.smiles)
        print(look(page))
        print(f"{drawn_pixels(page)} pixels of the 3D view are drawn; {len(elsewhere)} addresses elsewhere were asked for.")
        image = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    image = image.crop((0, 0, image.width, min(image.height, arguments.height)))
    with replacing(arguments.output_file) as temporary:
        image.quantize(COLORS).save(temporary, optimize=True)
    print(f"{arguments.output_file}: {Path(arguments.output_file).stat().st_size / 1000:.0f} KB.")


if __name__ == "__main__":
    main()
