"""ComfyUI entry point of Likeness: one extension, nothing imported before ComfyUI asks for it."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes.extension import LikenessExtension

    return LikenessExtension()
