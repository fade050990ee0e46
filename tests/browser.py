"""A real Chromium and a real JupyterLab: opened, clicked and typed into as a person would."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket  # comes with JupyterLab

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 120  # seconds that anything may take to appear


class Page:
    """A tab of the browser, through the Chrome DevTools Protocol."""

    def __init__(self, address: str) -> None:
        self.socket = websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)
        self.numbers = itertools.count(1)
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv())).get("id") != number:
            if answer.get("method") == "Page.javascriptDialogOpening":  # a notebook that isn't saved asks back
                accept = {"method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                self.socket.send(json.dumps({"id": next(self.numbers)} | accept))
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def ask(self, script: str) -> Any:
        """What an expression in JavaScript is, as JSON."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = PATIENCE) -> Any:
        """What the expression is as soon as it is something."""
        end = time.monotonic() + seconds
        while not (found := self.ask(script)):
            assert time.monotonic() < end, f"in vain for {script}; the page says: {self.text()[-1500:]}"
            time.sleep(0.2)
        return found

    def text(self, selector: str = "body") -> str:
        """All that can be read in the first element of that kind; "" where there is none."""
        return self.ask(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def wait_for_text(self, words: str, selector: str = "body") -> None:
        found = f"document.querySelector({json.dumps(selector)})?.innerText"
        self.wait(f"({found} ?? '').includes({json.dumps(words)})")

    def click(self, selector: str, words: str = "") -> None:
        """A click with the mouse on the first visible element of that kind that says exactly these words."""
        place = f"""(() => {{
          const fits = (e) => !{json.dumps(words)} || e.innerText.trim() === {json.dumps(words)};
          const found = [...document.querySelectorAll({json.dumps(selector)})].find((e) => e.offsetParent && fits(e));
          if (!found || found.disabled) return null;
          found.scrollIntoView({{block: "center"}});
          const box = found.getBoundingClientRect();
          return [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
        x, y = self.wait(place)
        at = {"x": x, "y": y, "button": "left", "clickCount": 1}
        for what in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=what, **at)

    def press(self, letter: str) -> None:
        """A key, into what has the focus."""
        for what in ("keyDown", "keyUp"):
            more = {"text": letter} if what == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=what, key=letter, **more)

    def choose(self, selector: str, option: str) -> None:
        """An option of a list, as its menu would set it, which a browser without a window doesn't open."""
        self.ask(f"""(() => {{
          const list = document.querySelector({json.dumps(selector)});
          list.value = {json.dumps(option)};
          list.dispatchEvent(new Event("change", {{bubbles: true}}));
        }})()""")

    def picture(self, path: Path) -> Path:
        """What the tab shows, as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
        return path


@contextmanager
def chromium(profile: Path, width: int = 1400, height: int = 2600) -> Iterator[Page]:
    """A browser without a window of its own, with a fresh profile and one tab."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               "--remote-debugging-port=0", f"--user-data-dir={profile}",
               f"--window-size={width},{height}"]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen([CHROMIUM, *options, "about:blank"], **quiet)
    try:
        told = profile / "DevToolsActivePort"
        for _ in range(PATIENCE * 5):
            if told.is_file() and told.read_text().count("\n"):
                break
            time.sleep(0.2)
        port = told.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE) as answer:
            tab = next(each for each in json.load(answer) if each["type"] == "page")
        page = Page(tab["webSocketDebuggerUrl"])
        yield page
        page.socket.close()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """JupyterLab in a folder, as `make lab` starts it; the address that its pages begin with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
               "--IdentityProvider.token=t", "--LabApp.news_url=None"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(folder), "JUPYTER_PATH": str(Path(sys.prefix, "share", "jupyter"))}
    log = folder / "lab.log"
    with log.open("w") as lines:
        lab = subprocess.Popen(command, cwd=folder, env=environment, stdout=lines, stderr=lines, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(PATIENCE * 2):
            try:
                urllib.request.urlopen(f"{address}/api/status?token=t", timeout=5).close()
                break
            except OSError:
                assert lab.poll() is None, log.read_text()
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(lab.pid, signal.SIGTERM)
        lab.wait(30)


def wait_until(true: Callable[[], bool]) -> None:
    """Waits until it is so."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it didn't come to pass in time"
        time.sleep(0.5)


def open_notebook(page: Page, address: str, path: str) -> None:
    """Opens a notebook in JupyterLab, and waits until its kernel is idle and the page holds it."""
    page.open(f"{address}/lab/tree/{path}?token=t&reset")
    page.wait("document.querySelectorAll('.jp-Notebook .jp-Cell').length")
    wait_until(lambda: _is_held(address, path))  # earlier, JupyterLab would ask which kernel to take
    page.wait("document.querySelector('.jp-Notebook-ExecutionIndicator-tooltip')?.textContent.includes('Idle')")
    time.sleep(2)


def _is_held(address: str, path: str) -> bool:
    with urllib.request.urlopen(f"{address}/api/sessions?token=t", timeout=PATIENCE) as answer:
        kernels = [each["kernel"] for each in json.load(answer) if each["path"] == path]
    return any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in kernels)


def run_all(page: Page) -> None:
    """The menu's Run, Run All Cells."""
    page.click(".lm-MenuBar-itemLabel", "Run")
    page.click(".lm-Menu-itemLabel", "Run All Cells")
