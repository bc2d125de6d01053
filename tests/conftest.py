"""Makes ``import likeness.pipelines...`` work in tests, the way the scripts do."""

from comfyui_environment import load_script

load_script("pack").load_pack()
