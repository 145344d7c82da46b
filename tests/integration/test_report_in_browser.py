"""The data report in a real browser: its controls work, row contents never run, and it fits narrow and wide screens."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.data.report.page import write_report
from llmft_cli.data.report.samples import Sample, Segment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-pipe"]
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "<img src=x onerror='window.hacked = 3'>",
    "--></style></div></details><svg onload='window.hacked = 4'>",
    "{{ 7 * 7 }} ${window.hacked = 5} javascript:window.hacked=6",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")


class Browser:
    """A headless Chromium with one page, controlled through its debugging pipe."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        # Not 3 and 4, which they become in the browser.
        commands, self._commands = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in os.pipe())
        self._answers, answers = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in os.pipe())

        def connect() -> None:
            os.dup2(commands, 3)
            os.dup2(answers, 4)

        self._process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            env={**os.environ, "HOME": str(profile)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=connect,
            pass_fds=(3, 4),
        )
        os.close(commands)
        os.close(answers)
        self._numbers = itertools.count(1)
        self._unread = b""
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def close(self) -> None:
        self._session = None
        self.ask("Browser.close")
        self._process.wait(timeout=300)
        os.close(self._commands)
        os.close(self._answers)

    def ask(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            read = os.read(self._answers, 1 << 20)
            assert read, "the browser has gone"
            self._unread += read
        message, _, self._unread = self._unread.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        self._watch(answer)
        return answer

    def _watch(self, event: dict[str, Any]) -> None:
        """Record the browser's errors, and any request other than those for the page."""
        method, facts = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(facts["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Runtime.consoleAPICalled" or (method == "Log.entryAdded" and facts["entry"]["level"] != "verbose"):
            self.complaints.append(json.dumps(facts))
        elif method == "Network.requestWillBeSent" and facts.get("type") != "Document":
            self.complaints.append(facts["request"]["url"])

    def open(self, page: Path, fragment: str = "", width: int = 1400, scheme: str = "light", scripts: bool = True) -> None:
        self.complaints.clear()
        self.ask("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        # Via another page, since a change of only the fragment does not reload a page.
        self.ask("Page.navigate", url="about:blank")
        self.ask("Page.navigate", url=page.as_uri() + fragment)
        while self.run("document.readyState") != "complete":
            pass

    def run(self, expression: str) -> Any:
        """The value of an expression in the page; exempt from its content security policy."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, **text)

    def click(self, selector: str) -> None:
        """Click the mouse on an element."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.run(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
        where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, **where)

    def screenshot(self, file: Path) -> None:
        image = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(image["data"]))


def sample(number: int, split: str, *segments: Segment) -> Sample:
    tokens = sum(segment.tokens for segment in segments)
    return Sample(
        f"rows-{number}.jsonl", number, split, tokens, sum(each.tokens for each in segments if each.supervised), [*segments]
    )


def turn(question: str, answer: str) -> list[Segment]:
    return [
        Segment("<|user|>", False, True, 1),
        Segment(question, False, False, 5),
        Segment(answer, True, False, 6),
        Segment("<|end|>", True, True, 1),
    ]


SAMPLES = [
    sample(1, "train", *turn("Which lamp?\n", "The red lamp.\nIt blinks.")),
    sample(2, "validation", *turn("Which İstanbul bird?", "A gull.")),
    sample(3, "train", *(segment for text in HOSTILE for segment in turn(text, text))),
    sample(4, "train", *turn("long " * 300, "unbroken" * 100)),
]


def report(**changes: Any) -> dict[str, Any]:
    hostile = " ".join(HOSTILE)
    return {
        "rows": {"read": 1200, "kept": 1100, "rejected": 12, "duplicates": 3, "overlength": 2, "near_duplicates": 4},
        "tokens": {"total": 50_000, "supervised": 20_000},
        "splits": {"train": 1000, "validation": 100},
        "packing": {"rows": 40, "length": 512, "efficiency": 0.95},
        "lengths": {
            "min": 4, "median": 7.5, "mean": 8.0, "p95": 400, "max": 512,
            "histogram": [{"up_to": 32 * number, "rows": 100 - 6 * number} for number in range(1, 17)],
        },
        "forms": {hostile: 1100},
        "documents_split": 1,
        "sources": [{"name": hostile + "/long" * 40, "read": 1200, "kept": 1100, "rejected": 12, "weight": 2.5}],
        "overlength": {"policy": "truncate", "rows": 2, "tokens_lost": 900, "end_of_turns_lost": 2},
        "rejected_reasons": [{"reason": hostile, "count": 12, "first": [hostile + ":3"]}],
        "checks": [
            {"check": hostile, "level": "warning", "count": 3, "meaning": hostile,
             "examples": [{"source": hostile, "line": 3, "excerpt": hostile}]},
        ],
        "template": {"sha256": "ab" * 32, "end_of_turn": "<|end|>"},
        "seed": 42,
        "max_seq_length": 512,
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_report(file, report(), SAMPLES, HOSTILE[0])
    return file


def shown(browser: Browser) -> list[str]:
    """The visible samples."""
    found: list[str] = browser.run(
        "[...document.querySelectorAll('.sample')].filter((each) => each.checkVisibility()).map((each) => each.id)"
    )
    return found


def position(browser: Browser) -> str:
    return str(browser.run("document.getElementById('position').textContent"))


def type_search(browser: Browser, text: str) -> None:
    browser.run("document.getElementById('search').select()")
    browser.ask("Input.insertText", text=text)


def test_one_sample_is_shown_and_the_buttons_go_round(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert (shown(browser), position(browser)) == (["sample-1"], "1 of 4")
    browser.click("#next")
    assert (shown(browser), position(browser)) == (["sample-2"], "2 of 4")
    assert browser.run("location.hash") == "#sample-2"
    assert "A gull." in browser.run("document.getElementById('browser').innerText")
    browser.click("#previous")
    browser.click("#previous")
    assert (shown(browser), position(browser)) == (["sample-4"], "4 of 4")
    browser.click("#next")
    assert shown(browser) == ["sample-1"]
    assert browser.complaints == []


def test_the_address_names_a_sample(browser: Browser, page: Path) -> None:
    browser.open(page, "#sample-3")
    assert (shown(browser), position(browser)) == (["sample-3"], "3 of 4")
    browser.run("location.hash = '#sample-2'")
    browser.run("new Promise(requestAnimationFrame)")
    assert shown(browser) == ["sample-2"]
    browser.run("location.hash = '#no-sample'")
    assert shown(browser) == ["sample-2"]


def test_samples_are_filtered_by_split_and_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("split.value = 'validation'; split.dispatchEvent(new Event('change'))")
    assert (shown(browser), position(browser)) == (["sample-2"], "1 of 1")
    browser.run("split.value = ''; split.dispatchEvent(new Event('change'))")
    type_search(browser, "RED LAMP")
    assert (shown(browser), position(browser)) == (["sample-1"], "1 of 1")
    assert browser.run("[...CSS.highlights.get('found')].map(String)") == ["red lamp"]
    type_search(browser, "bird?")
    assert shown(browser) == ["sample-2"]
    assert browser.run("[...CSS.highlights.get('found')].map(String)") == ["bird?"]
    type_search(browser, "(.*")
    assert (shown(browser), position(browser)) == ([], "no sample matches")
    browser.click("#next")
    assert shown(browser) == []
    type_search(browser, "l")
    assert position(browser) == "1 of 4"
    assert browser.complaints == []


def test_only_what_is_learned(browser: Browser, page: Path) -> None:
    browser.open(page)
    text = "document.querySelector('#sample-1 .text').innerText"
    assert browser.run(text) == "<|user|>Which lamp?\nThe red lamp.\nIt blinks.<|end|>"
    browser.click("#learned")
    assert browser.run(text) == "The red lamp.\nIt blinks.<|end|>"
    browser.click("#learned")
    assert "Which lamp?" in browser.run(text)


def test_what_is_learned_is_coloured_and_underlined(browser: Browser, page: Path) -> None:
    browser.open(page)
    style = "(({backgroundColor, textDecorationLine, borderStyle}) => [backgroundColor, textDecorationLine, borderStyle])"
    first = "document.querySelector('#sample-1 .text > :nth-child({})')"
    masked_token, masked, learned, learned_token = (
        browser.run(f"{style}(getComputedStyle({first.format(number)}))") for number in (1, 2, 3, 4)
    )
    assert masked[1:] == ["none", "none"]
    assert learned[1:] == ["underline", "none"]
    assert masked_token[1:] == ["none", "solid"]
    assert learned_token[1:] == ["underline", "solid"]
    assert len({masked[0], learned[0]}) == 2
    assert learned_token[0] == learned[0]


def test_the_keyboard_is_enough(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.getElementById('previous').focus()")
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "next"
    browser.press("ArrowRight")
    assert shown(browser) == ["sample-2"]
    browser.press("ArrowLeft")
    assert shown(browser) == ["sample-1"]
    browser.run("document.getElementById('search').focus()")
    browser.press("ArrowRight")
    assert shown(browser) == ["sample-1"]


@pytest.mark.parametrize("fragment", ["", "#sample-3"])
def test_nothing_in_the_data_runs_or_loads(fragment: str, browser: Browser, page: Path) -> None:
    browser.open(page, fragment)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    type_search(browser, HOSTILE[1])
    assert shown(browser) == ["sample-3"]
    assert browser.run("typeof window.hacked") == "undefined"
    assert browser.run("document.querySelectorAll('img, iframe, link, object, embed, script[src]').length") == 0
    assert browser.run("document.scripts.length") == 1
    assert browser.run("document.querySelector('#sample-3 mark').textContent") == HOSTILE[0]
    assert browser.complaints == []


def test_a_script_that_got_into_the_page_would_be_refused(browser: Browser, page: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.html"
    attack = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'></body>"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", attack), encoding="utf-8")
    browser.open(copy)
    assert browser.run("typeof window.hacked") == "undefined"
    assert any("Content Security Policy" in complaint for complaint in browser.complaints)
    assert shown(browser) == ["sample-1"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1400])
def test_the_page_fits_the_screen(width: int, scheme: str, browser: Browser, page: Path) -> None:
    browser.open(page, "#sample-4", width, scheme)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    assert browser.run("innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    assert browser.run(LEAST_CONTRAST) >= 4.5


# Contrast of all visible text with the nearest background behind it, as defined by WCAG 2.
LEAST_CONTRAST = """
(() => {
  const colour = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([red, green, blue]) => [red, green, blue]
    .map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    const found = colour(getComputedStyle(element).backgroundColor);
    return found[3] === 0 ? behind(element.parentElement) : found;
  };
  const ratios = [];
  const nodes = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (nodes.nextNode()) {
    const element = nodes.currentNode.parentElement;
    if (!nodes.currentNode.data.trim() || !element.checkVisibility() || element.closest("option, script")) continue;
    const style = getComputedStyle(element);
    const ink = light(colour(element.closest("svg") ? style.fill : style.color));
    const paper = light(behind(element));
    ratios.push((Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05));
  }
  return Math.min(...ratios);
})()
"""


def test_without_scripts_every_sample_can_be_unfolded(browser: Browser, page: Path) -> None:
    browser.open(page, scripts=False)
    assert shown(browser) == [f"sample-{number}" for number in (1, 2, 3, 4)]
    assert browser.run("[...document.querySelectorAll('.sample')].map((each) => each.open)") == [True, False, False, False]
    assert not browser.run("document.getElementById('tools').checkVisibility()")
    browser.click("#sample-2 summary")
    assert browser.run("document.getElementById('sample-2').open")


def test_the_chart_shows_every_bar_and_the_limit(browser: Browser, page: Path) -> None:
    browser.open(page, width=360)
    bars = browser.run("[...document.querySelectorAll('.bar')].map((each) => each.getBoundingClientRect().height)")
    plot = browser.run("document.querySelector('.plot').getBoundingClientRect().toJSON()")
    limit = browser.run("document.querySelector('.limit').getBoundingClientRect().x")
    assert len(bars) == 16
    assert bars == sorted(bars, reverse=True)
    assert bars[0] == pytest.approx(plot["height"] * 94 / 100)
    assert limit == pytest.approx(plot["right"], abs=1)


def test_a_page_without_samples_has_no_script(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_report(file, report(checks=[], rejected_reasons=[], sources=[], template={}), [], "smollm2-135m")
    browser.open(file)
    assert browser.run("document.querySelector('h1').textContent") == "Prepared data"
    assert browser.run("document.querySelector('.verdict').textContent") == "Ready to train"
    assert browser.run("document.scripts.length") == 0
    assert browser.complaints == []
