"""The browser that the page tests drive: the machine's own, since playwright's needs a download."""

import shutil

# The first is Chromium without the windows that its own headless mode draws for nobody: the same pages for less than
# half of the processor's time. Debian has it as a package of that name.
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium_path() -> str | None:
    """The first Chromium or Chrome on the PATH, for playwright's `executable_path`."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def chromium_absence() -> str | None:
    """None when there is a browser to drive, else why not, in one line."""
    return None if chromium_path() else f"none of {', '.join(_NAMES)} is on the PATH"
