"""Models of transformers from folders as transformers saves them."""

from pathlib import Path

import torch


def load_pretrained(model_class: type, folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A model in ``dtype``, ready to be used: from safetensors only, offline, with every weight present.

    Raises ``ValueError`` where a file is missing or damaged, or a weight lacks.
    """
    folder, name = Path(folder), model_class.__name__
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: give a folder as transformers saves {name}.")
    try:
        model, report = model_class.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder} cannot be loaded as {name} ({error}): get its files again.") from error
    if report["missing_keys"]:
        raise ValueError(f"{folder} lacks {sorted(report['missing_keys'])[0]}, which {name} needs.")
    return model.to(dtype).eval()
