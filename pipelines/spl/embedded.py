"""SPL's editor with the embedded models in it."""

from ..embedded import SHIPPED
from ..embedded.family import load_family
from .edit_pipeline import TextEditPipeline


def embedded_edit_pipeline(folder=SHIPPED) -> TextEditPipeline:
    """A ``TextEditPipeline`` of the embedded models; raises ``ValueError`` where their files are missing."""
    return pipeline_of(load_family(folder))


def pipeline_of(family) -> TextEditPipeline:
    """A ``TextEditPipeline`` of an ``EmbeddedFamily``."""
    base = family.base
    return TextEditPipeline(base.vae, base.text_encoders[0], base.tokenizers[0], base.unet, base.scheduler)
