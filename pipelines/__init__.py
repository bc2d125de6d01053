"""The methods of Likeness. Nothing in here imports ComfyUI: it runs wherever torch runs.

Images are float tensors ``[B, 3, H, W]`` in 0..1, masks ``[B, 1, H, W]`` in 0..1, unless a docstring says otherwise.

``images``   reading, checking and matching of images and masks (shared service)
``filters``  window sums and the guided filter (shared service)
``masks``    mask upsampling (shared service)
``metrics``  scores that compare two images (shared service)
``spl``      structure-preserving editing with a bidirectional local-linear loss
"""
