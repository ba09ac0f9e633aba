"""A real browser without a window, spoken to over two pipes.

The DevTools protocol, as JSON texts that end in a zero byte; Chromium reads them from
its third file descriptor and writes to its fourth.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60.0


def found():
    """The program, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page in one browser.

    Args:
        folder: for its profile.
    """

    def __init__(self, folder):
        reads, self.writes = os.pipe()
        self.reads, writes = os.pipe()
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run")
        flags += ("--disable-dev-shm-usage", "--remote-debugging-pipe")

        def adopt():
            # The numbers may be taken already, one by the other.
            theirs = os.dup(reads), os.dup(writes)
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)

        self.process = subprocess.Popen(  # noqa: S603
            [found(), *flags, f"--user-data-dir={folder}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=adopt,  # noqa: PLW1509
        )
        os.close(reads)
        os.close(writes)
        self.number, self.rest, self.session = 0, b"", None
        self.events = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def close(self):
        try:
            self.process.kill()
        finally:
            self.process.wait()
            os.close(self.writes)
            os.close(self.reads)

    def ask(self, method, **parameters):
        """The result of one command; what happens meanwhile is kept as events."""
        self.number += 1
        said = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            said["sessionId"] = self.session
        os.write(self.writes, json.dumps(said).encode() + b"\0")
        while True:
            heard = self._hear()
            if heard.get("id") == self.number:
                assert "error" not in heard, heard
                return heard["result"]
            self.events.append(heard)

    def _hear(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.reads], [], [], end - time.monotonic())
            assert ready, "the browser says nothing"
            data = os.read(self.reads, 1 << 20)
            assert data, "the browser is gone"
            self.rest += data
        text, _, self.rest = self.rest.partition(b"\0")
        return json.loads(text)

    def show(self, path, *, width=1100, height=900, scheme="light", phone=False):
        """Open a file at this size and wait until it is there."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.ask("Emulation.setEmulatedMedia", features=[feature])
        self.events.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not self.happened("Page.loadEventFired"):
            self.events.append(self._hear())

    def happened(self, method):
        """The parameters of all events of this kind since the page was asked for."""
        return [e["params"] for e in self.events if e.get("method") == method]

    def complaints(self):
        """What a person would see in red in the console."""
        self.ask("Runtime.evaluate", expression="1")
        logged = [entry["entry"] for entry in self.happened("Log.entryAdded")]
        called = self.happened("Runtime.consoleAPICalled")
        return [*logged, *called, *self.happened("Runtime.exceptionThrown")]

    def requested(self):
        """Every address that the page asked for."""
        asked = self.happened("Network.requestWillBeSent")
        return [event["request"]["url"] for event in asked]

    def evaluate(self, expression):
        """The value of an expression in the page."""
        said = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def picture(self):
        """The whole page, as PNG."""
        said = self.ask(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True
        )
        return base64.b64decode(said["data"])

    def print(self):
        """The page on paper, as PDF."""
        said = self.ask("Page.printToPDF", preferCSSPageSize=True)
        return base64.b64decode(said["data"])
