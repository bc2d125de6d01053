"""What a person meets: ComfyUI nodes (thin adapters over ``pipelines``) and command lines."""
