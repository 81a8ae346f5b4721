"""A page in a headless Chromium, which tells what a script of the test finds in it."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom"),
)


def ask(page: Path, script: str, folder: Path) -> tuple[Any, list[str]]:
    """What a function body returns in a page, and the lines of the page's console.

    The page's policy stays as it is, but that it admits this script, too.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    body = (
        f"const found = (() => {{{script}}})();"
        'const place = document.createElement("pre"); place.id = "found";'
        "place.textContent = JSON.stringify(found); document.body.append(place);"
    )
    digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    text = page.read_text().replace("script-src ", f"script-src 'sha256-{digest}' ")
    copy = folder / "asked.html"
    copy.write_text(text.replace("</body>", f"<script>{body}</script></body>"))
    command = [program, *FLAGS, f"--user-data-dir={folder / 'browser'}", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert found, (done.stderr, console)
    return json.loads(unescape(found[1])), console
