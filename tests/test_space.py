"""The Space in a real browser: stitch, verdict, try texts, download, by the keyboard and in a narrow window."""

import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pico
import pytest
from transformers import pipeline

APP = Path(__file__).parent.parent / "examples" / "space" / "app.py"
SECONDS = 90

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the app."""
    pytest.importorskip("gradio", reason="pip install -r examples/space/requirements.txt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = f"import sys; sys.path.insert(0, {str(APP.parent)!r}); import app; app.page.launch(server_port={port})"
    log = tmp_path_factory.mktemp("space") / "log"
    with log.open("w") as stream, subprocess.Popen([sys.executable, "-c", start], stdout=stream, stderr=stream) as app:
        try:
            end = time.monotonic() + SECONDS
            while True:
                with socket.socket() as tried:
                    if tried.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert app.poll() is None and time.monotonic() < end, log.read_text()  # noqa: PT018
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            app.kill()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Chromium without a window."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    if shutil.which("chromedriver") is None:
        pytest.skip("apt-get install chromium-driver")
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1500"):
        options.add_argument(option)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    driver.implicitly_wait(SECONDS)
    yield driver
    driver.quit()


def fill(browser: Any, name: str, text: str) -> None:
    """Replace the text of a box, by the keyboard."""
    from selenium.webdriver import Keys

    box = browser.find_element("css selector", f"#{name} textarea, #{name} input")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(text)


def wait_for(condition: Any) -> Any:
    """Return what a condition gives once it is true."""
    end = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.3)
    return value


def test_a_visitor_stitches_tries_and_downloads(page: str, browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver import Keys

    source = pico.saved("Bert", tmp_path / "source", seed=1)
    target = pico.saved("Roberta", tmp_path / "target", seed=2)
    texts = pico.texts(120)
    (tmp_path / "texts.csv").write_text("\n".join(["words", *texts]))
    browser.get(page)
    fill(browser, "source", source)
    fill(browser, "target", target)
    fill(browser, "column", "words")
    browser.find_element("css selector", "#file input[type=file]").send_keys(str(tmp_path / "texts.csv"))
    wait_for(lambda: "texts" in browser.find_element("id", "file").text)
    browser.find_element("id", "stitch").send_keys(Keys.ENTER)
    wait_for(lambda: "Verdict:" in browser.find_element("id", "report").text)
    assert "120 texts" in browser.find_element("id", "report").text
    wait_for(lambda: browser.find_elements("css selector", "#picture img"))
    fill(browser, "texts", "\n".join(texts[:2]))
    browser.find_element("id", "compare").send_keys(Keys.ENTER)
    wait_for(lambda: texts[1] in browser.find_element("id", "table").text)
    shown = browser.find_element("id", "table").text
    assert texts[0] + texts[1] not in shown
    own = pipeline("text-classification", model=target)(texts[:2])
    assert all(answer["label"] in shown for answer in own)
    browser.save_screenshot(str(tmp_path / "wide.png"))
    link = wait_for(lambda: browser.find_elements("css selector", "#archive a"))[0]
    browser.execute_script("arguments[0].click()", link)
    archive = wait_for(lambda: [file for file in tmp_path.glob("*.zip") if zipfile.is_zipfile(file)])[0]
    zipfile.ZipFile(archive).extractall(tmp_path / "downloaded")
    assert (tmp_path / "downloaded" / "config.json").is_file()
    browser.set_window_size(420, 900)
    assert browser.execute_script("return document.body.scrollWidth <= window.innerWidth + 1")
    browser.save_screenshot(str(tmp_path / "narrow.png"))


def test_what_goes_wrong_is_said(page: str, browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver import Keys

    browser.get(page)
    fill(browser, "source", str(tmp_path / "nothing"))
    browser.find_element("id", "stitch").send_keys(Keys.ENTER)
    wait_for(lambda: "there is no folder" in browser.find_element("tag name", "body").text)
