"""Tiny ONNX models in the forms of YuNet, SFace, SCRFD and ArcFace, whose answers can be worked out by hand.

The detectors see a face wherever a cell of 32x32 pixels is pure red, and put box and points around the cell at fixed
places; the embedders average 28x28 pixels of the aligned crop.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDES, CELL = (8, 16, 32), 32
# In cells, from the cell's top left corner; left eye, right eye, nose, corners of the mouth.
POINTS = np.array([[0.5, 0.6], [1.5, 0.7], [1.0, 1.2], [0.6, 1.6], [1.4, 1.7]], np.float32)
BOX = np.array([0.0, 0.0, 2.0, 2.5], np.float32)


class _Graph:
    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, value) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes) -> str:
        output = output or f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"node{len(self.nodes)}", **attributes))
        return output

    def save(self, path: Path, name: str, shape: list, outputs: dict[str, list]) -> None:
        floats = TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes, "tiny", [helper.make_tensor_value_info(name, floats, shape)],
            [helper.make_tensor_value_info(key, floats, value) for key, value in outputs.items()], self.constants,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)


def _redness(graph: _Graph, picture: str, red: int, white: float, stride: int) -> str:
    """[1, 1, H / stride, W / stride]: 1 where a cell is pure red; 0 for all but the largest stride."""
    weights = np.zeros((1, 3, 1, 1), np.float32)
    weights[0, red], weights[0, 1] = 1 / white, -1 / white
    difference = graph.add("Conv", picture, graph.constant(weights), kernel_shape=[1, 1])
    pooled = graph.add("AveragePool", difference, kernel_shape=[stride, stride], strides=[stride, stride])
    used = np.float32(stride == CELL)
    return graph.add("Mul", graph.add("Clip", pooled, graph.constant(np.float32(0)), graph.constant(np.float32(1))),
                     graph.constant(used))  # fmt: skip


def _lightness(graph: _Graph, picture: str, stride: int) -> str:
    """As ``_redness``, but 1 where a cell is grey or lighter and 0 where it is black; pictures are in -1..1."""
    mean = graph.add("Conv", picture, graph.constant(np.full((1, 3, 1, 1), 1 / 3, np.float32)), kernel_shape=[1, 1])
    pooled = graph.add("AveragePool", mean, kernel_shape=[stride, stride], strides=[stride, stride])
    lifted = graph.add("Add", pooled, graph.constant(np.float32(1)))
    clipped = graph.add("Clip", lifted, graph.constant(np.float32(0)), graph.constant(np.float32(1)))
    return graph.add("Mul", clipped, graph.constant(np.float32(stride == CELL)))


def _answers(graph: _Graph, scores: str, values: np.ndarray, output: str) -> str:
    """``values`` for every row of ``scores`` [..., N, 1]."""
    nothing = graph.add("Mul", scores, graph.constant(np.zeros((1, values.size), np.float32)))
    return graph.add("Add", nothing, graph.constant(values.reshape(1, -1).astype(np.float32)), output=output)


def scrfd(path: Path, sees: str = "red") -> None:
    """RGB in -1..1; outputs in the order scores, boxes, points, two anchors a cell; distances in cells.

    sees: "red" cells, or "light": then there are faces everywhere but in black pictures.
    """
    graph, outputs = _Graph(), {}
    for stride in STRIDES:
        red = _redness(graph, "input.1", 0, 255 / 128, stride) if sees == "red" else _lightness(
            graph, "input.1", stride
        )  # fmt: skip
        column = graph.add("Reshape", red, graph.constant(np.array([-1, 1])))
        both = graph.add("Pad", column, graph.constant(np.array([0, 0, 0, 1])))  # the second anchor sees nothing
        graph.add("Reshape", both, graph.constant(np.array([-1, 1])), output=f"score_{stride}")
        distances = np.concatenate([-BOX[:2], BOX[2:]])
        _answers(graph, f"score_{stride}", distances, f"bbox_{stride}")
        _answers(graph, f"score_{stride}", POINTS, f"kps_{stride}")
    for kind, width in (("score", 1), ("bbox", 4), ("kps", 10)):
        outputs |= {f"{kind}_{stride}": [f"n{stride}", width] for stride in STRIDES}
    graph.save(path, "input.1", [1, 3, "h", "w"], outputs)


def yunet(path: Path) -> None:
    """BGR in 0..255; a box is its centre and the logarithm of its size, all in cells."""
    graph, outputs = _Graph(), {}
    centre, size = (BOX[:2] + BOX[2:]) / 2, np.log(BOX[2:] - BOX[:2])
    for stride in STRIDES:
        red = _redness(graph, "input", 2, 255, stride)
        graph.add("Reshape", red, graph.constant(np.array([1, -1, 1])), output=f"cls_{stride}")
        graph.add("Identity", f"cls_{stride}", output=f"obj_{stride}")
        _answers(graph, f"cls_{stride}", np.concatenate([centre, size]), f"bbox_{stride}")
        _answers(graph, f"cls_{stride}", POINTS, f"kps_{stride}")
    for kind, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        outputs |= {f"{kind}_{stride}": [1, f"n{stride}", width] for stride in STRIDES}
    graph.save(path, "input", [1, 3, "h", "w"], outputs)


def embedder(path: Path, name: str = "input.1", output: str = "embedding") -> None:
    graph = _Graph()
    pooled = graph.add("AveragePool", name, kernel_shape=[28, 28], strides=[28, 28])
    graph.add("Flatten", pooled, output=output)
    graph.save(path, name, [1, 3, 112, 112], {output: [1, 48]})
