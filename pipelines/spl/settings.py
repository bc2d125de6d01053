"""Settings of the structure-preserving step; the defaults are the paper's where paper and code agree."""

from dataclasses import dataclass, fields

# The paper's weights belong to its one image size. A mean over pixels makes the step of a single pixel shrink as the
# image grows; counting weights per this many pixels keeps the effect the same at every size.
REFERENCE_PIXELS = 512 * 512


@dataclass(frozen=True)
class StructureSettings:
    """How strongly and how long an image is pulled towards the structure of its source.

    structure_weight: W_s of L = W_s L_SPL + W_c L_CPL, for a 512x512 image (authors' code; the paper's L_SPL is bare).
    color_weight: W_c, same unit; 0 leaves the colours alone (authors' code; ratio 0.1 to W_s).
    iterations: K steps of momentum descent (paper, appendix B).
    radius: r in pixels, the window side is 2r+1 (paper: 11, so r = 5).
    epsilon: regulariser of the local-linear fit, in squared 0..1 intensity (paper, appendix B).
    learning_rate, momentum: of the descent, on the image in -1..1 (authors' code).
    mask_dilation: pixels by which a region mask grows before use, so that its border lies outside the region (ours).
    """

    structure_weight: float = 1e4
    color_weight: float = 1e3
    iterations: int = 100
    radius: int = 5
    epsilon: float = 1e-4
    learning_rate: float = 1.0
    momentum: float = 0.9
    mask_dilation: int = 0

    def __post_init__(self):
        minimum = {"iterations": 1, "radius": 1, "epsilon": 1e-8}
        for field in fields(self):
            value, least = getattr(self, field.name), minimum.get(field.name, 0)
            if isinstance(field.default, int) and not isinstance(value, int):
                raise ValueError(f"{field.name} is {value}: it must be a whole number.")
            if not least <= value < float("inf"):
                raise ValueError(f"{field.name} is {value}: it must be at least {least}.")
        if self.momentum >= 1:
            raise ValueError(f"momentum is {self.momentum}: it must be below 1, or the descent never settles.")
        if self.structure_weight == 0 and self.color_weight == 0:
            raise ValueError("structure_weight and color_weight are both 0: raise one, or leave this step out.")

    @property
    def window(self) -> int:
        """Side of the window in pixels, which is also the smallest legal image side."""
        return 2 * self.radius + 1
