"""The report in a real browser: nothing fetched, no script error, videos play, sort and filter work."""

import json
import shutil
import subprocess
import time
import urllib.request

import pytest
from websockets.sync.client import connect

from wamserve.action_codec.errors import RunError
from wamserve.embodiments.contract import load
from wamserve.sim_eval import index, report, results_cli, score
from wamserve.sim_eval.lerobot_export import export_run
from wamserve.sim_eval.store import RunStore

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One headless tab, spoken to over the DevTools protocol."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [
                CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--mute-audio", "--no-first-run", "--disable-extensions", "--remote-debugging-port=0",
                "--autoplay-policy=no-user-gesture-required", f"--user-data-dir={folder}", "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port = self._port(folder / "DevToolsActivePort")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            tab = next(page for page in json.load(answer) if page["type"] == "page")
        self._connection = connect(tab["webSocketDebuggerUrl"], max_size=None, open_timeout=60)
        self.socket = self._connection.__enter__()
        self.events, self._count = [], 0
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")

    def _port(self, file, patience_s=90):
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            if file.exists() and file.read_text().strip():
                return int(file.read_text().split()[0])
            assert self.process.poll() is None, "chromium ended"
            time.sleep(0.1)
        raise AssertionError("chromium never opened its port")

    def call(self, method, **params):
        self._count += 1
        self.socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=90))
            if message.get("id") == self._count:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, script):
        """The value of an expression; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, path):
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.run("new Promise(r => document.readyState === 'complete' ? r() : addEventListener('load', r))")

    def complaints(self):
        """Exceptions, console errors and logged errors since the page was opened."""
        self.run("1")
        found = [e for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        found += [
            e for e in self.events
            if (e["method"] == "Log.entryAdded" and e["params"]["entry"]["level"] == "error")
            or (e["method"] == "Runtime.consoleAPICalled" and e["params"]["type"] in ("error", "assert"))
        ]  # fmt: skip
        return found

    def fetched(self):
        urls = [
            e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith(("data:", "file:"))]

    def close(self):
        self._connection.__exit__(None, None, None)
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium here (apt-get install chromium)")
    tab = Browser(tmp_path_factory.mktemp("chromium"))
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def page(toys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = toys.toy_run(folder / "run", {"toy/A": [1, 0, 1], "toy/B": [0, 1]})
    contract, open_task = load("pusht"), toys.ToyTask
    result = score.score_run(run, contract, open_task)
    html = report.run_page(run, result, contract, open_task, videos=4)
    return report.write_page(folder / "report.html", html)


def order(browser):
    return browser.run(
        "[...document.querySelectorAll('#episodes > .episode:not([hidden])')].map("
        "e => `${e.dataset.task} ${e.dataset.init} ${e.dataset.success}`)"
    )


def test_the_browser_notices_a_script_error_and_a_request(browser, tmp_path):
    (tmp_path / "bad.html").write_text("<img src='http://127.0.0.1:9/x.png'><script>nothing.here()</script>")
    browser.open(tmp_path / "bad.html")
    assert any(e["method"] == "Runtime.exceptionThrown" for e in browser.complaints())
    assert browser.fetched() == ["http://127.0.0.1:9/x.png"]


def test_page_opens_without_a_script_error_or_a_request(browser, page):
    browser.open(page)
    assert browser.complaints() == [] and browser.fetched() == []
    assert browser.run("document.title") == "alpha on toy"
    text = browser.run("document.getElementById('headline').innerText")
    assert "60.0 %" in text and "3 of 5" in text and "[23.1, 88.2]" in text
    assert load("pusht").wire_hash in browser.run("document.getElementById('protocol').textContent")


def test_failures_come_first_and_the_first_one_is_open(browser, page):
    browser.open(page)
    assert order(browser) == ["toy/A 1 0", "toy/B 0 0", "toy/A 0 1", "toy/A 2 1", "toy/B 1 1"]
    assert browser.run("[...document.querySelectorAll('.episode')].map(e => e.open)") == [True] + [False] * 4
    assert browser.run("document.querySelectorAll('video').length") == 4  # the fifth is a line only


def test_videos_play_and_drive_their_timeline(browser, page):
    browser.open(page)
    state = browser.run(
        """(async () => {
            const episode = document.querySelector('.episode'), video = episode.querySelector('video');
            const cursor = () => Number(episode.querySelector('.cursor').getAttribute('x1'));
            const start = cursor();
            await video.play();
            await new Promise((done, fail) => {
              const until = Date.now() + 20000;
              const look = () => video.currentTime > 0.35 ? done() : Date.now() > until
                ? fail(new Error('stuck at ' + video.currentTime)) : setTimeout(look, 20);
              look();
            });
            video.pause();
            return {error: video.error, width: video.videoWidth, height: video.videoHeight,
                    seconds: video.duration, moved: cursor() - start,
                    now: episode.querySelector('.now').innerText};
        })()"""
    )
    assert state["error"] is None
    assert (state["width"], state["height"]) == (3 * 128, 128)  # executed, imagined, difference
    assert state["seconds"] == pytest.approx(1.3, abs=0.05)  # 13 frames at 10 Hz
    assert state["moved"] > 0 and "control step" in state["now"] and "dB" in state["now"]
    assert browser.complaints() == []


def test_all_videos_decode(browser, page):
    browser.open(page)
    loaded = browser.run(
        """Promise.all([...document.querySelectorAll('video')].map(v => new Promise(done => {
            v.closest('details').open = true;
            if (v.readyState >= 2) return done(v.videoWidth);
            v.addEventListener('loadeddata', () => done(v.videoWidth));
            v.addEventListener('error', () => done('error ' + v.error.message));
            v.load();
        })))"""
    )
    assert loaded == [384] * 4


def test_a_click_on_the_timeline_seeks_the_video(browser, page):
    browser.open(page)
    seconds = browser.run(
        """new Promise(done => {
            const episode = document.querySelector('.episode'), video = episode.querySelector('video');
            const chart = episode.querySelector("svg[id^='psnr-']"), box = chart.getBoundingClientRect();
            const seek = () => {
              video.addEventListener('seeked', () => done(video.currentTime), {once: true});
              const x0 = Number(chart.dataset.left), x1 = Number(chart.dataset.right);
              const x = box.left + (x0 + (x1 - x0) * 8 / 12) / chart.viewBox.baseVal.width * box.width;
              const at = {clientX: x, clientY: box.top + 20, bubbles: true};
              chart.dispatchEvent(new MouseEvent('click', at));
            };
            video.readyState >= 1 ? seek() : video.addEventListener('loadedmetadata', seek, {once: true});
        })"""
    )
    assert seconds == pytest.approx(0.85, abs=0.02)  # the middle of frame 8


def test_filters_and_orders_change_what_is_shown(browser, page):
    browser.open(page)

    def choose(name, value, event="change"):
        browser.run(
            f"(() => {{ const e = document.getElementById('{name}'); e.value = '{value}';"
            f" e.dispatchEvent(new Event('{event}')); }})()"
        )

    choose("outcome", "1")
    assert order(browser) == ["toy/A 0 1", "toy/A 2 1", "toy/B 1 1"]
    assert browser.run("document.getElementById('count').innerText") == "3 of 5 episodes"
    choose("task", "toy/B")
    assert order(browser) == ["toy/B 1 1"]
    choose("outcome", "")
    choose("task", "")
    choose("words", "init 1", "input")
    assert order(browser) == ["toy/A 1 0", "toy/B 1 1"]
    choose("words", "", "input")
    choose("order", "task")
    assert order(browser) == ["toy/A 0 1", "toy/A 1 0", "toy/A 2 1", "toy/B 0 0", "toy/B 1 1"]
    choose("order", "progress")
    credit = browser.run("[...document.querySelectorAll('.episode')].map(e => Number(e.dataset.progress))")
    assert credit == sorted(credit)


def test_task_table_sorts_by_a_click_on_its_head(browser, page):
    browser.open(page)
    column = "[...document.querySelectorAll('#tasks tbody tr')].map(r => r.cells[0].textContent)"
    head = "document.querySelectorAll('#tasks th')[3].click()"
    assert browser.run(column) == ["toy/A", "toy/B"]
    browser.run(head)
    assert browser.run(column) == ["toy/B", "toy/A"]  # 50 % before 67 %
    browser.run(head)
    assert browser.run(column) == ["toy/A", "toy/B"]


def test_index_draws_checkpoints_over_iterations(toys, browser, tmp_path):
    scored = []
    for step, rows in ((500, [0, 0, 1, 0]), (1000, [1, 0, 1, 0]), (2000, [1, 1, 1, 1])):
        run = toys.toy_run(
            tmp_path / f"r{step}", {"toy/A": rows}, policy=f"runs/mt/iter_{step:06d}", imagine=False
        )
        scored.append((run.info, score.score_run(run), tmp_path / f"r{step}" / "report.html"))
    other = toys.toy_run(tmp_path / "other", {"toy/A": [1, 1, 0, 0]}, imagine=False, horizon=2)
    scored.append((other.info, score.score_run(other), tmp_path / "other" / "report.html"))
    path = report.write_page(tmp_path / "index.html", index.index_page(scored, tmp_path))
    browser.open(path)
    assert browser.complaints() == [] and browser.fetched() == []
    assert browser.run("document.querySelectorAll('h2').length") == 2  # two protocols, never one table
    row = browser.run("document.querySelector('.iterations tbody tr').innerText").split()
    assert row[0].endswith("iter_*") and [row[1], row[4], row[7]] == ["25.0", "50.0", "100.0"]
    assert browser.run("document.querySelectorAll('svg.chart .point').length") == 3
    links = browser.run("[...document.querySelectorAll('.runs a')].map(a => a.getAttribute('href'))")
    assert links == ["r500/report.html", "r1000/report.html", "r2000/report.html", "other/report.html"]


def test_dynamics_page_plays_predicted_beside_recorded(toys, browser, tmp_path):
    toys.toy_run(tmp_path / "run", {"toy/A": [1]}, horizon=6, steps=20).close()
    run = RunStore.open(tmp_path / "run")
    export_run(run, tmp_path / "set", load("pusht"), toys.ToyTask)
    page = tmp_path / "dynamics.html"
    results_cli.score_episodes(tmp_path / "set", "identity", "pusht", page=page)
    browser.open(page)
    assert browser.complaints() == [] and browser.fetched() == []
    played = browser.run(
        """(async () => {
            const video = document.querySelector('video');
            await video.play();
            await new Promise(done => video.addEventListener('timeupdate', done, {once: true}));
            return [video.videoWidth, video.error, document.querySelector('.now').innerText];
        })()"""
    )
    assert played[:2] == [384, None] and "control step" in played[2]
    assert "copy of frame 0" in browser.run("document.getElementById('headline').innerText")


def test_iterations_are_read_from_checkpoint_names():
    assert index.split_iteration("toy:runs/mt/iter_000500") == ("toy:runs/mt/iter_*", 500)
    assert index.split_iteration("org/model/checkpoint-1500") == ("org/model/checkpoint-*", 1500)
    assert index.split_iteration("nvidia/Cosmos3-Nano-Policy-DROID") == (
        "nvidia/Cosmos3-Nano-Policy-DROID",
        None,
    )


def test_words_of_a_run_cannot_become_markup(toys, tmp_path):
    name = "<script>alert(1)</script>"
    run = toys.toy_run(tmp_path / "r", {"toy/A": [0]}, policy=name, imagine=False)
    html = report.run_page(run, score.score_run(run))
    assert name not in html and "&lt;script&gt;alert(1)" in html


def test_no_finished_episode_is_an_error_not_an_empty_page(toys, tmp_path):
    run = RunStore.create(tmp_path / "r", toys.toy_card(inits=2), {}, 2)
    with pytest.raises(RunError, match="no finished episode"):
        report.run_page(run, None)
