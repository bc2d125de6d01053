"""One vocabulary for two kinds of arrays: numpy's on the processor, where a call costs a third of torch's, and torch's.

Operators, ``abs``, ``.sum(axis)`` and most functions are alike in both, so the maths is written once, with
``xp = space(values)``; what differs is here. A ``device`` of ``None`` stands for numpy. All numbers are float32.
"""

import numpy as np
import torch

SINGLE = 1 << 17  # multiplications in a product for which BLAS starts no threads
Array = np.ndarray | torch.Tensor


def space(values: Array):
    """The module, numpy or torch, whose functions take ``values``."""
    return np if isinstance(values, np.ndarray) else torch


def device_of(values: Array) -> torch.device | None:
    """The device of a tensor, ``None`` for a numpy array."""
    return None if isinstance(values, np.ndarray) else values.device


def array(values, device: torch.device | None, dtype=np.float32) -> Array:
    """Numbers, of Python or numpy, as an array of ``device``."""
    values = np.asarray(values, dtype=dtype)
    return values if device is None else torch.from_numpy(values).to(device)


def filled(shape: tuple[int, ...], value: float, device: torch.device | None) -> Array:
    """A new array full of ``value``."""
    if device is None:
        return np.full(shape, value, np.float32)
    return torch.full(shape, value, dtype=torch.float32, device=device)


def like(values, other: Array) -> Array:
    """Numbers as an array beside ``other``."""
    return array(values, device_of(other))


def tensor(values: Array) -> torch.Tensor:
    """Any array as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(values)) if isinstance(values, np.ndarray) else values


def clip(values: Array, low: float | None = None, high: float | None = None) -> Array:
    """Values moved into ``low`` .. ``high``. (numpy's own clip takes longer to start than to work.)"""
    if not isinstance(values, np.ndarray):
        return values.clamp(low, high)
    if low is None:
        return np.minimum(values, high)
    values = np.maximum(values, low)
    return values if high is None else np.minimum(values, high, out=values)


def fraction(values: Array) -> Array:
    """What is left of ``values`` above the whole number below."""
    return values - space(values).floor(values)


def unbind(vectors: Array) -> tuple[Array, ...]:
    """The coordinates [B, K] of vectors [B, C, K]."""
    return tuple(vectors[:, axis] for axis in range(vectors.shape[1]))


def column(values, other: Array) -> Array:
    """A colour or other numbers as [1, C, 1] beside ``other``."""
    return like(values, other)[None, :, None]


def lerp(low, high, share: Array) -> Array:
    """``low`` where ``share`` is 0, ``high`` where it is 1."""
    return low + (high - low) * share


def soft_maximum(one: Array, other: Array, width: float) -> Array:
    """The larger of the two, rounded where they are less than about ``width`` apart."""
    xp = space(one)
    return xp.maximum(one, other) + xp.log(1 + xp.exp(clip(abs(one - other) / -width, -60))) * width


def replaced(values: Array, mask: Array, new: Array | float) -> Array:
    """``values``, which may be overwritten, with ``new`` where ``mask`` is true."""
    if isinstance(values, np.ndarray):
        np.copyto(values, new, where=mask)
        return values
    return torch.where(mask, new, values)


def as_float(mask: Array) -> Array:
    """1 where ``mask`` is true, else 0."""
    return mask.astype(np.float32) if isinstance(mask, np.ndarray) else mask.float()


def as_int(values: Array) -> Array:
    """Whole numbers of 32 bits; fractions are cut off."""
    return values.astype(np.int32) if isinstance(values, np.ndarray) else values.to(torch.int32)


def either(mask: Array, yes: float, no: float) -> Array:
    """The number ``yes`` where ``mask`` is true, else ``no``."""
    return as_float(mask) * (yes - no) + no


def rows_of(mask: Array) -> Array:
    """Where ``mask`` [B, R] is true: indices [B, K], K the largest count of a row.

    A row with fewer is filled up by repeating its first, one without any by its ray 0: that costs a little and changes
    nothing, because a ray's result does not depend on how often it is asked for.
    """
    if isinstance(mask, np.ndarray):
        return mask[0].nonzero()[0][None]
    count = mask.sum(1)
    most = int(count.max())
    row, column = mask.nonzero(as_tuple=True)
    place = torch.arange(len(row), device=mask.device) - (count.cumsum(0) - count)[row]
    first = mask.byte().argmax(1, keepdim=True)
    index = first.expand(-1, most).clone()
    index[row, place] = column
    return index


def take(values: Array, index: Array) -> Array:
    """Entries [B, ..., K] of ``values`` [B, ..., R] at ``index`` [B, K]. Numpy's have one scene: B = 1."""
    if isinstance(values, np.ndarray):
        return values.take(index[0], axis=-1)
    shape = (len(index),) + (1,) * (values.ndim - 2) + (index.shape[1],)
    return values.gather(-1, index.view(shape).expand(*values.shape[:-1], -1))


def put(values: Array, index: Array, new: Array) -> None:
    """Write ``new`` [B, C, K] into ``values`` [B, C, R] at ``index`` [B, K]; what is named twice must be the same."""
    if isinstance(values, np.ndarray):
        for row, made in zip(values[0], new[0], strict=True):  # four times as fast as all rows in one assignment
            row[index[0]] = made
    else:
        values.scatter_(2, index[:, None].expand_as(new), new)


def unit(vectors: Array) -> Array:
    """Vectors [B, 3, K] at length 1."""
    return vectors / space(vectors).sqrt(clip((vectors * vectors).sum(1), 1e-12))[:, None]


def matmul(one: Array, other: Array) -> Array:
    """Products of matrices [..., M, N] and [..., N, K]; with numpy so few columns at once that no threads are started.

    Threads would wait for each other longer than they work.
    """
    if not isinstance(one, np.ndarray):
        return torch.matmul(one, other)
    size = max(1, SINGLE // (one.shape[-2] * one.shape[-1]))
    count = other.shape[-1]
    if count <= size:
        return np.matmul(one, other)
    made = np.empty((*other.shape[:-2], one.shape[-2], count), np.float32)
    for start in range(0, count, size):
        np.matmul(one, other[..., start : start + size], out=made[..., start : start + size])
    return made


def cross(one: Array, other: Array) -> Array:
    """The vectors [..., 3] that stand on both."""
    (a, b, c), (x, y, z) = ([vectors[..., axis] for axis in range(3)] for vectors in (one, other))
    return space(one).stack([b * z - c * y, c * x - a * z, a * y - b * x], -1)
