"""The shipped graph of faces, masks and scores on a real photo, in a running ComfyUI, without any download."""

import io
import json
from pathlib import Path

import numpy as np
from likeness.pipelines.images import load_image
from likeness.pipelines.spl.score import score_structure
from PIL import Image

WORKFLOWS = Path(__file__).resolve().parents[2] / "examples_workflows"
GRAPH = json.loads((WORKFLOWS / "faces_masks_scores_api.json").read_text(encoding="utf-8"))


def test_a_photos_face_is_found_masked_and_its_edit_scored(server):
    graph = json.loads(json.dumps(GRAPH))
    pictures = [WORKFLOWS / "input" / graph[node]["inputs"]["image"] for node in "12"]
    for node, path in zip("12", pictures, strict=True):
        graph[node]["inputs"]["image"] = server.upload_image(path, f"services_{path.name}")
    outputs = server.run(graph)

    def shown(node):
        return np.asarray(Image.open(io.BytesIO(server.fetch_image(**outputs[node]["images"][0]))).convert("RGB")) / 255

    # The astronaut's eyes, mouth, suit and the rocket behind her, as a person reads them off the photo.
    eyes, suit, rocket = (133, 223), (400, 130), (100, 400)
    foreground, clothes, face = (shown(node)[..., 0] for node in ("11", "12", "13"))
    assert [mask[eyes] > 0.5 for mask in (foreground, clothes, face)] == [True, False, True]
    assert [mask[suit] > 0.5 for mask in (foreground, clothes, face)] == [True, True, False]
    assert max(mask[rocket] for mask in (foreground, clothes, face)) < 0.1
    assert shown("10").shape == (224, 224, 3)
    assert outputs["3"]["text"][0].startswith("picture 1: 1 face")
    scores = score_structure(*[load_image(path) for path in reversed(pictures)])
    assert f"{float(scores.ssim[0]):.4f}" in outputs["8"]["text"][0]
    assert outputs["14"]["text"] == outputs["8"]["text"]
