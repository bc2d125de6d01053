"""Relighting with the embedded models and the adapter that comes with the pack."""

from pathlib import Path

from ..embedded import SHIPPED as BASE
from ..embedded.family import load_family
from .pipeline import RelightPipeline

SHIPPED = Path(__file__).with_name("weights")
ADAPTER = SHIPPED / "relight.safetensors"


def embedded_relight_pipeline(base: Path = BASE, adapter: Path = ADAPTER) -> RelightPipeline:
    """A ``RelightPipeline`` of the embedded models; raises ``ValueError`` where files are missing."""
    return RelightPipeline.from_base(load_family(base).base, adapter)
