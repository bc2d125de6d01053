"""Faces in pictures: aligned crops. (``align``)"""

from .align import align_faces

__all__ = ["align_faces"]
