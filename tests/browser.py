"""A page as a real browser shows it: Chromium, without a window."""

import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium() -> str:
    """Return the path of Chromium, or skip the test with what to install."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("no Chromium is installed; on Debian: apt-get install chromium")
    return found


def look(url: str, profile: Path, *flags: str, seconds: int = 20) -> str:
    """Open `url` and return the page's HTML as its scripts left it after `seconds` of its time.
    `profile` is a folder that the browser may fill."""
    command = [chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", *flags]
    command += [f"--user-data-dir={profile}", f"--virtual-time-budget={1000 * seconds}"]
    done = subprocess.run(
        [*command, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout
