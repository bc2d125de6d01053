"""The repository's own promises: arrows of import, manifest, workflows, help pages, requirements."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_environment import load_script
from likeness.pipelines.weights.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = ROOT / "examples_workflows"
SOURCES = [*sorted((ROOT / "pipelines").rglob("*.py")), *sorted((ROOT / "nodes").rglob("*.py")), ROOT / "__init__.py"]
SCRIPTS = {
    "quickstart.py", "dataset_cli.py", "pack.py", "environment.py", "comfyui_server.py", "train_cli.py",
    "evaluate_cli.py", "weights_cli.py", "family_cli.py", "terminal.py",
}  # fmt: skip
COMFYUI = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "execution", "server"}
METHODS = {"spl", "idetail", "mcdm", "idsync", "mcld"}


def imports(path: Path):
    """(level, module) of every import statement, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    inside = path.relative_to(ROOT).parts
    for level, module in imports(path):
        top = module.split(".")[0]
        if level == 0:
            own = {"nodes", "pipelines", "likeness"}
            assert not (inside[0] == "pipelines" and top in COMFYUI), f"pipelines imports {module}"
            assert inside[-1] in SCRIPTS or top not in own, f"absolute import of {module}"
        elif inside[0] == "pipelines" and len(inside) > 2:
            target = module.split(".")[0] if level == 2 else inside[1]
            assert target == inside[1] or target not in METHODS, f"{inside[1]} imports the method {target}"


# Imports whatever a script may import of the pack, and prints what those files import of others.
ASKED = """
import ast, builtins, importlib, sys
root, script = sys.argv[1:]
sys.path.insert(0, root + "/nodes")
asked, plain = set(), builtins.__import__

def watched(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and str((globals or {}).get("__file__", "")).startswith((root + "/nodes", root + "/pipelines")):
        asked.add(name.split(".")[0])
    return plain(name, globals, locals, fromlist, level)

builtins.__import__ = watched
module = importlib.import_module(script)
module.pack.load_pack()
for node in ast.walk(ast.parse(open(module.__file__, encoding="utf-8").read())):
    if isinstance(node, ast.ImportFrom) and node.module.startswith("likeness"):
        importlib.import_module(node.module)
for name in ("list_recipes", "list_tasks"):
    if hasattr(module, name):
        getattr(module, name)(*[None] * getattr(module, name).__code__.co_argcount)
print("asked:", *sorted(asked - set(sys.stdlib_module_names)))
"""


@pytest.mark.parametrize("script", ["dataset_cli", "evaluate_cli", "family_cli", "train_cli", "weights_cli"])
def test_a_script_sets_up_all_that_it_imports(script):
    run = subprocess.run([sys.executable, "-c", ASKED, str(ROOT), script], capture_output=True, text=True, check=True)
    asked = set(run.stdout.rpartition("asked:")[2].split()) - {"likeness", *(name[:-3] for name in SCRIPTS)}
    for name in ("environment", "comfyui_server", "pack"):  # the script imports these by name
        load_script(name)
    assert "torch" in asked and not asked - set(load_script(script).MODULES)


def test_pack_imports_without_comfyui_and_without_anything_else():
    pack = sys.modules["likeness"]
    assert callable(pack.comfy_entrypoint)
    assert (ROOT / pack.WEB_DIRECTORY / "docs").is_dir()
    assert list(imports(ROOT / "__init__.py")) == [(1, "nodes.extension")]


def test_manifest_entries_are_whole_and_explained():
    fields = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))["fields"]
    weights = read_manifest()
    assert len({weight.name for weight in weights}) == len(weights) > 20
    ids = {*node_ids(), *(path.name for path in WORKFLOWS.glob("*.json"))}
    for weight in weights:
        assert set(vars(weight)) == set(fields)
        assert weight.sha256 is None or re.fullmatch("[0-9a-f]{64}", weight.sha256)
        assert weight.size is None or (isinstance(weight.size, int) and weight.size > 0)
        assert weight.commercial_use in (True, False, None)
        if weight.url:
            assert weight.url.startswith("https://") and weight.repository is None
        else:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", weight.repository) and weight.revision
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", weight.name)
        assert all([weight.purpose, weight.file, weight.licence, weight.folder, weight.save_as, weight.source])
        assert set(weight.nodes) <= ids
        assert set(weight.methods) <= METHODS | {"faces", "masks", "metrics"} and weight.methods


