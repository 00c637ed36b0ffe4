"""A headless Chromium driven by the DevTools protocol over a pipe; where there is none, its tests are skipped."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--disable-dev-shm-usage",
    "--disable-extensions", "--remote-debugging-pipe",
)  # fmt: skip
_KEYS = {"Enter": ("Enter", 13, "\r"), "Tab": ("Tab", 9, ""), "ArrowRight": ("ArrowRight", 39, ""),
         "ArrowLeft": ("ArrowLeft", 37, ""), "End": ("End", 35, ""), "Home": ("Home", 36, ""),
         "Space": ("Space", 32, " ")}  # fmt: skip

CHROMIUM = next((path for name in _NAMES if (path := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason=f"no browser at hand (one of {', '.join(_NAMES)}): the page was not clicked through"
)


class BrowserError(AssertionError):
    """The page threw, or the browser refused a command."""


class Browser:
    """One page of one browser; use as a context. What the page logs as an error is raised at the next command."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Args: folder: of the browser's profile, empty."""
        assert CHROMIUM is not None
        self._ids = itertools.count(1)
        self.requests: list[str] = []  # addresses that the page asked for
        self.errors: list[str] = []
        to_browser, own_out = os.pipe()
        own_in, from_browser = os.pipe()

        def hand_over() -> None:  # the protocol speaks on descriptors 3 and 4
            os.dup2(to_browser, 63)
            os.dup2(from_browser, 64)
            os.dup2(63, 3)
            os.dup2(64, 4)

        self._process = subprocess.Popen(
            [CHROMIUM, *_FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=hand_over, close_fds=False,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._out, self._in = os.fdopen(own_out, "wb", 0), os.fdopen(own_in, "rb", 0)
        self._left = b""
        targets = self._send("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self._send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            self._send("Browser.close")
        except (BrowserError, OSError):
            self._process.kill()
        self._process.wait(30)
        self._out.close()
        self._in.close()

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        """Set the viewport, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def open(self, path: Path) -> None:
        """Load a file and wait until its rows are decoded."""
        self.call("Page.navigate", url=path.resolve().as_uri())
        rows_are_there = "!document.getElementById('about') || document.documentElement.dataset.ready"
        self.wait(f"document.readyState === 'complete' && ({rows_are_there})")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise BrowserError(found["exceptionDetails"].get("exception", {}).get("description", str(found)))
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Until an expression is true."""
        script = (
            f"new Promise((done, fail) => {{ const end = Date.now() + {seconds * 1000}; const look = () => "
            f"({condition}) ? done(true) : Date.now() > end ? fail(new Error('never: ' + {json.dumps(condition)})) "
            ": setTimeout(look, 20); look(); })"
        )
        self.evaluate(script)

    def press(self, *keys: str) -> None:
        """Press keys one after another, each down and up, as a keyboard would."""
        for key in keys:
            name, code, text = _KEYS[key]
            about = {"key": text if text == " " else name, "code": name, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def choose_files(self, selector: str, paths: Sequence[Path]) -> None:
        """Choose files in an input, as its user would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path.resolve()) for path in paths])

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of the viewport, or of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command to the page."""
        return self._send(method, self._session, **parameters)

    def _send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        method, about = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(about["exceptionDetails"].get("exception", about)))
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(about["entry"]["text"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            chunk = self._in.read(1 << 20)
            if not chunk:
                raise BrowserError("the browser went away")
            self._left += chunk
        message, _, self._left = self._left.partition(b"\0")
        return dict(json.loads(message))
