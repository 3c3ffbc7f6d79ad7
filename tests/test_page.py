"""The page: what it says, what it is made of, and how it looks to a browser."""

from __future__ import annotations

import dataclasses
import doctest
import gc
import json
import re
import shutil
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

import ubatch
from ubatch import Cost, Histogram, Statistics, UBatch
from ubatch._statistics import SECONDS, SHARES, SIZES
from ubatch.integrations import _page
from ubatch.integrations._page import Page, since, what_limits
from ubatch.testing import Gate, VirtualRuntime

from .conftest import Harness

# What limits it, in words.


def made(
    *, batches: int = 100, size: float = 3.0, wait: float = 0.004, handler: float = 0.01, **fields: Any
) -> Statistics:
    """Statistics of so many batches, of this mean size."""
    nothing: dict[str, Any] = dict.fromkeys(("raised", "rejected", "expired", "abandoned", "closed"), 0)
    items = round(batches * size)
    values: dict[str, Any] = {
        **nothing,
        "name": "b",
        "runtime": "gevent",
        "max_size": 64,
        "timeout": 0.005,
        "eager": False,
        "max_in_flight": 1,
        "runs_on": "native",
        "hub_away": 0.0,
        "pending": 0,
        "in_flight": 0,
        "stalled": False,
        "stopped": False,
        "answered": items,
        "batches": batches,
        "items": items,
        "reasons": {"timeout": batches},
        "sizes": histogram(SIZES, batches, items),
        "fills": histogram(SHARES, batches, items / 64),
        "queue_seconds": histogram(SECONDS, items, items * wait),
        "handler_seconds": histogram(SECONDS, batches, batches * handler),
        "handler_seconds_by_size": (),
        "cost": None,
    }
    return Statistics(**values | fields)


def histogram(bounds: tuple[float, ...], count: int, total: float) -> Histogram:
    """So many values, which add up to this, all counted at one bound: the sentences ask for the mean only."""
    return Histogram(bounds, (count, *(0 for _ in bounds)), total)


