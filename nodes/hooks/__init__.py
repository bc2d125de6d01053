"""Patch objects that carry a method into ComfyUI's sampler, one file each."""
