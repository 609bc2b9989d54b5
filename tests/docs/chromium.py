"""A headless Chromium, driven through a pipe with the DevTools protocol: the standard library is enough."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
TIME_LIMIT = 30.0
"""Seconds for one answer of the browser."""


def find() -> str | None:
    """Return the browser's path: ``$CHROMIUM`` if that is set, else the first known name."""
    names = [os.environ["CHROMIUM"]] if os.environ.get("CHROMIUM") else NAMES
    return next((path for path in map(shutil.which, names) if path), None)


class Browser:
    """One browser with one page.

    ``console`` collects messages of level error and uncaught exceptions, ``requests`` the addresses that the
    page asked for, and ``failed`` those that it did not get.
    """

    def __init__(self, path: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="refnorm-chromium-", ignore_cleanup_errors=True)
        # The browser reads commands from descriptor 3 and answers on 4.
        command_out, self._write = os.pipe()
        self._read, answer_in = os.pipe()
        # The two ends may themselves be numbered 3 or 4: the shell moves them via higher numbers.
        script = f'exec 8<&{command_out} 9>&{answer_in}; exec 3<&8 4>&9 8<&- 9>&-; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", path, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=(command_out, answer_in),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_out)
        os.close(answer_in)
        self._buffer, self._number, self._events = b"", 0, []  # type: tuple[bytes, int, list[dict[str, Any]]]
        self.console: list[str] = []
        self.requests: list[str] = []
        self.failed: list[str] = []
        self._addresses: dict[str, str] = {}
        self._session = ""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and remove its profile."""
        os.close(self._write)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        self._profile.cleanup()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        number = self._number
        answer = self._until(lambda found: found.get("id") == number, method)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error'].get('message')}")
        return dict(answer["result"])

    def _until(self, wanted: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        end = time.monotonic() + TIME_LIMIT
        while True:
            while b"\0" in self._buffer:
                raw, _, self._buffer = self._buffer.partition(b"\0")
                message = json.loads(raw)
                if wanted(message):
                    return dict(message)
                self._note(message)
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self._read, 1 << 20) if ready else b""
            if not piece:
                raise TimeoutError(f"{what}: the browser {'ended' if ready else 'does not answer'}")
            self._buffer += piece

    def _note(self, message: dict[str, Any]) -> None:
        method, data = message.get("method"), message.get("params", {})
        if method == "Runtime.consoleAPICalled" and data["type"] in ("error", "assert"):
            self.console.append(" ".join(str(a.get("value", a.get("description"))) for a in data["args"]))
        elif method == "Runtime.exceptionThrown":
            details = data["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and data["entry"]["level"] == "error":
            self.console.append(f"{data['entry']['text']} {data['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self._addresses[data["requestId"]] = data["request"]["url"]
            self.requests.append(data["request"]["url"])
        elif method == "Network.loadingFailed" and not data.get("canceled"):
            self.failed.append(f"{self._addresses.get(data['requestId'], '?')}: {data['errorText']}")
        elif method == "Network.responseReceived" and data["response"]["status"] >= 400:
            self.failed.append(f"{data['response']['url']}: status {data['response']['status']}")
        self._events.append(message)

    def size(self, width: int, height: int = 900) -> None:
        """Lay the page out for a screen of this size in CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def open(self, address: str) -> None:
        """Load a page and wait until its scripts and its formulas are done."""
        self.console, self.requests, self.failed, self._events = [], [], [], []
        self.send("Page.navigate", url=address)
        if not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._until(lambda found: found.get("method") == "Page.loadEventFired", f"loading {address}")
        self.evaluate("window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => 0) : 0")
        self.evaluate("document.fonts.ready.then(() => 0)")

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression, awaited if it is a promise."""
        result = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script[:200]}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def screenshot(self, whole: bool = False) -> bytes:
        """Return the page, or what the screen shows of it, as PNG."""
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(picture["data"])
