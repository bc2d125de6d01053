"""Random numbers without state: a stream is a function of what it is for, never of what was drawn before.

So a run that was killed and goes on, or is spread over another number of processes, draws the same numbers.
"""

import hashlib

import torch


def seed_of(*keys: int | str) -> int:
    """A seed of 63 bits for this combination of keys, the same on every machine and in every process."""
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*keys: int | str) -> torch.Generator:
    """A CPU generator for this combination of keys; on the CPU, so that all devices see the same numbers."""
    return torch.Generator().manual_seed(seed_of(*keys))