FULL: dict[str, Any] = {"reasons": {"full": 100}, "size": 64}
SENTENCES = [
    (made(batches=0, reasons={}), "There has been no batch: nothing can be said yet."),
    (
        made(),
        "Batches are closed by the timeout with 3 of 64: at this load a larger max_size changes nothing. A longer "
        "timeout would fill them more, and a shorter one would answer sooner: requests wait 4 ms on average, and the "
        "handler takes 10 ms. With eager=True they would wait only while others are on the way.",
    ),
    (
        made(size=1.1),
        "Batches are closed by the timeout with 1.1 of 64: at this load a larger max_size changes nothing. Calls come "
        "alone, so batching saves nothing now, and eager=True would answer each of them 5 ms sooner.",
    ),
    (
        made(timeout=0.0, wait=0.0001),
        "Batches are closed by the timeout with 3 of 64: at this load a larger max_size changes nothing. With a "
        "timeout of 0 nobody waits for company while there is a slot at the handler.",
    ),
    (
        made(wait=0.03),
        "The handler is the limit: requests wait 30 ms on average for the one slot at it, longer than the timeout of "
        "5 ms, so neither timeout nor max_size matters. A faster handler, a higher max_in_flight or another worker "
        "would help.",
    ),
    (
        made(**FULL, wait=2.0, handler=1.5, max_in_flight=2),
        "The handler is the limit: requests wait 2 s on average for one of the 2 slots at it, and batches go with 64 "
        "of 64. A larger max_size, a higher max_in_flight or another worker may help.",
    ),
    (
        made(**FULL, wait=0.03, cost=Cost(0.004, 0.0001)),
        "The handler is the limit: requests wait 30 ms on average for the one slot at it, and batches go with 64 of "
        "64. A larger max_size would help: 38 % of the time of a batch of 64 does not depend on its size.",
    ),
    (
        made(**FULL, wait=0.03, cost=Cost(0.0001, 0.0001)),
        "The handler is the limit: requests wait 30 ms on average for the one slot at it, and batches go with 64 of "
        "64. A larger max_size would hardly help, because a batch of 64 spends nearly all of its time on its items. A "
        "faster handler, a higher max_in_flight or another worker would.",
    ),
    (
        made(**FULL, wait=0.001),
        "Batches are closed full, with 64 of 64, before the timeout: at this load a longer timeout changes nothing, "
        "and max_size decides. The handler keeps up.",
    ),
    (
        made(**FULL, wait=0.001, cost=Cost(0.004, 0.0001)),
        "Batches are closed full, with 64 of 64, before the timeout: at this load a longer timeout changes nothing, "
        "and max_size decides. The handler keeps up; a larger max_size could save it at most 38 % of its time, and "
        "each request would wait longer.",
    ),
    (
        made(size=40, reasons={"full": 50, "timeout": 50}),
        "Some batches are closed full and some by the timeout, 40 of 64 on average: max_size and timeout fit each "
        "other at this load. A larger max_size needs a longer timeout to be filled.",
    ),
    (
        made(reasons={"idle": 100}, wait=0.0002, size=1.1),
        "Batches are closed because nobody else is on the way, with 1.1 of 64: at this load neither timeout nor "
        "max_size matters. Calls come alone, and each goes at once: batching saves nothing now, and costs no wait.",
    ),
    (
        made(reasons={"idle": 100}, wait=0.0002),
        "Batches are closed because nobody else is on the way, with 3 of 64: at this load neither timeout nor "
        "max_size matters. The handler keeps up, and nobody waits in vain.",
    ),
    (
        made(reasons={"idle": 80, "full": 20}, wait=0.004),
        "Batches are closed because nobody else is on the way, with 3 of 64: at this load neither timeout nor "
        "max_size matters. Requests wait 4 ms on average, mostly for a slot at the handler, which takes 10 ms: a "
        "faster one would answer sooner.",
    ),
    (
        made(reasons={"idle": 50, "full": 50}, size=40),
        "Some batches are closed because nobody else is on the way, and some full, 40 of 64 on average: the timeout "
        "does not matter. A larger max_size would take more when many calls come at once.",
    ),
    (
        made(reasons={"idle": 50, "full": 10, "timeout": 40}, size=40),
        "Some batches are closed because nobody else is on the way, and some by the timeout, 40 of 64 on average: at "
        "times others are on the way for longer than that. A longer timeout would fill these batches more, and a "
        "shorter one would answer sooner.",
    ),
    (
        made(reasons={"idle": 20, "drain": 30}, batches=50, wait=0.0002),
        "Batches are closed because nobody else is on the way, with 3 of 64: at this load neither timeout nor "
        "max_size matters. The handler keeps up, and nobody waits in vain.",
    ),
    (
        made(reasons={"drain": 100}),
        "Most batches were closed because the batcher was stopping: this says nothing of the load.",
    ),
    (made(max_size=1, size=1), "max_size is 1: every call is a batch of its own."),
]
EAGER = [  # what it is already is no advice
    (
        made(eager=True, reasons={"timeout": 90, "idle": 10}),
        "Batches are closed by the timeout with 3 of 64: at this load a larger max_size changes nothing. A longer "
        "timeout would fill them more, and a shorter one would answer sooner: requests wait 4 ms on average, and the "
        "handler takes 10 ms.",
    ),
    (
        made(eager=True, size=1.1),
        "Batches are closed by the timeout with 1.1 of 64: at this load a larger max_size changes nothing. Calls come "
        "alone, so batching saves nothing now, and a shorter timeout would answer each of them sooner: the process has "
        "other work for longer than it.",
    ),
    (
        made(eager=True, size=40, reasons={"full": 50, "timeout": 50}),
        "Some batches are closed full and some by the timeout, 40 of 64 on average: max_size and timeout fit each "
        "other at this load. A larger max_size needs a longer timeout to be filled.",
    ),
]
TROUBLES = [
    ({"stalled": True}, "The handler is stuck: it has not come back for longer than stall_after. "),
    ({"stopped": True}, "It is stopped, and refuses calls. "),
    ({"rejected": 1}, "1 of 301 calls was refused, because the queue was full. "),
    ({"expired": 5}, "5 of 305 calls were not answered before the deadline. "),
]


