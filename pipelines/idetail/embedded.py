"""Relighting with the embedded models and the adapter that comes with the pack."""

from pathlib import Path

from ..embedded import SHIPPED
from ..embedded.family import load_family
from .adapter import EMBEDDED
from .pipeline import RelightPipeline


def embedded_relight_pipeline(base: Path = SHIPPED, adapter: Path = EMBEDDED) -> RelightPipeline:
    """A ``RelightPipeline`` of the embedded models; raises ``ValueError`` where files are missing."""
    return RelightPipeline.from_base(load_family(base).base, adapter)
