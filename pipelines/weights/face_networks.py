"""Names and shapes of published networks that see faces: recognisers, IDSync's classifier, RetinaFace; and ELITE's
mapper from a picture to words.

Each as its authors' code builds it; no file of theirs has been read here. That their files hold just this is certain
as far as the code that saves them is theirs, too.
"""

from torch import Tensor

from .architectures import Shapes
from .layer_shapes import batch_norm, convolution, linear, norm

WIDTHS = (64, 128, 256, 512)
# Blocks of each width in the networks of AdaFace (and of ArcFace in PyTorch before it).
IR_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 14, 3), 101: (3, 13, 30, 3)}
SQUEEZE = 16  # by which a squeeze-and-excitation block is narrower inside
RESNET50_BLOCKS = (3, 4, 6, 3)
ELITE_WORDS = 5


def ir_network(layers: int, squeeze: bool = False) -> Shapes:
    """An improved residual network of 18, 50 or 101 layers for faces of 112x112: AdaFace's ``net.py``.

    squeeze: with squeeze-and-excitation blocks, the "IR-SE".
    """
    shapes = convolution("input_layer.0", 3, 64) | batch_norm("input_layer.1", 64) | {"input_layer.2.weight": (64,)}
    inputs, number = 64, 0
    for width, blocks in zip(WIDTHS, IR_BLOCKS[layers], strict=True):
        for _ in range(blocks):
            shapes |= _ir_block(f"body.{number}", inputs, width, squeeze)
            inputs, number = width, number + 1
    shapes |= batch_norm("output_layer.0", 512) | linear("output_layer.3", 512 * 7 * 7, 512)
    return shapes | batch_norm("output_layer.4", 512, affine=False)


def _ir_block(name: str, inputs: int, width: int, squeeze: bool) -> Shapes:
    inside = f"{name}.res_layer"
    shapes = batch_norm(f"{inside}.0", inputs) | convolution(f"{inside}.1", inputs, width)
    shapes |= batch_norm(f"{inside}.2", width) | {f"{inside}.3.weight": (width,)}
    shapes |= convolution(f"{inside}.4", width, width) | batch_norm(f"{inside}.5", width)
    if squeeze:
        narrow = width // SQUEEZE
        shapes |= convolution(f"{inside}.se_block.fc1", width, narrow, 1)
        shapes |= convolution(f"{inside}.se_block.fc2", narrow, width, 1)
    if inputs != width:  # else the shortcut is a pooling, which has no weights
        shapes |= convolution(f"{name}.shortcut_layer.0", inputs, width, 1)
        shapes |= batch_norm(f"{name}.shortcut_layer.1", width)
    return shapes


def idsync_classifier() -> Shapes:
    """IDSync's identity classifier: an IR-SE-50 and its heads, for any number of people.

    Its code builds 523 entries, 78 of which are counters of batches that are left out here. It makes
    ``attr_projection`` also where it is trained without attributes, as its configuration says; with attributes there
    would be an ``attribute_head`` too, which is refused.
    """
    shapes = {f"backbone.{name}": shape for name, shape in ir_network(50, squeeze=True).items()}
    shapes |= linear("attr_projection.0", 512, 256) | linear("id_projection.0", 512, 256)
    return shapes | linear("id_head.0", 256, 512) | linear("id_head.3", 512, None)


def retinaface() -> Shapes:
    """RetinaFace on ResNet-50 (biubug6's ``Resnet50_Final.pth``, which facexlib releases again)."""
    shapes = convolution("body.conv1", 3, 64, 7) | batch_norm("body.bn1", 64)
    inputs = 64
    for stage, (width, blocks) in enumerate(zip(WIDTHS, RESNET50_BLOCKS, strict=True), 1):
        for block in range(blocks):
            shapes |= _bottleneck(f"body.layer{stage}.{block}", inputs, width)
            inputs = 4 * width
    for level, width in enumerate((512, 1024, 2048), 1):
        shapes |= _convolution_and_norm(f"fpn.output{level}", width, 256, 1)
        shapes |= _convolution_and_norm(f"fpn.merge{level}", 256, 256) if level < 3 else {}
        shapes |= _convolution_and_norm(f"ssh{level}.conv3X3", 256, 128)
        shapes |= _convolution_and_norm(f"ssh{level}.conv5X5_1", 256, 64)
        for name in ("conv5X5_2", "conv7X7_2", "conv7x7_3"):
            shapes |= _convolution_and_norm(f"ssh{level}.{name}", 64, 64)
        for head, numbers in (("ClassHead", 2), ("BboxHead", 4), ("LandmarkHead", 10)):
            # Two anchors at each place.
            shapes |= convolution(f"{head}.{level - 1}.conv1x1", 256, 2 * numbers, 1, bias=True)
    return shapes


def _bottleneck(name: str, inputs: int, width: int) -> Shapes:
    shapes, outputs = {}, 4 * width
    for number, (before, after, side) in enumerate(((inputs, width, 1), (width, width, 3), (width, outputs, 1)), 1):
        shapes |= convolution(f"{name}.conv{number}", before, after, side) | batch_norm(f"{name}.bn{number}", after)
    if name.endswith(".0"):  # the first of a stage: widths or sizes differ
        shapes |= _convolution_and_norm(f"{name}.downsample", inputs, outputs, 1)
    return shapes


def _convolution_and_norm(name: str, inputs: int, outputs: int, side: int = 3) -> Shapes:
    return convolution(f"{name}.0", inputs, outputs, side) | batch_norm(f"{name}.1", outputs)


def elite_mapper(unet: Shapes) -> Shapes:
    """ELITE's ``global_mapper.pt``: five words from CLIP ViT-L/14, and keys and values for SD1.x's cross-attention.

    unet: all shapes of SD1.5's UNet, whose names the keys and values get.
    """
    shapes = {name: shape for name, shape in unet.items() if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    for word in range(ELITE_WORDS):
        for name in (f"mapping_{word}", f"mapping_patch_{word}"):
            shapes |= linear(f"{name}.0", 1024, 1024) | norm(f"{name}.1", 1024)
            shapes |= linear(f"{name}.3", 1024, 1024) | norm(f"{name}.4", 1024) | linear(f"{name}.6", 1024, 768)
    return shapes


def elite_names(tensors: dict[str, Tensor], unet: Shapes) -> dict[str, Tensor]:
    """Its keys and values under the names of diffusers' UNet: theirs have underscores for all dots but the last."""
    ours = (name.removesuffix(".weight") for name in elite_mapper(unet) if ".attn2." in name)
    names = {f"{name.replace('.', '_')}.weight": f"{name}.weight" for name in ours}
    return {names.get(name, name): tensor for name, tensor in tensors.items()}


def without_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without batch normalisation's counters of batches, which torch fills in where they lack."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(".num_batches_tracked")}
