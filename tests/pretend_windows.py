"""A Windows that refuses to move and remove what another program has open, and whose seconds pass at once."""

from collections.abc import Callable
from pathlib import Path

from likeness.pipelines import files


def pretend_windows(monkeypatch) -> tuple[Callable[[Path, float], None], list[float]]:
    """A function ``hold(path, seconds)``, and the list of pauses that were made."""
    held, pauses = {}, []

    def refused_while_held(act):
        def act_or_refuse(path, *arguments, **options):
            if any(held.get(place, 0) > sum(pauses) for place in (path, *arguments)):
                raise PermissionError(13, "Access is denied", str(path))
            return act(path, *arguments, **options)

        return act_or_refuse

    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, refused_while_held(getattr(Path, name)))
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(files.time, "sleep", pauses.append)
    return held.__setitem__, pauses
