"""Value noise from an integer hash: the same numbers on every machine and device, fixed to the surface it is on."""

import functools

import torch

TABLE_BITS = 12
PRIMES = (73856093, 19349663, 83492791)


def _hash(value: int) -> int:
    """A 32-bit integer mix (lowbias32)."""
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    value = ((value ^ (value >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return value ^ (value >> 16)


@functools.lru_cache(maxsize=4)
def _table(device: torch.device) -> torch.Tensor:
    values = [_hash(index + 1) / 2**32 for index in range(1 << TABLE_BITS)]
    return torch.tensor(values, dtype=torch.float32, device=device)


def noise(*coordinates: torch.Tensor) -> torch.Tensor:
    """Smooth noise in 0..1 (mean 0.5) at points given by 1, 2 or 3 coordinates of one shape; the lattice step is 1."""
    cells = [coordinate.floor() for coordinate in coordinates]
    parts = [coordinate - cell for coordinate, cell in zip(coordinates, cells, strict=True)]
    blends = [part * part * (3 - 2 * part) for part in parts]
    corners = []
    for cell, prime in zip(cells, PRIMES, strict=False):
        low = cell.to(torch.int32) * prime
        corners.append((low, low + prime))
    return _interpolate(corners, blends, None, _table(coordinates[0].device))


def _interpolate(corners, blends, key, table):
    if not corners:
        return table[(key ^ (key >> 13)) & ((1 << TABLE_BITS) - 1)]
    low, high = (
        _interpolate(corners[1:], blends[1:], side if key is None else key ^ side, table) for side in corners[0]
    )
    return torch.lerp(low, high, blends[0])


def cells(*coordinates: torch.Tensor) -> torch.Tensor:
    """A random number in 0..1 for the lattice cell that each point lies in."""
    key = None
    for coordinate, prime in zip(coordinates, PRIMES, strict=False):
        side = coordinate.floor().to(torch.int32) * prime
        key = side if key is None else key ^ side
    return _table(coordinates[0].device)[(key ^ (key >> 13)) & ((1 << TABLE_BITS) - 1)]
