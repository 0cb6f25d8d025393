"""A page opened in headless Chromium: what it says on the console, what it asks the network for, how wide it becomes."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OWN = ("google.com", "googleapis.com", "gstatic.com", "gvt1.com")  # what Chromium itself asks for, whatever it opens
FRAME = """<!doctype html><title>waiting</title><body style="margin: 0"><iframe id="page" width="{width}" height="800"
style="border: 0" src="{name}"></iframe><script>
const frame = document.getElementById("page");
frame.onload = () => {{
  const root = frame.contentDocument.documentElement;
  document.title = JSON.stringify([frame.clientWidth, root.scrollWidth]);
}};
</script>"""


@dataclass(frozen=True)
class Opened:
    """console: its messages; addresses: of requests; width, scroll_width: of the window, and of what is in it."""

    console: list[str]
    addresses: list[str]
    width: int
    scroll_width: int


def find_chromium() -> str | None:
    """Returns the browser's command, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def open_page(page: Path, work: Path, *, width: int) -> Opened:
    """Opens a page in a frame of this width; `work` takes Chromium's files. No host is resolved."""
    frame, log = work / "frame.html", work / "net.json"
    frame.write_text(FRAME.format(width=width, name=page.name), encoding="utf-8")
    done = subprocess.run(
        [
            str(find_chromium()), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files", "--virtual-time-budget=5000",
            "--enable-logging=stderr", "--v=0", f"--log-net-log={log}", f"--user-data-dir={work / 'profile'}",
            "--dump-dom", frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    title = re.search(r"<title>(\[.*?\])</title>", done.stdout)
    assert title, f"the page did not load:\n{done.stderr[-2000:]}"
    window, content = json.loads(title[1])
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    asked = re.findall(r'"url":"([a-z]+://[^"]*)"', log.read_text(encoding="utf-8"))
    hosts = {address: urlparse(address).hostname or "" for address in asked if address.startswith("http")}
    return Opened(console, [a for a, host in hosts.items() if not host.endswith(OWN)], window, content)
