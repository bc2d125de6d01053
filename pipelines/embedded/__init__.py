"""The embedded models: a small Stable-Diffusion-shaped family, trained on the portrait world and shipped with the pack.

``architectures``  what they look like: classes of diffusers and transformers in small
``portrait_set``   portrait data sets as training data; ``vocabulary`` the words of their captions
``autoencoder``, ``clip``, ``text_to_image``, ``face_embedder``, ``face_detector``  one training task each, in this
order; ``face_scenes`` are the pictures that the last one learns from
``judge``          an independent classifier of expression, costume and light, to judge what the others make
``components``     trained weights as folders that diffusers and transformers load
"""

from pathlib import Path

# Here and not where it is used, so that the node which loads it need not import diffusers.
SHIPPED = Path(__file__).parent / "weights"
