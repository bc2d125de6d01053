"""IDetail: relight a portrait from a prompt and keep the person (anonymous submission).

A text-to-image model becomes an image-to-image model by a wider first convolution: beside the noisy latent it sees the
foreground mask and the latent of the photo. A LoRA is then trained on synthetic pairs of one person in two lights, with
four losses in the latent space; the photo's person is named by the placeholder ``a <c>`` alone.

``prompts``       the paper's 15 effects and our 60 input prompts (``input_prompts.json``)
``losses``        the four losses (section 4.4, equations 1 to 6)
``conditioning``  the nine channels (figure 4)
``adapter``       the file: first convolution and LoRA as any LoRA loader reads them
``takes``         pictures of people in many lights, and the pairs made of them (section 3)
``task``          both stages of training (section 4)
``pipeline``      relighting on diffusers; ``embedded`` with the models that come with the pack
``world``         training data in the portrait world; ``photo_data`` from photos by ``instantid`` (section 3), with
                  ``controls`` and ``instantid_models``
``restoration``   the photo's fine detail for a generated picture
``claims``        the paper's claims in miniature; ``card`` describes a trained adapter
"""
