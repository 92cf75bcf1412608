"""A page in headless Chromium, which a test reads and drives by mouse and touch.

Chromium's DevTools protocol goes through two pipes, as JSON messages that end in a zero byte.
"""

import base64
import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import browser

Point = tuple[float, float]


class Page:
    """An open page. Points are in CSS pixels from its top left corner, as seen."""

    def __init__(self, send: Any, receive: Any) -> None:
        self._send, self._receive, self._ids = send, receive, itertools.count(1)
        self._session: str | None = None
        self.requests: list[str] = []
        """The URLs that the page asked for: itself, those of images in it (data:), and others."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the DevTools protocol, and return its result."""
        return self._calls([{"method": method, "params": params}])[0]

    def _calls(self, messages: list[dict[str, Any]]) -> list[Any]:
        """Send all messages before the first is answered, as fast as a hand moves."""
        asked = {next(self._ids): message for message in messages}
        for number, message in asked.items():
            to = {"sessionId": self._session} if self._session else {}
            self._send.write(json.dumps({"id": number, **message, **to}).encode() + b"\0")
        self._send.flush()
        answers: dict[int, Any] = {}
        while len(answers) < len(asked):
            answer = self._next()
            if answer.get("id") in asked:
                assert "error" not in answer, answer
                answers[answer["id"]] = answer["result"]
        return [answers[number] for number in asked]

    def _next(self) -> Any:
        text = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            assert byte, "Chromium ended"
            text += byte
        answer = json.loads(text)
        if answer.get("method") == "Network.requestWillBeSent":
            self.requests.append(answer["params"]["request"]["url"])
        assert answer.get("method") != "Runtime.exceptionThrown", answer["params"]
        return answer

    def open(self, file: Path, width: int = 1000, height: int = 800, **more: Any) -> None:
        """Open a file in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **{**size, **more})
        self.call("Page.navigate", url=file.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def run(self, code: str) -> Any:
        """Run JavaScript in the page, and return the value of its last expression, awaited."""
        done = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def painted(self) -> None:
        """Wait until the page shows what happened to it: a finger touches what is shown."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        self.call("Page.captureScreenshot")  # waits for a frame that is on the screen

    def mouse(self, path: list[Point]) -> None:
        """Press the left button at the first point, move to the others, and release it."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(path) - 1), "mouseReleased"]
        self._calls(
            [
                {
                    "method": "Input.dispatchMouseEvent",
                    "params": {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1},
                }
                for kind, (x, y) in zip(kinds, [*path, path[-1]], strict=True)
            ]
        )

    def touch(self, path: list[Point]) -> None:
        """Put a finger on the first point, move it to the others, and lift it."""
        kinds = ["touchStart", *["touchMove"] * (len(path) - 1), "touchEnd"]
        self._calls(
            [
                {
                    "method": "Input.dispatchTouchEvent",
                    "params": {"type": kind, "touchPoints": [] if kind == "touchEnd" else [point]},
                }
                for kind, (x, y) in zip(kinds, [*path, path[-1]], strict=True)
                for point in [{"x": x, "y": y}]
            ]
        )

    def screenshot(self, file: Path) -> None:
        """Write what the window shows as a PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """Run Chromium with its profile in an empty folder, and yield a page of it. Skips the test
    where there is no Chromium."""
    program = browser.chromium()
    commands, to_browser = os.pipe()
    from_browser, answers = os.pipe()
    flags = ["--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    if not os.getuid():
        flags.append("--no-sandbox")  # it refuses to run as root with its sandbox
    # Chromium reads from file 3 and writes to file 4.
    shell = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
    process = subprocess.Popen(
        ["bash", "-c", shell, program, *flags, "about:blank"],
        pass_fds=[commands, answers],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands)
    os.close(answers)
    with open(to_browser, "wb") as send, open(from_browser, "rb") as receive:
        page = Page(send, receive)
        yield page
        page._session = None
        page.call("Browser.close")
    process.wait(timeout=30)
