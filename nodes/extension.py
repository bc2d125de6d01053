"""The list of nodes the pack offers."""

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from .detail_restore import DetailRestore
from .faces import DetectFaces, FaceCrop, IdentityFromFaces, LoadIdentity, PasteFaceBack, SaveIdentity
from .idetail import RelightConditioning, RelightLoraLoader, RelightPrompt
from .masks import CleanMask, MaskEdgeBand, SoftenMask, UpsampleMaskToEdges
from .models import LoadEmbeddedPortraitModel
from .person_masks import ClothingMask, FaceMask, ForegroundMask, SplitPeopleMask
from .portrait_scores import KeepBest, PortraitScores
from .scores import StructureScore
from .spl import StructureGuidanceNode, StructureRefine
from .text_edit import DdimInversionSampler, EditGuiderNode, EditMaskFromWords, VirtualInversionSampler
from .weights import Weights


class LikenessExtension(ComfyExtension):
    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            StructureGuidanceNode, StructureRefine, EditGuiderNode, VirtualInversionSampler, DdimInversionSampler,
            UpsampleMaskToEdges, EditMaskFromWords, StructureScore, LoadEmbeddedPortraitModel,
            Weights, PortraitScores, KeepBest, RelightConditioning, RelightLoraLoader, RelightPrompt,
            DetectFaces, FaceCrop, PasteFaceBack, IdentityFromFaces, SaveIdentity, LoadIdentity,
            ForegroundMask, ClothingMask, FaceMask, SplitPeopleMask, SoftenMask, CleanMask, MaskEdgeBand,
            DetailRestore,
        ]  # fmt: skip
