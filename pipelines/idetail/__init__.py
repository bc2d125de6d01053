"""IDetail: relight a portrait from a prompt and keep the person (anonymous submission; notes: shared methods).

A text-to-image model becomes an image-to-image model by a wider first convolution: beside the noisy latent it sees the
foreground mask and the latent of the photo. A LoRA is then trained on synthetic pairs of one person in two lights, with
four losses in the latent space; the photo's person is named by the placeholder ``a <c>`` alone.
"""
