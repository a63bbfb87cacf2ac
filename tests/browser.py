#!/usr/bin/env python3
"""Tests the page of `edge run --http` in headless Chromium.

    browser.py URL [--expect LABEL] [--screenshots DIR]    opens and checks the page
    browser.py URL --steps                                 reads steps from stdin, one per line

Each step prints a line: `ok` with the result or `failed: ` with the reason:

    label NAME         waits until the page shows this label
    live, lost         waits until the page shows the live state, or a broken connection
    source STATE       waits until the page shows this state of the source
    picture            waits until a new image is shown
    size WIDTH HEIGHT  sets the size of the window, in CSS pixels
    scheme dark|light  sets the preferred color scheme
    screenshot FILE    saves the window as PNG. The page must not be wider than the window
    down, up           ignores network errors in between
    click ID           clicks an element
    key NAME           presses a key: a letter or digit, Enter, Space, Tab, Escape
    type TEXT          types into the focused element
    eval EXPRESSION    evaluates JavaScript
    until EXPRESSION   waits until JavaScript is true
    calm               checks that there was no error or warning so far

The browser is controlled over a pipe (`--remote-debugging-pipe`), which needs no websocket. Exits
with 1 if a step fails.
"""

import argparse
import base64
import fcntl
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time

PATIENCE = 60


class Wrong(Exception):
    """A failed step."""


