"""Which faces are meant: by score, in an order, by number, or by likeness to somebody."""

from dataclasses import replace

from .face import Face, Faces, Identity, check_same_embedder

ORDERS = ("largest first", "left to right", "surest first")
CHOICES = ("all", "by index", "most similar")

_KEYS = {
    "largest first": lambda face: -face.width * face.height,
    "left to right": lambda face: face.centre[0],
    "surest first": lambda face: -face.score,
}


def ordered(faces: list[Face], order: str, min_score: float = 0.0) -> list[Face]:
    """The faces of at least ``min_score``, in one of ``ORDERS``; equals keep their order."""
    if order not in _KEYS:
        raise ValueError(f"order of faces is {order!r}: choose one of {', '.join(ORDERS)}.")
    return sorted((face for face in faces if face.score >= min_score), key=_KEYS[order])


def choose(faces: Faces, how: str, index: int = 0, reference: Identity | None = None) -> Faces:
    """The chosen faces of every picture: one of ``CHOICES``.

    ``index`` counts from 0 in the order the faces are in, from the last one backwards if negative; a picture with too
    few faces gives none. ``reference`` is whom the most similar face is to be similar to. Raises ``ValueError`` where
    no picture has a face to give, or the reference is missing or of another embedder.
    """
    if how not in CHOICES:
        raise ValueError(f"choice of faces is {how!r}: choose one of {', '.join(CHOICES)}.")
    if how == "most similar" and reference is None:
        raise ValueError("the most similar face is asked for, but similar to whom: connect a reference identity.")
    if faces.count == 0:
        raise ValueError(
            f"no face was found in {len(faces.images)} picture(s): lower min_score, try another backend, or connect "
            "a picture that shows a face."
        )
    chosen = replace(faces, images=tuple(_of_one(own, how, index, reference, faces.embedder) for own in faces.images))
    if chosen.count == 0:
        most = max(map(len, faces.images))
        raise ValueError(f"face {index} is asked for, no picture has more than {most}: use an index up to {most - 1}.")
    return chosen


def _of_one(faces, how, index, reference, embedder) -> tuple[Face, ...]:
    if how == "all":
        return faces
    if how == "by index":
        return (faces[index],) if -len(faces) <= index < len(faces) else ()
    return (most_similar(faces, reference, embedder)[0],) if faces else ()


def most_similar(faces: tuple[Face, ...], reference: Identity, embedder: str | None) -> tuple[Face, float]:
    """The face nearest to ``reference`` and its cosine; ``ValueError`` without embeddings, or from another embedder."""
    if any(face.embedding is None for face in faces):
        raise ValueError("the faces have no embeddings to compare: switch embeddings on where they are detected.")
    check_same_embedder(reference.embedder, embedder)
    cosines = [reference.similarity(face.embedding, embedder) for face in faces]
    best = max(range(len(faces)), key=cosines.__getitem__)
    return faces[best], cosines[best]
