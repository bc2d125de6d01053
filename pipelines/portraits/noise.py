"""Value noise from an integer hash: the same numbers on every machine and device, fixed to the surface it is on."""

import functools

import numpy as np
import torch

from .arrays import Array, array, as_int, device_of, space
from .kernels import kernels

TABLE_BITS = 12
PRIMES = (73856093, 19349663, 83492791)


def _hash(value: int) -> int:
    """A 32-bit integer mix (lowbias32)."""
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    value = ((value ^ (value >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return value ^ (value >> 16)


@functools.lru_cache(maxsize=4)
def _table(device: torch.device | None) -> Array:
    return array([_hash(index + 1) / 2**32 for index in range(1 << TABLE_BITS)], device)


@functools.lru_cache(maxsize=16)
def _step(prime: int, device: torch.device | None) -> Array:
    """From a cell's lower corner to its upper one."""
    return array([0, prime], device, np.int32)


def _look_up(key: Array) -> Array:
    key ^= key >> 13
    key &= (1 << TABLE_BITS) - 1
    table = _table(device_of(key))
    return table.take(key, mode="clip") if isinstance(key, np.ndarray) else table[key.long()]


def noise(*coordinates: Array) -> Array:
    """Smooth noise in 0..1 (mean 0.5) at points given by 1, 2 or 3 coordinates of one shape; the lattice step is 1."""
    xp = space(coordinates[0])
    if xp is np and (compiled := kernels()):
        places = np.stack([values.reshape(-1) for values in coordinates])
        return compiled.noise(places, _table(None)).reshape(coordinates[0].shape)
    blends, keys = [], None
    for coordinate, prime in zip(coordinates, PRIMES, strict=False):
        cell = xp.floor(coordinate)
        part = coordinate - cell
        blends.append(part * part * (3 - 2 * part))
        sides = as_int(cell) * prime + _step(prime, device_of(cell))[(...,) + (None,) * cell.ndim]
        # One axis of two for every coordinate, so that all corners of a cell are looked up at once.
        keys = sides if keys is None else keys[(slice(None),) * (len(blends) - 1) + (None,)] ^ sides
    values = _look_up(keys)
    for blend in blends:
        low, high = values
        values = low + (high - low) * blend
    return values


def cells(*coordinates: Array) -> Array:
    """A random number in 0..1 for the lattice cell that each point lies in."""
    key = 0
    for coordinate, prime in zip(coordinates, PRIMES, strict=False):
        key = as_int(space(coordinate).floor(coordinate)) * prime ^ key
    return _look_up(key)
