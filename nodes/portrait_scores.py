"""Nodes that score portraits and keep the best: likeness, structure, prompt, clothes."""

import torch
from comfy_api.latest import io, ui

from .convert import cut_as_encoded, named_errors, node_progress, to_comfy, to_pipeline
from .weights import models_folders, weights_in_place

# Name before any bracket, as scores are told: how Portrait Scores hands it out, and what Keep Best chooses by.
OUTPUTS = {
    "SPL x100": "Structure preservation loss against the source; lower is better.",
    "SSIM": "Structural similarity to the source; higher is better.",
    "PSNR (dB)": "Peak signal-to-noise ratio against the source; higher is better.",
    "LPIPS": "Learned perceptual distance to the source; lower is better.",
    "CLIP score": "How well the picture follows the prompt; higher is better.",
    "CLIP directional": "How well the change follows the change of the prompt; higher is better.",
    "Face ID score": "1 - cosine between the face and the identity; lower is better.",
    "Clothing score": "1 - cosine between the clothes and those of the source; lower is better.",
}
CHOICES = {
    "identity (Face ID score)": "Face ID score", "structure (SPL)": "SPL x100", "structure (SSIM)": "SSIM",
    "structure (FSIM)": "FSIM", "structure (GMSD)": "GMSD", "structure (LPIPS)": "LPIPS",
    "prompt (CLIP score)": "CLIP score", "prompt (CLIP directional)": "CLIP directional",
    "clothes (Clothing score)": "Clothing score",
}  # fmt: skip
# What each score looks at; those of structure at the source, in Keep Best where the mask is white.
STRUCTURE = ("source", "mask")
EVIDENCE = {
    "Face ID score": ("faces", "identity"),
    "CLIP score": ("prompt", "clip_model"),
    "CLIP directional": ("source", "prompt", "source_prompt", "clip_model"),
    "Clothing score": ("source", "mask", "clip_model"),
}
GIVEN = "given scores"
CLIP_MODELS = ("embedded", "installed CLIP")
BY_CLIP = ("CLIP score", "CLIP directional", "Clothing score")
CLOTHES = "The clothes: foreground without face, white. 1 mask, or one for each picture."


def evidence_inputs(mask: str = CLOTHES) -> list:
    """What a picture can be scored against; ``mask``: what the mask is for."""
    return [
        io.Image.Input("source", optional=True,
                       tooltip="What the pictures are compared with: 1 picture, or one for each."),
        io.String.Input("prompt", default="", multiline=True, optional=True,
                        tooltip="What the pictures should show, for the CLIP score. Empty: no such score."),
        io.String.Input("source_prompt", default="", multiline=True, optional=True, advanced=True,
                        tooltip="What the source shows, for the CLIP directional similarity."),
        io.Combo.Input("clip_model", options=list(CLIP_MODELS), optional=True,
                       tooltip="What reads prompts and sees clothes: the small CLIP of this pack, which knows the "
                       "portrait world only, or OpenAI's CLIP if its files are installed (see the help)."),
        io.Mask.Input("mask", optional=True, tooltip=mask),
        io.Custom("LIKENESS_FACES").Input("faces", optional=True,
                                          tooltip="The faces of the pictures, with embeddings; the first of each "
                                          "counts."),
        io.Custom("LIKENESS_IDENTITY").Input("identity", optional=True,
                                             tooltip="Whom the pictures should show, by the same embedder."),
    ]  # fmt: skip