class Browser:
    """Chromium with one page."""

    def __init__(self):
        program = shutil.which("chromium")
        if program is None:
            raise Wrong("chromium is missing; run ./test, which installs it")
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.complaints = []
        self.down = False
        self.session = None
        self.number = 0
        self.buffer = b""
        commands, self.commands = os.pipe()
        self.answers, answers = os.pipe()
        # They become 3 and 4 in the browser; above 10 they are not in each other's way.
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands, answers)]

        def place():
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)

        self.log = open(os.path.join(self.folder.name, "log"), "w+b")
        flags = [
            "--headless=new",
            "--remote-debugging-pipe",
            f"--user-data-dir={self.folder.name}/profile",
            "--no-first-run",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-component-update",
            "--disable-sync",
            "--lang=en-GB",
            "--window-size=1440,900",
            "--hide-scrollbars",
            "--no-proxy-server",
        ]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")
        self.process = subprocess.Popen(
            [program, *flags, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            pass_fds=(3, 4),
            preexec_fn=place,
            env={**os.environ, "HOME": self.folder.name, "TZ": "UTC"},
        )
        for fd in (*theirs, commands, answers):
            os.close(fd)
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self):
        """Ends the browser."""
        try:
            self.session = None
            self.call("Browser.close", patience=5)
            self.process.wait(5)
        except (Wrong, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.folder.cleanup()

    def message(self, until):
        """The next message, or None; messages end with a zero byte."""
        while b"\0" not in self.buffer:
            if not select.select([self.answers], [], [], max(0, until - time.monotonic()))[0]:
                return None
            data = os.read(self.answers, 1 << 20)
            if not data:
                self.log.seek(0)
                raise Wrong("chromium exited: " + self.log.read().decode(errors="replace")[-2000:])
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, patience=PATIENCE, **params):
        """Calls a method of the DevTools protocol."""
        self.number += 1
        call = {"id": self.number, "method": method, "params": params}
        if self.session:
            call["sessionId"] = self.session
        data = json.dumps(call).encode() + b"\0"
        while data:
            data = data[os.write(self.commands, data) :]
        until = time.monotonic() + patience
        while (message := self.message(until)) is not None:
            if message.get("id") == self.number:
                if "error" in message:
                    raise Wrong(f"{method}: {message['error']['message']}")
                return message["result"]
            self.notice(message)
        raise Wrong(f"{method}: no answer from chromium in {patience} s")

    def notice(self, message):
        """Keeps what the page and the browser complain about."""
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(
                "exception: " + details.get("exception", {}).get("description", details["text"])
            )
        elif method == "Runtime.consoleAPICalled" and params["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.complaints.append(
                "console: " + " ".join(str(arg.get("value", arg)) for arg in params["args"])
            )
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            entry = params["entry"]
            if not (self.down and entry["source"] == "network"):
                self.complaints.append(f"{entry['source']}: {entry['text']} {entry.get('url', '')}")
        elif method == "Inspector.targetCrashed":
            raise Wrong("the page has crashed")

    def evaluate(self, expression):
        """The value of a JavaScript expression in the page."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise Wrong(
                f"{expression}: {result['exceptionDetails']['exception'].get('description')}"
            )
        return result["result"].get("value")

    def wait(self, expression, wanted):
        """Waits until `wanted` holds of an expression's value."""
        until = time.monotonic() + PATIENCE
        value = None
        while time.monotonic() < until:
            value = self.evaluate(expression)
            if wanted(value):
                return value
            time.sleep(0.1)
        raise Wrong(f"{expression} is {value!r} after {PATIENCE} s")

    def open(self, url):
        """Opens the page."""
        error = self.call("Page.navigate", url=url).get("errorText")
        if error:
            raise Wrong(f"{url}: {error}")
        self.wait("document.readyState", lambda value: value == "complete")

    # Steps.

    def step(self, words):
        """Does a step; gives what it found."""
        name, _, rest = words.partition(" ")
        method = getattr(self, f"do_{name}", None)
        if method is None:
            raise Wrong(f"no such step: {words}")
        return method(rest)

    def text(self, of):
        return f"document.getElementById('{of}').textContent"

    def do_label(self, name):
        return self.wait(self.text("label"), lambda value: value == name)

    def do_live(self, _):
        return self.wait("document.documentElement.dataset.link", lambda value: value == "live")

    def do_lost(self, _):
        self.wait("document.documentElement.dataset.link", lambda value: value == "broken")
        notice = self.wait(
            f"!document.getElementById('notice').hidden && {self.text('notice')}", bool
        )
        if "retrying" not in notice:
            raise Wrong(f"the notice says {notice!r}")
        self.wait(
            "getComputedStyle(document.getElementById('headline')).opacity",
            lambda value: float(value) < 0.99,
        )
        return notice

    def do_source(self, state):
        self.wait("document.documentElement.dataset.badge", lambda value: value == state)
        return self.evaluate(self.text("badge-text"))

    def do_picture(self, _):
        image = "document.getElementById('picture')"
        before = self.evaluate(f"{image}.src")
        self.wait(f"{image}.src", lambda value: value and value != before)
        return self.wait(f"{image}.hidden ? 0 : {image}.naturalWidth", lambda value: value > 0)

    def do_size(self, size):
        width, height = map(int, size.split())
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    def do_scheme(self, scheme):
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def do_screenshot(self, path):
        time.sleep(0.6)  # for transitions
        width, window = self.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        if width > window:
            raise Wrong(f"the page is {width} px wide in a window of {window} px")
        data = self.call("Page.captureScreenshot", format="png")["data"]
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).write_bytes(base64.b64decode(data))

    def do_click(self, of):
        place = f"document.getElementById('{of}').getBoundingClientRect()"
        x, y = self.evaluate(
            f"(({{ x, y, width, height }}) => [x + width / 2, y + height / 2])({place})"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def do_key(self, name):
        key = {"Space": " "}.get(name, name)
        code = {"Enter": 13, "Tab": 9, "Escape": 27}.get(name) or ord(key.upper())
        text = (
            {"text": "\r" if name == "Enter" else key} if len(key) == 1 or name == "Enter" else {}
        )
        letter = f"Key{key.upper()}" if key.isalpha() else f"Digit{key}"
        details = {
            "key": key,
            "code": letter if len(name) == 1 else name,
            "windowsVirtualKeyCode": code,
        }
        self.call(
            "Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **details, **text
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", **details)

    def do_type(self, text):
        self.call("Input.insertText", text=text)

    def do_until(self, expression):
        # The page may not know yet what the expression is about.
        return json.dumps(
            self.wait(
                f"(() => {{ try {{ return {expression} }} catch {{ return null }} }})()", bool
            )
        )

    def do_down(self, _):
        self.down = True

    def do_up(self, _):
        self.evaluate("0")  # what the browser has said until now belongs to the time before
        self.down = False

    def do_eval(self, expression):
        return json.dumps(self.evaluate(expression))

    def do_calm(self, _):
        self.evaluate("0")
        if self.complaints:
            raise Wrong("; ".join(self.complaints))


def main():
    parser = argparse.ArgumentParser(
        description="Test the page of `edge run --http` in headless Chromium."
    )
    parser.add_argument("url")
    parser.add_argument("--expect", metavar="LABEL", help="label that the page must show")
    parser.add_argument(
        "--screenshots", metavar="DIR", help="directory for screenshots of the page"
    )
    parser.add_argument("--steps", action="store_true", help="read steps from stdin")
    args = parser.parse_args()
    browser = None
    failed = False

    def say(words):
        print(words.replace("\n", " "), flush=True)

    try:
        browser = Browser()
        browser.open(args.url)
        if args.steps:
            say("ok ready")
            steps = (line.strip() for line in sys.stdin)
        else:
            steps = ["live", "picture"] + ([f"label {args.expect}"] if args.expect else [])
            for scheme in ("light", "dark") if args.screenshots else ():
                for name, size in (("phone", "390 844"), ("desktop", "1440 900")):
                    steps += [
                        f"scheme {scheme}",
                        f"size {size}",
                        f"screenshot {args.screenshots}/{name}-{scheme}.png",
                    ]
            steps.append("calm")
        for step in steps:
            try:
                say(f"ok {browser.step(step) or ''}".strip())
            except Wrong as wrong:
                failed = True
                say(f"failed: {step}: {wrong}")
                if not args.steps:
                    break
    except Wrong as wrong:
        failed = True
        say(f"failed: {wrong}")
    finally:
        if browser:
            browser.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
