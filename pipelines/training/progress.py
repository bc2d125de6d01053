"""What the user sees while it runs."""

from tqdm import tqdm


class ProgressBar:
    """A progress bar that is a callback: ``bar(done, total, numbers)``."""

    def __init__(self, what: str, total: int | None, done: int, shown: bool):
        self._bar = tqdm(desc=what, total=total, initial=done, disable=not shown, dynamic_ncols=True)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def __call__(self, done: int, total: int, numbers: dict[str, float] | None = None) -> None:
        self._bar.total = total
        if numbers:
            self._bar.set_postfix_str(f"loss {numbers['loss']:.4f}", refresh=False)
        self._bar.update(done - self._bar.n)
