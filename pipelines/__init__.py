"""The methods of Likeness. Nothing in here imports ComfyUI: it runs wherever torch runs.

Images are float tensors ``[B, 3, H, W]`` in 0..1, masks ``[B, 1, H, W]`` in 0..1, unless a docstring says otherwise.

Shared services

``images``         reading, checking and matching of images and masks
``filters``        window sums and the guided filter
``files``          files that appear whole or not at all
``stop``           stopping long runs on request
``randomness``     random numbers as a function of what they are for
``configuration``  settings from TOML and the command line
``masks``          mask upsampling
``metrics``        scores that compare two images
``weights``        base models from a folder or a single file
``training``       one trainer for every task; LoRA fine-tuning
``image_prompt``   pictures as prompts: image-prompt adapters for UNets of diffusers
``generation``     one engine for every data set
``portraits``      the procedural portrait world: parameters in, picture and exact ground truth out

Methods

``spl``            structure-preserving editing with a bidirectional local-linear loss
"""
