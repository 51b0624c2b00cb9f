"""A page in a real browser without a network: what it asked for, what its console said, how it looks."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No network, and nothing that a browser asks for of its own accord.
WORDS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-sync"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=2000"),
)


@dataclass(frozen=True)
class Seen:
    """What a browser made of a page.

    Attributes:
        dom: the page as the browser holds it.
        requests: addresses that the page asked for.
        console: lines of the console.
        picture: of the upper part of the page.
    """

    dom: str
    requests: list[str]
    console: list[str]
    picture: Image.Image


def find_browser() -> str | None:
    """Path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def open_page(page: Path, folder: Path, dark: bool = False, width: int = 1200, height: int = 1600) -> Seen:
    """Open a file twice: for its content and for its looks.

    Args:
        page: the file.
        folder: for what the browser leaves.
        dark: whether the reader prefers dark pages.
        width: of the window.
        height: of the window.
    """
    net, shot = folder / "net.json", folder / "shot.png"
    words = [f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={int(not dark)}"]
    shown = _run([*words, f"--log-net-log={net}", "--dump-dom", page.as_uri()])
    _run([*words, f"--window-size={width},{height}", f"--screenshot={shot}", page.as_uri()])
    console = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    return Seen(shown.stdout, _requests(net, page), console, Image.open(shot).convert("RGB"))


def print_page(page: Path, folder: Path) -> bytes:
    """The page as a printer would get it: a PDF."""
    _run([f"--user-data-dir={folder / 'profile'}", f"--print-to-pdf={folder / 'page.pdf'}", page.as_uri()])
    return (folder / "page.pdf").read_bytes()


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    browser = find_browser()
    assert browser is not None
    return subprocess.run([browser, *WORDS, *words], capture_output=True, text=True, timeout=120, check=True)


def _requests(net: Path, page: Path) -> list[str]:
    """Addresses that a page asked for, by the browser's own log; what the browser wants for itself has no origin."""
    events = json.loads(net.read_text(encoding="utf-8"))["events"]
    asked = [event["params"] for event in events if "initiator" in event.get("params", {})]
    urls = {params["url"] for params in asked if params["initiator"] != "not an origin"}
    return sorted(urls - {page.as_uri()})
