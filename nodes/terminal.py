"""What a script owes to whoever started it: output that no console refuses, and no traceback after Ctrl-C.

Standard library only, so that a script can import it first.
"""

import os
import re
import signal
import sys
from collections.abc import Callable


def run_script(name: str, command: Callable[[], int], code: int, left: str) -> int:
    """What ``command`` returns; where Ctrl-C ends it before anything of its own listens, ``code``, saying what is left.

    name: the script's, as its messages begin.
    """
    _show_what_can_be_shown()
    interrupts: list[int] = []

    def interrupt(number: int, frame) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else it is ignored, as in the background of a shell
        signal.signal(signal.SIGINT, interrupt)
    try:
        return command()
    except BaseException as error:
        # Libraries that are stopped while they are imported turn it into errors of their own.
        if not interrupts and not isinstance(error, KeyboardInterrupt):
            raise
        print(f"\n{name}: stopped by SIGINT; {left}.", file=sys.stderr)
        return code
    finally:
        signal.signal(signal.SIGINT, before)


def _show_what_can_be_shown() -> None:
    """Names and tables hold letters that a redirected console of Windows cannot encode: these become marks."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def print_file(text: str) -> None:
    """Print what is to be redirected into a file that is read as UTF-8."""
    if not sys.stdout.isatty() and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    print(text, end="")


def typed(words: list[str]) -> list[str]:
    """The words of a command line with ``~`` as the home folder: Windows' shells leave that to the program."""
    return [os.path.expanduser(word) if re.match(r"~([/\\]|$)", word) else word for word in words]
