"""The built site works in headless Chromium: console, pictures, narrow screens and search (`nox -s browser`).

The strict build of the site checks the links.
"""

import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

SITE = Path(__file__).parents[1] / "build/site"
PAGES = sorted(str(page.relative_to(SITE)) for page in SITE.rglob("*.html") if page.name != "404.html")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0"]
FRAMES = """<!doctype html><body><script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument;
    const pictures = [...page.images].filter((image) => image.complete && !image.naturalWidth);
    const missing = pictures.map((image) => image.src);
    return [frame.getAttribute("src"), page.documentElement.scrollWidth, missing, page.title];
  });
  document.body.innerHTML = "<pre></pre>";
  document.querySelector("pre").textContent = JSON.stringify(found);
});
</script>%s"""


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/frames":
            return super().do_GET()
        content = (FRAMES % "".join(f'<iframe width=400 height=700 src="/{page}"></iframe>' for page in PAGES)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def browsed(tmp_path_factory):
    assert PAGES, "the site is not built: mkdocs build"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
    url = f"http://127.0.0.1:{server.server_port}/frames"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, profile, "--dump-dom", url], capture_output=True, text=True, timeout=280, check=True
    )
    server.shutdown()
    (found,) = re.findall(r"<pre>(.*?)</pre>", done.stdout, flags=re.DOTALL)
    return json.loads(html.unescape(found)), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_every_page_was_seen(browsed):
    assert [row[0].removeprefix("/") for row in browsed[0]] == PAGES
    assert all(row[3] for row in browsed[0])


def test_nothing_goes_wrong_in_the_console(browsed):
    assert browsed[1] == []


def test_all_pictures_are_there(browsed):
    assert {row[0]: row[2] for row in browsed[0] if row[2]} == {}


def test_pages_fit_a_narrow_screen(browsed):
    assert {row[0]: row[1] for row in browsed[0] if row[1] > 400} == {}


def test_a_copy_is_searched_without_a_server_or_a_network():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        wrong, asked = [], []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((SITE / "start/loss.html").as_uri())
        page.locator("[data-md-component=search-query]").click()
        page.keyboard.type("quota allocation")
        results = page.locator(".md-search-result__link")
        expect(results.first).to_be_visible()
        links = [link.get_attribute("href") for link in results.all()]
        browser.close()
    assert any("design.html" in link for link in links)
    assert wrong == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
