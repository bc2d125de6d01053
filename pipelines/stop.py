"""Stopping a long run on request: SIGINT, SIGTERM, Ctrl-Break, or a file named STOP in its folder.

STOP.txt counts, too: Windows' Explorer gives new text files that ending and hides it.

Every loop polls ``StopRequest.check``; what was done so far is saved by whoever catches ``Stopped``, and the process
ends with 0. A second signal ends it at once.
"""

import os
import signal
import threading
from pathlib import Path

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))


FILES = ("STOP", "STOP.txt")


class Stopped(Exception):
    """The run was asked to stop; the message says by what."""


class StopRequest:
    """Context manager that listens for signals and for ``folder``/STOP while its block runs.

    Without a folder only signals count. Outside of the main thread no handler can be set: then only the file counts.
    """

    def __init__(self, folder: str | Path | None = None):
        self.files = [Path(folder) / name for name in FILES] if folder is not None else []
        self.reason: str | None = None
        self._previous: dict = {}

    def __enter__(self) -> "StopRequest":
        for file in filter(Path.is_file, self.files):
            print(f"Removed {file}, left from an earlier run.", flush=True)
            file.unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        # Only now: other processes of the same run look at the same file.
        if self.requested:
            for file in self.files:
                file.unlink(missing_ok=True)

    @property
    def requested(self) -> bool:
        """True once a stop was asked for, and from then on."""
        if self.reason is None:
            file = next(filter(Path.is_file, self.files), None)
            self.reason = None if file is None else f"the file {file}"
        return self.reason is not None

    def check(self, *progress) -> None:
        """Raise ``Stopped`` if a stop was asked for; takes and ignores what progress callbacks are called with."""
        if self.requested:
            raise Stopped(self.reason)

    def _on_signal(self, number: int, frame) -> None:
        name = signal.Signals(number).name
        if self.reason is not None:
            os.write(2, f"\nSecond stop ({name}): ending at once.\n".encode())
            os._exit(128 + number)
        self.reason = name
        os.write(2, f"\n{name}: saving and stopping; once more to end at once.\n".encode())