@pytest.mark.parametrize(("statistics", "sentence"), [*SENTENCES, *EAGER], ids=range(len(SENTENCES + EAGER)))
def test_it_says_in_plain_words_what_limits_a_batcher(statistics: Statistics, sentence: str) -> None:
    assert what_limits(statistics) == sentence


@pytest.mark.parametrize("eager", [False, True])
def test_the_page_knows_whether_a_batcher_is_eager(harness: Harness, runtime: VirtualRuntime, eager: bool) -> None:
    batcher, _ = harness.batcher(max_size=2, timeout=0.005, eager=eager)
    batcher.submit(1)
    runtime.advance(0.005)
    assert Page([batcher]).snapshot()["batchers"][0]["eager"] is eager


@pytest.mark.parametrize(("fields", "sentence"), TROUBLES, ids=[*(str(fields) for fields, _ in TROUBLES)])
def test_trouble_is_told_first(fields: dict[str, Any], sentence: str) -> None:
    assert what_limits(made(**fields)).startswith(sentence + "Batches are closed by the timeout with 3 of 64")


# Figures.


def test_the_examples_in_docstrings_run() -> None:
    assert doctest.testmod(_page).failed == 0


def test_it_tells_of_a_batcher_what_its_statistics_tell(harness: Harness, runtime: VirtualRuntime, gate: Gate) -> None:
    batcher, _ = harness.batcher(gate=gate, max_size=2, timeout=5.0, name="b")
    for x in range(3):
        batcher.submit(x)
    runtime.advance(1.0)
    told = Page([batcher]).snapshot()["batchers"][0]
    assert (told["name"], told["max_size"], told["timeout"], told["max_in_flight"]) == ("b", 2, 5.0, 1)
    assert (told["pending"], told["in_flight"], told["stalled"], told["stopped"]) == (1, 2, False, False)
    assert told["recent"] is None
    assert (told["total"]["batches"], told["total"]["reasons"], told["total"]["calls"]) == (1, {"full": 1}, 3)
    gate.open()
    runtime.settle()


