"""How far a data set is, from its files alone: the same answer for whoever asks, on whichever machine."""

from collections import Counter
from dataclasses import dataclass, field

from ..files import bytes_text
from .dataset import Dataset
from .lease import LeaseFile, leased_shards, read_leases


@dataclass
class State:
    """One look at a data set. ``kept`` and ``rejected`` count finished shards, ``kept_so_far`` also those in work."""

    dataset: Dataset
    finished: list[int] = field(default_factory=list)
    leased: dict[int, LeaseFile] = field(default_factory=dict)
    stale: dict[int, LeaseFile] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    kept: int = 0
    rejected: int = 0
    absent: int = 0
    bytes: int = 0
    reasons: Counter = field(default_factory=Counter)

    @property
    def complete(self) -> bool:
        return len(self.finished) == len(self.dataset.shards)

    @property
    def kept_so_far(self) -> int:
        return self.kept + sum(lease.kept for lease in self.leased.values())

    @property
    def rejected_so_far(self) -> int:
        return self.rejected + sum(lease.rejected for lease in self.leased.values())

    def summary(self) -> str:
        """Some lines for people: shards by state, items, reasons of rejects, what failed and why."""
        counts = {name: len(getattr(self, name)) for name in ("finished", "leased", "stale", "failed", "missing")}
        shards = ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "finished")
        attempts = self.kept + self.rejected
        lines = [
            f"{self.dataset.folder}: {self.dataset.recipe}, seed {self.dataset.seed}",
            f"  shards   {len(self.dataset.shards)}: {shards}",
            f"  items    {self.kept_so_far} of {self.dataset.total} made, {self.kept} in finished shards",
            f"  rejects  {self.rejected}" + (f" ({self.rejected / attempts:.0%} of attempts)" if attempts else ""),
        ]
        lines += [f"    {count:>8}  {reason}" for reason, count in self.reasons.most_common()]
        if self.absent:
            lines.append(f"  absent   {self.absent}: there is nothing to make of them, see the reasons")
        if self.kept:
            whole = self.bytes / self.kept * self.dataset.total
            lines.append(f"  size     {bytes_text(self.bytes)}, whole data set about {bytes_text(whole)}")
        lines += [f"  shard {shard} is made by process {lease.process} on {lease.host}, {lease.kept} items so far"
                  for shard, lease in self.leased.items()]  # fmt: skip
        lines += [f"  shard {shard} was left by process {lease.process} on {lease.host}: generate makes it anew"
                  for shard, lease in self.stale.items()]  # fmt: skip
        lines += [f"  shard {shard} failed: {reason}" for shard, reason in self.failed.items()]
        return "\n".join(lines)


class Survey:
    """Looks at a data set, again and again if need be; what is finished is read once."""

    def __init__(self, dataset: Dataset, lease_timeout: float):
        self.dataset, self.lease_timeout = dataset, lease_timeout
        self._finished: dict[int, tuple[int, int, int, int, Counter]] = {}

    def look(self) -> State:
        state = State(self.dataset)
        with_lease = leased_shards(self.dataset.folder)
        for shard in self.dataset.shards:
            facts = self._finished.get(shard) or self._read(shard)
            if facts is not None:
                state.finished.append(shard)
                state.kept, state.rejected = state.kept + facts[0], state.rejected + facts[1]
                state.absent, state.bytes = state.absent + facts[2], state.bytes + facts[3]
                state.reasons += facts[4]
            else:
                self._sort_unfinished(state, shard, shard in with_lease)
        return state

    def _read(self, shard: int) -> tuple[int, int, int, int, Counter] | None:
        sidecar = self.dataset.finished(shard)
        if sidecar is None:
            return None
        reasons = Counter(reject["reason"] for reject in sidecar["rejects"])
        kept = len(self.dataset.keys(shard, sidecar))  # of a sidecar that may list more
        absent = len(self.dataset.items(shard)) - kept
        self._finished[shard] = (kept, len(sidecar["rejects"]), absent, sidecar["tar"]["bytes"], reasons)
        return self._finished[shard]

    def _sort_unfinished(self, state: State, shard: int, has_lease: bool) -> None:
        leases = read_leases(self.dataset.tar(shard)) if has_lease else []
        try:
            failure = self.dataset.failure(shard).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:  # there is none, or a new run has just removed it
            failure = None
        if failure is not None:
            state.failed[shard] = failure
        elif leases:
            (state.stale if leases[-1].is_stale(self.lease_timeout) else state.leased)[shard] = leases[-1]
        else:
            state.missing.append(shard)