def test_requirements_are_lower_bounds_only():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    asked = {"torch", "diffusers", "safetensors", "insightface", "opencv-python", "numpy", "einops", "huggingface-hub"}
    assert asked <= {re.split("[><=~!]", line)[0] for line in lines}
    assert all(re.fullmatch(r"[\w-]+(>=[\d.]+)?", line) for line in lines)
    assert "pillow>=10.1" in lines  # the first with Image.has_transparency_data, which reading a picture asks


def node_ids() -> set[str]:
    return {
        keyword.value.value
        for path in (ROOT / "nodes").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "node_id" and isinstance(keyword.value, ast.Constant)
    }


def test_every_node_has_a_help_page_and_every_page_a_node():
    ids = node_ids()
    assert len(ids) >= 4
    assert {page.stem for page in (ROOT / "web" / "docs").glob("*.md")} == ids


def links_of(graph: dict):
    """(node, input name, origin node, origin slot) of every connection of a UI-format graph."""
    origins = {link[0]: (str(link[1]), link[2]) for link in graph["links"]}
    for node in graph["nodes"]:
        for entry in node.get("inputs", []):
            if entry.get("link") is not None:
                yield str(node["id"]), entry["name"], *origins[entry["link"]]


def widgets_of(node: dict) -> dict:
    """Widget values of a UI-format node by name; a seed is followed by its "control after generate"."""
    values = iter(node.get("widgets_values", []))
    widgets = {}
    for name in [entry["widget"]["name"] for entry in node.get("inputs", []) if "widget" in entry]:
        widgets[name] = next(values, None)
        if name == "seed":
            next(values)
    return widgets


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*_api.json")), ids=lambda path: path.name)
def test_both_formats_of_a_workflow_are_the_same_graph(path):
    api = json.loads(path.read_text(encoding="utf-8"))
    ui = json.loads((WORKFLOWS / path.name.replace("_api", "")).read_text(encoding="utf-8"))
    notes = {"Note", "MarkdownNote"}
    assert {str(node["id"]): node["type"] for node in ui["nodes"] if node["type"] not in notes} == {
        node: content["class_type"] for node, content in api.items()
    }
    assert any(node["type"] in notes for node in ui["nodes"])
    connected = {
        (node, name, *value) for node, content in api.items() for name, value in content["inputs"].items()
        if isinstance(value, list)
    }  # fmt: skip
    assert set(links_of(ui)) == connected
    for node in ui["nodes"]:
        if node["type"] not in notes:
            values = {key: v for key, v in api[str(node["id"])]["inputs"].items() if not isinstance(v, list)}
            assert {key: value for key, value in widgets_of(node).items() if key in values} == values


@pytest.mark.parametrize("path", sorted((ROOT / "example_workflows").glob("*.json")), ids=lambda path: path.name)
def test_every_widget_of_a_workflow_has_a_value(path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    empty = [(node["type"], name) for node in nodes for name, value in widgets_of(node).items() if value is None]
    assert not empty


def test_template_folder_holds_copies_of_the_ui_workflows():
    """ComfyUI serves templates from `example_workflows` only; the folder the project was given is the source."""
    served = {path.name: path.read_bytes() for path in (ROOT / "example_workflows").glob("*.json")}
    sources = [path for path in WORKFLOWS.glob("*.json") if not path.stem.endswith("_api")]
    assert served == {f"likeness_{path.name}": path.read_bytes() for path in sources}


def test_a_missing_package_is_named_with_its_install_line():
    from likeness.pipelines.optional import need

    with pytest.raises(ImportError, match="some-package is needed here.*-m pip install some-package"):
        need("no_such_module", "some-package")


def test_a_folder_of_the_same_name_is_no_package(tmp_path, monkeypatch):
    from likeness.pipelines.optional import need

    (tmp_path / "some_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="only a folder of that name"):
        need("some_package", "some-package")