def test_recent_is_what_came_since_a_look_that_is_not_too_old(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(max_size=1)
    page = Page([batcher], clock=runtime.clock)
    seen = []
    for seconds in (0.0, 0.5, 10.0, 25.0, 100.0):
        runtime.advance(seconds)
        batcher.submit(1)
        runtime.settle()
        recent = page.snapshot()["batchers"][0]["recent"]
        seen.append(recent and (recent["answered"], recent["seconds"], recent["sizes"]["mean"]))
    assert seen == [None, (1, 0.5, 1.0), (2, 10.5, 1.0), (1, 25.0, 1.0), None]


def test_a_difference_is_of_all_that_is_counted(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(max_size=2, timeout=5.0)
    batcher.submit(1)
    runtime.advance(5.0)
    before = batcher.statistics()
    for x in range(4):
        batcher.submit(x)
    runtime.settle()
    difference = since(before, batcher.statistics())
    assert difference is not None
    assert (difference.answered, difference.batches, difference.items) == (4, 2, 4)
    assert difference.reasons == {"full": 2}
    assert (difference.sizes.mean, difference.fills.mean) == (2.0, 1.0)
    assert (difference.queue_seconds.count, difference.queue_seconds.sum) == (4, 0.0)
    assert difference.handler_seconds_by_size[:3] == ((0, 0.0), (2, 0.0), (0, 0.0))


def test_counters_that_began_anew_have_no_difference() -> None:
    assert since(made(batches=5), made(batches=4)) is None
    assert since(made(answered=301), made()) is None


def test_without_batchers_of_its_own_it_shows_those_that_were_called(runtime: VirtualRuntime) -> None:
    called, other = (UBatch[int, int](1, 0, runtime=runtime, name=name).set_handler(list) for name in ("it", "other"))
    called.submit(1)
    runtime.settle()
    names = [told["name"] for told in Page().snapshot()["batchers"]]
    assert "it" in names
    assert "other" not in names
    assert other.statistics().calls == 0
    stopping = runtime.call(called.stop)
    runtime.settle()
    assert stopping.done


def test_it_keeps_no_batcher_alive() -> None:
    page = Page()
    batcher = UBatch[int, int](1, 0).set_handler(list)
    page._of(batcher)
    del batcher
    gc.collect()
    assert len(page._kept) == 0


def test_no_more_than_fifty_are_shown() -> None:
    told = Page([UBatch[int, int](1, 0).set_handler(list) for _ in range(53)]).snapshot()
    assert (len(told["batchers"]), told["more"]) == (50, 3)


def test_the_json_has_no_infinity(harness: Harness, runtime: VirtualRuntime) -> None:
    batcher, _ = harness.batcher(max_size=8, timeout=60.0)
    batcher.submit(1)
    runtime.advance(60.0)
    told = json.loads(Page([batcher]).json().body)["batchers"][0]["total"]
    assert (told["queue_seconds"]["p50"], told["queue_seconds"]["mean"]) == (None, 60.0)


# In Flask.


def make_app(batchers: Any = None, **config: Any) -> Any:
    flask = pytest.importorskip("flask")
    from ubatch.integrations.flask import UBatchExtension

    app = flask.Flask("tests")
    app.config.from_mapping(config)
    UBatchExtension(app, batchers=batchers)
    return app


def test_without_its_setting_there_is_no_page() -> None:
    assert make_app().test_client().get("/ubatch").status_code == 404


def test_with_its_setting_there_is_a_page_and_its_figures() -> None:
    client = make_app(UBATCH_PAGE="/ubatch").test_client()
    page, figures = client.get("/ubatch"), client.get("/ubatch?format=json")
    assert (page.status_code, page.mimetype, figures.mimetype) == (200, "text/html", "application/json")
    assert {"worker", "at", "more", "batchers"} == set(figures.json)
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert page.headers["Cache-Control"] == figures.headers["Cache-Control"] == "no-store"
    assert client.post("/ubatch").status_code == 405


def test_what_guards_the_applications_views_guards_the_page() -> None:
    flask = pytest.importorskip("flask")
    app = make_app(UBATCH_PAGE="/ubatch")
    app.before_request(lambda: flask.abort(401))
    assert app.test_client().get("/ubatch").status_code == 401


@pytest.mark.parametrize(("path", "error"), [("ubatch", ValueError), (7, TypeError)])
def test_a_page_must_have_a_path(path: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="UBATCH_PAGE must be a path"):
        make_app(UBATCH_PAGE=path)


def test_the_page_names_no_other_place() -> None:
    html = Page().html().body.decode()
    places = re.findall(r"(?:https?:)?//[\w.-]+", html)
    assert set(places) <= {"http://www.w3.org"}  # the name of SVG, which nobody asks for
    assert re.findall(r"(?:src|href)=\"([^\"]*)\"", html) == ["data:,", "?format=json"]


def test_the_page_is_a_part_of_the_package() -> None:
    assert (Path(ubatch.__file__).parent / "integrations" / "_page.html").is_file()


def test_the_page_is_in_the_wheel(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel")
    root = Path(ubatch.__file__).parents[1]
    if not (root / "pyproject.toml").is_file():
        pytest.skip("ubatch is installed, and not run from its repository")
    wheel = next(builder.WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"]))
    assert "ubatch/integrations/_page.html" in zipfile.ZipFile(wheel).namelist()


# In a browser.

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PHONE, DESKTOP = (360, 740), (1280, 900)


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a page is served, of a batcher that was called and one that was not answered at once."""
    batcher = UBatch[int, int](64, 0.001, eager=True, runtime="threading", name="<b>digits</b>").set_handler(list)
    app = make_app([batcher], UBATCH_PAGE="/ubatch")
    for size in (1, 2, 3, 40, 64):
        batcher.map(range(size))
    app.get("/call")(lambda: str(batcher.ubatch(7)))
    with make_server("127.0.0.1", 0, app, handler_class=Quiet) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()
    batcher.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("selenium")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def look(browser: Any, address: str, *, size: tuple[int, int] = DESKTOP, dark: bool = False) -> None:
    """Open the page in a window of this size, and wait until it shows figures."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(f"{address}/ubatch")
    wait(browser, "return document.querySelectorAll('main section').length > 0")


def wait(browser: Any, script: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(script))


def text(browser: Any, selector: str) -> str:
    return str(browser.execute_script("return document.querySelector(arguments[0]).textContent", selector))


ROWS = """
    const rows = [...document.querySelectorAll(`${arguments[0]} tbody tr`)];
    return rows.map(row => [row.cells[0].textContent, row.cells[1].textContent]);
"""


@pytest.mark.timeout(120)
def test_a_browser_shows_the_figures_and_the_sentence(browser: Any, address: str) -> None:
    look(browser, address)
    assert text(browser, "h2") == "<b>digits</b>"
    assert text(browser, ".settings") == "max_size 64 · timeout 1 ms · eager · max_in_flight 1 · threading"
    assert text(browser, ".limit").startswith(("Batches are", "Some batches", "The handler is the limit"))
    assert re.match(r"Worker [0-9a-f]{6}, live", text(browser, "#where"))
    assert len(browser.execute_script("return document.querySelectorAll('figure svg .bar')")) > 3
    assert "· n for a batch of n" in text(browser, "figure:nth-child(3) .settings")
    reasons = browser.execute_script(ROWS, "figure:nth-child(4)")
    assert {label for label, _ in reasons} == {"nobody else on the way", "full", "the timeout", "a stop"}
    assert sum(int(count) for _, count in reasons) >= 5  # an eager one is split where the machine pauses
    assert browser.get_log("browser") == []


@pytest.mark.timeout(120)
def test_it_is_live_until_it_is_paused(browser: Any, address: str) -> None:
    look(browser, address)
    answered = "return document.querySelector('dd').textContent"
    browser.execute_script("document.querySelector('[value=total]').click()")
    before = browser.execute_script(answered)
    script = "const done = arguments[0]; fetch('/call').then(answer => answer.text()).then(done)"
    assert browser.execute_async_script(script) == "7"
    wait(browser, f"return (() => {{ {answered} }})() !== {json.dumps(before)}")
    browser.execute_script("document.getElementById('pause').click()")
    wait(browser, "return document.getElementById('where').textContent.endsWith('paused')")
    assert browser.execute_script("return document.getElementById('pause').getAttribute('aria-pressed')") == "true"


@pytest.mark.timeout(120)
def test_it_is_of_use_with_a_keyboard_alone(browser: Any, address: str) -> None:
    from selenium.webdriver import ActionChains, Keys

    look(browser, address)
    reached = []
    for _ in range(4):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(
            browser.execute_script("const it = document.activeElement; return it.value || it.id || it.tagName")
        )
    assert reached == ["recent", "pause", "SUMMARY", "SUMMARY"]
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(outline) == "solid"
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.execute_script("return document.activeElement.parentElement.open")
    rows = "return document.querySelectorAll('figure:nth-child(2) tbody tr').length"
    wait(browser, f"{rows} > 0")


@pytest.mark.timeout(120)
def test_a_screen_reader_finds_names_tables_and_what_has_changed(browser: Any, address: str) -> None:
    look(browser, address)
    wait(browser, "return document.querySelector('#said').textContent !== ''")
    assert text(browser, "#said").startswith("<b>digits</b>: ")
    assert browser.execute_script("return document.getElementById('said').getAttribute('aria-live')") == "polite"
    unnamed = """
        const all = document.querySelectorAll('svg, section, table, button, select, input, figure summary');
        return [...all].filter(it => {
            const ids = (it.getAttribute('aria-labelledby') || '').split(' ').filter(Boolean);
            const named = ids.map(id => document.getElementById(id).textContent).join('')
                || it.textContent.trim() || (it.labels && it.labels[0] && it.labels[0].textContent);
            return !named || (it.tagName === 'TABLE' && !it.caption);
        }).length
    """
    assert browser.execute_script(unnamed) == 0
    assert browser.execute_script("return [...document.querySelectorAll('h1, h2')].map(it => it.tagName)") == [
        "H1",
        "H2",
    ]


CONTRAST = """
    const channel = value => value <= .03928 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
    const light = color => { const [r, g, b] = color.match(/[\\d.]+/g).map(it => channel(it / 255));
        return .2126 * r + .7152 * g + .0722 * b; };
    const ground = it => { for (; it; it = it.parentElement) { const color = getComputedStyle(it).backgroundColor;
        if (!/, 0\\)$/.test(color)) return color; } return 'rgb(255, 255, 255)'; };
    return [...document.querySelectorAll('h1, h2, h3, p, dt, dd, small, summary, button, label, svg text')]
        .filter(it => it.getClientRects().length && it.textContent.trim())
        .map(it => { const style = getComputedStyle(it), on = it.ownerSVGElement?.parentElement ?? it;
            const a = light(it.ownerSVGElement ? style.fill : style.color), b = light(ground(on));
            return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), it.textContent.slice(0, 30)]; })
        .filter(([ratio]) => ratio < 4.5)
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_it_fits_a_phone_and_is_readable_in_light_and_dark(
    browser: Any, address: str, size: tuple[int, int], dark: bool
) -> None:
    look(browser, address, size=size, dark=dark)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    lightness = browser.execute_script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(lightness) < 128) is dark
    assert browser.execute_script(CONTRAST) == []
    small = "[...document.querySelectorAll('button, fieldset label')].filter(it => it.offsetHeight < 24).length"
    assert browser.execute_script(f"return {small}") == 0


@pytest.mark.timeout(120)
def test_settings_that_were_not_known_at_first_are_shown_later(browser: Any, address: str) -> None:
    look(browser, address)
    browser.execute_script(
        """
        const real = window.fetch;
        window.fetch = async (...request) => {
            const told = await (await real(...request)).json();
            told.batchers[0].runtime = "another";
            return new Response(JSON.stringify(told));
        };
        """
    )
    wait(browser, "return document.querySelector('.settings').textContent.endsWith(' · another')")


@pytest.mark.timeout(120)
def test_behind_several_workers_it_stays_with_one_and_offers_the_others(browser: Any, address: str) -> None:
    look(browser, address)
    other = json.dumps(dataclasses.asdict(made())["name"])
    browser.execute_script(
        f"""
        const real = window.fetch;
        window.fetch = async (...request) => {{
            const told = await (await real(...request)).json();
            told.worker = '4321ab';
            told.batchers[0].name = {other};
            return new Response(JSON.stringify(told));
        }};
        """
    )
    wait(browser, "return !document.getElementById('choice').hidden")
    assert "one of 2 that have answered" in text(browser, "#where")
    assert text(browser, "h2") == "<b>digits</b>"
    browser.execute_script(
        "const it = document.getElementById('worker'); it.value = '4321ab'; it.dispatchEvent(new Event('change'))"
    )
    assert text(browser, "#where").startswith("Worker 4321ab")
    assert text(browser, "h2") == "b"
