"""A real browser for the tests of pages: headless Chromium, driven by selenium."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER or os.environ.get("CI")), reason="no chromium; as root: bash tests/browser/install.sh"
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A new headless Chromium."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    assert CHROMIUM and DRIVER, "bash tests/browser/install.sh did not install chromium"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()


def until(page: Any, script: str) -> None:
    """Wait for what a script returns to be true."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 60).until(lambda driver: driver.execute_script(script))


def texts(page: Any, selector: str) -> list[str]:
    """The texts of all that a selector finds."""
    found: list[str] = page.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)", selector
    )
    return found


@contextlib.contextmanager
def emulated(page: Any, media: str = "", colours: str = "light", **screen: Any) -> Iterator[None]:
    """The page on another screen, in the dark or in the light, or as it is printed."""
    if screen:
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"deviceScaleFactor": 2, "mobile": True, **screen})
    features = [{"name": "prefers-color-scheme", "value": colours}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    try:
        yield
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def dark_phone(page: Any) -> contextlib.AbstractContextManager[None]:
    """The page on a phone in the dark."""
    return emulated(page, colours="dark", width=360, height=740)
