"""Scores of pictures and of folders of pictures: which network sees for which score, and what is told of it.

``backbones``  networks by name: the embedded CLIP; CLIP, DINOv2 and VGG where their files are; ``faces`` beside them
``scores``     the scores of a batch of pictures against sources, prompts, faces and masks; what is absent and why
``files``      the scores of picture files
``ranking``    the best of a batch, and pictures with their scores drawn below
``folders``    one folder of pictures against another: a pass over both, picture by picture
``sets``       scores of both folders as wholes
``claims``     tables of a method's variants with intervals, and whether a claim holds
``report``     CSV, JSON and one HTML page of what was found; ``plots`` its drawings

The scores themselves are ``metrics``. A method's own score, such as SPL, is handed in by whoever knows the method.
"""
