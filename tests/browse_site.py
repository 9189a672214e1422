"""The built site in headless Chromium (`nox -s browser`): no console errors, no missing pictures, fit for 400 px.

Links are checked when the site is built, strictly.
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
