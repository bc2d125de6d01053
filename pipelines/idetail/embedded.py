"""Relighting with the embedded models and the adapter that comes with the pack."""

from pathlib import Path

from ..embedded import SHIPPED as BASE
from ..embedded.family import load_family
from .adapter import SHIPPED
from .pipeline import RelightPipeline


def embedded_relight_pipeline(base: Path = BASE, adapter: Path = SHIPPED) -> RelightPipeline:
    """A ``RelightPipeline`` of the embedded models; raises ``ValueError`` where files are missing."""
    return RelightPipeline.from_base(load_family(base).base, adapter)