class PortraitScores(io.ComfyNode):
    """All scores of a batch that the connected inputs allow."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessPortraitScores",
            display_name="Portrait Scores",
            category="Likeness/score",
            description="How good portraits are: structure kept (SPL, SSIM, FSIM, GMSD, PSNR, LPIPS), likeness (Face "
            "ID score), prompt followed (CLIP scores), clothes kept (Clothing score). What lacks its input or its "
            "model is left out, and the table says why.",
            search_aliases=["metric", "CLIP score", "face similarity", "LPIPS", "PSNR", "identity", "evaluate"],
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The pictures to score."),
                *evidence_inputs(),
                io.Combo.Input("list_score", options=list(CHOICES), default="structure (SSIM)", optional=True,
                               tooltip="Which score the output \"scores\" lists, one number a picture. Keep Best "
                               "needs its higher_is_better off for Face ID, SPL, GMSD, LPIPS and Clothing: lower is "
                               "better there."),
            ],
            outputs=[
                *(io.Float.Output(display_name=name, tooltip=f"{text} Mean over the batch; not a number if absent.")
                  for name, text in OUTPUTS.items()),
                io.String.Output(display_name="table", tooltip="The scores of every picture, and what is absent."),
                io.Float.Output(display_name="scores", is_output_list=True,
                                tooltip="The chosen score of every picture, as a list; for Keep Best, whose "
                                "higher_is_better must say which are the best."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return networks_in_place()

    @classmethod
    def execute(cls, image, list_score="structure (SSIM)", **evidence) -> io.NodeOutput:
        with named_errors("Portrait Scores"):
            table = score(image, needed=CHOICES[list_score], **evidence)
        means = [_mean(table, name) for name in OUTPUTS]
        listed = _column(table, CHOICES[list_score])
        text = table.text()
        listed = [float("nan")] * len(image) if listed is None else listed.tolist()
        return io.NodeOutput(*means, text, listed, ui=ui.PreviewText(text))


class KeepBest(io.ComfyNode):
    """A batch in, the best of it out."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessKeepBest",
            display_name="Keep Best",
            category="Likeness/score",
            description="Keeps the pictures of a batch (or of a list of batches) with the best score, the best one "
            "first: by likeness, by kept structure, by the prompt, or by numbers from anywhere.",
            search_aliases=["best of n", "select best", "rank images", "filter batch", "sort images"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The pictures to choose from, all of one size."),
                io.Int.Input("count", default=1, min=1, max=4096,
                             tooltip="How many to keep, of all pictures together or of each batch."),
                io.Combo.Input("by", options=[*CHOICES, GIVEN], default="identity (Face ID score)",
                               tooltip="What is best. Each needs its inputs: faces and identity, source, prompt, mask, "
                               "or scores."),
                io.Boolean.Input("write_scores", default=True,
                                 tooltip="Write place and score below each picture of the output \"labelled\"."),
                *evidence_inputs(f"{CLOTHES} For scores of structure: where they count, such as the person (white) "
                                 "whose background is to change."),
                io.Float.Input("scores", min=-1e9, max=1e9, optional=True, force_input=True,
                               tooltip="For \"given scores\": a list with a number for each picture."),
                io.Boolean.Input("higher_is_better", default=True, optional=True,
                                 tooltip="For \"given scores\": on if the largest numbers are the best; off for Face "
                                 "ID, SPL, GMSD, LPIPS and Clothing scores. All other choices know it by themselves."),
                io.Boolean.Input("each_batch", default=False, optional=True,
                                 tooltip="For a list of batches, as a list of prompts makes it: keep the best of each "
                                 "batch instead of the best of all."),
            ],
            outputs=[
                io.Image.Output(display_name="best", tooltip="The pictures that were kept, the best one first."),
                io.Image.Output(display_name="labelled", tooltip="The same with their scores below."),
                io.Int.Output(display_name="places", is_output_list=True,
                              tooltip="Where in the batch each one was, counted from 0, as a list."),
                io.Float.Output(display_name="scores", is_output_list=True, tooltip="Their scores, as a list."),
                io.String.Output(display_name="table", tooltip="The scores of all pictures, as text."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return networks_in_place()

    @classmethod
    def execute(
        cls, image, count, by, write_scores, scores=None, higher_is_better=None, each_batch=None, **evidence
    ) -> io.NodeOutput:  # fmt: skip
        from ..pipelines.evaluation.ranking import best_of_each, labelled
        from ..pipelines.evaluation.scores import number

        by, higher = by[0], not higher_is_better or higher_is_better[0]
        with named_errors("Keep Best"):
            batches = [batch for batch in image if batch is not None]
            pictures, lengths = joined(batches, "image"), [len(batch) for batch in batches]
            if by == GIVEN:
                name, values = "score", given_scores(scores, len(pictures))
                text = "\n".join(f"{place}  {number(value)}" for place, value in enumerate(values, 1))
            else:
                wanted = EVIDENCE.get(CHOICES[by], STRUCTURE)
                used = {key: values for key, values in evidence.items() if key in wanted}
                table = score(pictures, CHOICES[by], **unlisted(used, lengths))
                name, values = next(iter(table.values.items()), (None, None))
                if values is None:
                    raise ValueError(f"there is nothing to choose by. {table.text()}")
                higher, text = table.higher[name], table.text()
            contests = lengths if each_batch and each_batch[0] else [len(pictures)]
            ranked = best_of_each(values, contests, count[0], higher)
            places = [place for _, place in ranked]
            kept = to_pipeline(pictures[places])
            lines = [[f"{rank}. picture {place + 1}", f"{name} {number(values[place])}"] for rank, place in ranked]
            shown = labelled(kept.float().clamp(0, 1), lines) if write_scores[0] else kept
        chosen = values[places].tolist()
        return io.NodeOutput(to_comfy(kept), to_comfy(shown), places, chosen, text, ui=ui.PreviewText(text))


def networks_in_place() -> str:
    """Of the networks that scores look for in ComfyUI's models: a score that was absent is no longer with its files."""
    from ..pipelines.evaluation.backbones import NETWORKS
    from ..pipelines.evaluation.panel import LPIPS_WEIGHTS

    return weights_in_place(LPIPS_WEIGHTS, *NETWORKS["clip"].groups)


def score(
    image, only: str | None = None, needed: str | None = None, source=None, prompt="", source_prompt="",
    clip_model="embedded", mask=None, faces=None, identity=None,
):  # fmt: skip
    """The ``ScoreTable`` of an IMAGE; ``only``: of one score, by its name before any bracket.

    needed: the score whose network must be there; that of any other is loaded if it is used, and makes it absent.
    prompt, source_prompt, identity: one, or a list with one for each picture.
    """
    from ..pipelines.evaluation.panel import portrait_scores
    from ..pipelines.evaluation.scores import Subject, score_pictures
    from ..pipelines.spl.score import SCORES

    models = models_folders("clip_vision")
    embedder = faces.embedder if faces is not None else None
    chosen = portrait_scores(models, words(clip_model, models, needed in BY_CLIP), embedder, SCORES)
    if only is not None:
        chosen = tuple(entry for entry in chosen if plain_name(entry.name) == only)
    # The networks of scores run on the CPU, wherever ComfyUI keeps its images.
    pictures, source, mask = (x if x is None else x.cpu() for x in (to_pipeline(image), source, mask))
    if source is not None:
        source, mask = cut_as_encoded(to_pipeline(source), pictures, mask)
        if mask is not None and only is not None and only not in EVIDENCE:
            pictures = like_source_outside(pictures, source, mask)
    subject = Subject(
        pictures, source, _texts(prompt), _texts(source_prompt), mask, **face_evidence(pictures, faces, identity)
    )
    return score_pictures(subject, chosen, node_progress())


def like_source_outside(pictures: torch.Tensor, source: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The pictures with the source where ``mask`` is black, so that what is white alone decides."""
    from ..pipelines.images import check_mask

    if pictures.shape[1:] != source.shape[1:]:
        return pictures  # the score says so
    white = check_mask(mask, tuple(pictures.shape[-2:]), len(pictures))
    return source + (pictures - source) * white


def face_evidence(pictures: torch.Tensor, faces, identity) -> dict[str, torch.Tensor]:
    """Embeddings of the faces and of the identity; ``ValueError`` where they do not belong together."""
    from ..pipelines.evaluation.faces import vectors_of
    from ..pipelines.faces.face import check_same_embedder

    found = {}
    if faces is not None:
        faces.check_pictures(pictures)
        found["faces"] = vectors_of(faces)
    if identity is not None:
        people = identity if isinstance(identity, list) else [identity]
        for person in people:
            check_same_embedder(person.embedder, (faces or people[0]).embedder)
        found["identity"] = torch.stack([person.mean() for person in people])
    return found


def words(clip_model: str, models, at_once: bool):
    """The network that reads prompts, loaded at once or when it is first used."""
    from ..pipelines.evaluation.backbones import lazy_clip, load_network

    name = "embedded-clip" if clip_model == CLIP_MODELS[0] else "clip"
    return (load_network if at_once else lazy_clip)(name, models)


def plain_name(name: str) -> str:
    """The name of a score without the network in brackets; a unit stays."""
    return name if name in OUTPUTS else name.partition(" (")[0]


def unlisted(evidence: dict, lengths: list[int]) -> dict:
    """Inputs that ComfyUI gave as lists: pictures, masks and faces joined; prompts and people as they are, one for all
    or one for each picture; of settings the first.

    lengths: of the batches of pictures. A list with an entry for each batch gives it to every picture of its batch.
    """
    found = {}
    for name, values in evidence.items():
        values = [value for value in values or () if value is not None]
        if name == "mask":
            values = [mask.reshape(-1, *mask.shape[-2:]) for mask in values]
        if name in ("source", "mask"):
            found[name] = joined(for_each_picture(values, lengths), name)
        elif name == "faces":
            found[name] = joined_faces(values)
        elif name in ("prompt", "source_prompt", "identity"):
            found[name] = for_each_picture(values, lengths) or None
        elif values:
            found[name] = values[0]
    return {name: value for name, value in found.items() if value is not None}


def for_each_picture(values: list, lengths: list[int]) -> list:
    """Entries that belong to a batch each, once for every picture of it; a batch of as many already stays whole."""
    if len(values) != len(lengths) or len(values) < 2:
        return values
    pairs = zip(values, lengths, strict=True)
    return [value for value, length in pairs for _ in range(1 if is_batch(value) else length)]


def is_batch(value) -> bool:
    return torch.is_tensor(value) and len(value) > 1


def joined(batches: list, name: str) -> torch.Tensor | None:
    """Batches of one size as one; None for a list that holds nothing."""
    sizes = {tuple(batch.shape[1:]) for batch in batches}
    if len(sizes) > 1:
        told = ", ".join(sorted("x".join(map(str, (size[1], size[0]))) for size in sizes))
        raise ValueError(f"{name} is a list of pictures of {told}: they are kept in one batch, resize them first.")
    return torch.cat(batches) if batches else None


def joined_faces(listed: list):
    """LIKENESS_FACES of several batches as one."""
    from dataclasses import replace

    from ..pipelines.faces.face import check_same_embedder

    for faces in listed[1:]:
        check_same_embedder(listed[0].embedder, faces.embedder)
    return replace(listed[0], images=tuple(own for faces in listed for own in faces.images)) if listed else None


def given_scores(scores: list | None, count: int) -> torch.Tensor:
    """A number for each picture; ``ValueError`` where there are more or fewer."""
    scores = [value for value in scores or [] if value is not None]
    if len(scores) != count:
        raise ValueError(f"{len(scores)} scores for {count} pictures: connect a list with one number for each.")
    return torch.tensor(scores, dtype=torch.float64)


def _texts(text: str | list[str] | None) -> tuple[str, ...] | None:
    texts = [text] if isinstance(text, str) else text or []
    return tuple(line.strip() for line in texts) if any(line.strip() for line in texts) else None


def _column(table, plain: str) -> torch.Tensor | None:
    return next((values for name, values in table.values.items() if plain_name(name) == plain), None)


def _mean(table, plain: str) -> float:
    from ..pipelines.evaluation.scores import mean_of

    values = _column(table, plain)
    return float("nan") if values is None else mean_of(values)
