"""The command that makes the embedded models from nothing: recipes, what it skips and refuses, and stops."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tile_recipes
from comfyui_environment import load_script
from likeness.pipelines.embedded import recipe
from likeness.pipelines.files import exclusive

for name in ("environment", "comfyui_server", "pack", "terminal"):
    load_script(name)
cli = load_script("family_cli")
TILES = f"{Path(tile_recipes.__file__).as_posix()}:Tiles"
WORK = """
[tiles]
run = "dataset_cli.py generate '{tiles}' --output {{here}} --total {total} --shard-size 3 {more}"
check = "dataset_cli.py verify {{here}}"

[folder]
run = "dataset_cli.py export-folder {{tiles}} {{here}}/plain"
gives = "plain"
"""


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str = WORK, total: int = 6, more: str = "") -> Path:
        file = tmp_path / "recipe.toml"
        file.write_text(text.format(tiles=TILES, total=total, more=more) if text is WORK else text)
        return file

    return write


@pytest.fixture
def make(tmp_path, capfd):
    def call(*words) -> tuple[int, str]:
        code = cli.main(["make", "--output", str(tmp_path / "work"), *map(str, words)])
        printed = capfd.readouterr()
        return code, printed.out + printed.err

    return call


def test_stages_are_made_once_and_in_order(recipe_file, make, tmp_path, capfd):
    file = recipe_file()
    code, printed = make("--recipe", file)
    assert code == 0 and printed.index("== tiles (1 of 2)") < printed.index("== folder (2 of 2)")
    assert len(list((tmp_path / "work/folder/plain").glob("*.png"))) == 6
    told = json.loads((tmp_path / "work/tiles.json").read_text())
    assert told["seconds"] > 0 and "dataset_cli.py generate" in told["command"]
    code, printed = make("--recipe", file)
    assert code == 0 and "2 of 2 stages are finished" in printed and "==" not in printed
    assert cli.main(["show", "--recipe", str(file), "--output", str(tmp_path / "work")]) == 0
    assert len(re.findall(r"^(?:tiles|folder)  done, its last go in \d+ s$", capfd.readouterr().out, re.MULTILINE)) == 2


def test_only_what_was_asked_for_and_needed(recipe_file, make, tmp_path):
    more = '\n[other]\nrun = "dataset_cli.py verify {folder}"\n'
    file = recipe_file(WORK.format(tiles=TILES, total=3, more="") + more)
    assert make("tiles", "--recipe", file)[0] == 0
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["tiles", "tiles.json"]
    assert make("folder", "--recipe", file)[0] == 0
    code, printed = make("fold", "--recipe", file)
    assert code == 1 and "there is no stage 'fold': the recipe has tiles, folder, other" in printed


def test_a_failure_ends_it_and_the_same_command_goes_on(recipe_file, make, tmp_path):
    file = recipe_file(total=6)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/tiles").write_text("in the way")
    code, printed = make("--recipe", file)
    assert code == 1 and "stage tiles ended with 1, see above" in printed and "== folder" not in printed
    (tmp_path / "work/tiles").unlink()
    code, printed = make("--recipe", recipe_file(total=7))  # what one recipe began another does not go on with
    assert code == 1 and "was made with another recipe" in printed
    assert make("--recipe", recipe_file(total=6))[0] == 0


def test_what_an_unfinished_stage_left_is_not_taken_for_its_result(recipe_file, make, tmp_path):
    """An exit code of 0 alone does not say so: a stopped script ends with it, too."""
    broken = WORK.format(tiles=TILES, total=3, more="").replace('gives = "plain"', 'gives = "picture.png"')
    code, printed = make("--recipe", recipe_file(broken))
    assert code == 1 and "picture.png is not there" in printed
    checked = WORK.format(tiles=TILES, total=3, more="").replace("verify {here}", "verify {here}/nothing")
    code, printed = make("tiles", "--recipe", recipe_file(checked))
    assert code == 0  # the check is asked only once
    for left in ("tiles", "folder"):
        (tmp_path / "work" / f"{left}.json").unlink()
    code, printed = make("tiles", "--recipe", recipe_file(checked))
    assert code == 1 and "stage tiles is not finished" in printed


def test_another_recipe_takes_nothing_of_the_old_ones_results(recipe_file, make, tmp_path):
    assert make("--recipe", recipe_file(total=3))[0] == 0
    code, printed = make("--recipe", recipe_file(total=4))
    assert code == 1 and re.search(r"work.tiles was made with another recipe.* move it and tiles.json away", printed)
    for kept in ("tiles", "tiles.json"):
        (tmp_path / "work" / kept).rename(tmp_path / kept)
    code, printed = make("--recipe", recipe_file(total=4))
    assert code == 1 and re.search(r"work.folder was made with another recipe, or stands on", printed)


@pytest.mark.parametrize("how", ["file", "SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_stop_reaches_the_stage_that_runs(recipe_file, make, tmp_path, how):
    file, work = recipe_file(total=24, more="--seconds 0.2"), tmp_path / "work"
    command = [sys.executable, str(Path(cli.__file__)), "make", "--output", str(work), "--recipe", str(file)]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    end = time.monotonic() + 120
    while not list(work.glob("tiles/shard-*.tar")) and time.monotonic() < end:
        time.sleep(0.1)
    if how == "file":
        (work / "STOP").touch()
    elif how == "SIGTERM":
        started.terminate()
    else:  # as a terminal does: to all that run in it
        os.killpg(started.pid, signal.SIGINT)
    printed = started.communicate(timeout=120)[0]
    assert started.returncode == 0 and "family_cli: stopped by" in printed, printed
    assert "seconds" not in json.loads((work / "tiles.json").read_text())
    assert not list(work.rglob("STOP")) and not list(work.rglob("*.lock"))
    assert 0 < len(list(work.glob("tiles/shard-*.tar"))) < 8
    assert make("--recipe", file)[0] == 0
    assert len(list((work / "folder/plain").glob("*.png"))) == 24


@pytest.mark.parametrize(("text", "message"), [
    ("", "has no stages"),
    ("run = 'x'", "stage 'run' is none: give a table"),
    ("[a]\ngives = 'x'", "stage 'a' is none: give a table .a. with its command"),
    ("[a]\nrun = 'x'\nafter = 'b'", "stage 'a' has after: it may have run, gives, done, check"),
    ("[a]\nrun = 'x'\ncheck = 'y {b}'\n[b]\nrun = 'y'", "stage 'a' takes {b}, which no stage before it gives"),
    ("[a]\nrun = 5", "stage 'a' has run = 5: give a text"),
    ("[a]\nrun = ' '", "stage 'a' has an empty command"),
    ("[a]\nrun = \"x 'y\"", "stage 'a' has a command that cannot be split into words .No closing quotation"),
    ("['../evil']\nrun = 'x'", "stage '../evil' has no name for a folder: use letters"),
    ("[here]\nrun = 'x'", "stage 'here' has no name for a folder"),
    ("[a]\nrun = 'x {b}'\n[b]\nrun = 'y'", "stage 'a' takes {b}, which no stage before it gives: it is the first"),
    ("[a]\nrun = 'x'\n[b]\nrun = 'y {c}'", "takes {c}, which no stage before it gives: a"),
    ("[a", "is not valid TOML"),
])  # fmt: skip
def test_wrong_recipes_are_explained(recipe_file, make, text, message):
    code, printed = make("--recipe", recipe_file(text))
    assert code == 1 and re.search(message, printed), printed


def test_a_damaged_note_is_told(recipe_file, make, tmp_path):
    (tmp_path / "work").mkdir()
    for damage in ('{"digest": ', "5", "{}"):
        (tmp_path / "work/tiles.json").write_text(damage)
        code, printed = make("--recipe", recipe_file())
        assert code == 1 and "tiles.json is damaged" in printed and "delete it" in printed


def test_the_same_folder_by_another_path(recipe_file, make, tmp_path, monkeypatch, capfd):
    file = recipe_file(total=3)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["make", "tiles", "--output", "work", "--recipe", str(file)]) == 0
    told = json.loads((tmp_path / "work/tiles.json").read_text())
    assert str(tmp_path / "work/tiles") in told["command"]
    assert make("--recipe", file)[0] == 0


def test_one_at_a_time_in_a_folder(recipe_file, make, tmp_path):
    (tmp_path / "work").mkdir()
    with exclusive(tmp_path / "work/make.lock", "it"):
        code, printed = make("--recipe", recipe_file())
    assert code == 1 and "is in use by another process" in printed


def test_paths_with_spaces_stay_one_word(recipe_file, tmp_path):
    stages = recipe.read_recipe(recipe_file())
    words = recipe.command(stages["folder"].run, stages["folder"], stages, tmp_path / "my work")
    assert words == ["dataset_cli.py", "export-folder", str(tmp_path / "my work/tiles"),
                     f"{tmp_path / 'my work' / 'folder'}/plain"]  # fmt: skip


@pytest.mark.parametrize("stage", recipe.read_recipe(cli.RECIPE))
def test_our_recipe_says_what_the_scripts_understand(stage, tmp_path):
    stages = recipe.read_recipe(cli.RECIPE)
    for line in filter(None, (stages[stage].run, stages[stage].check)):
        script, *words = recipe.command(line, stages[stage], stages, tmp_path)
        module = load_script(script.removesuffix(".py"))
        if script == "train_cli.py":
            assert words[0] == "train"
            cls = module.task_class(words[1])
            settings = module._settings(cls, module._parse_settings(script, cls, words[2:]))
            assert settings.run.output == stages[stage].folder(tmp_path)
        elif script == "dataset_cli.py":
            assert module.parse_arguments(words).run in (module.generate, module.verify)
        else:
            assert module._parser().parse_args(words).run


def in_miniature(text: str) -> str:
    """A recipe with the same commands and everything small."""
    small = {
        "total": {24000: 60, 1000: 32}, "people": {6000: 20, 250: 8, 512: 6, 40: 4, 8: 2, 100: 3, 20: 2, 16: 2},
        "generated": {300: 8}, "batch-size": {}, "steps": {}, "warmup-steps": {}, "margin-warmup": {},
    }  # fmt: skip

    def shrink(found: re.Match) -> str:
        name, value = found[1], int(found[2])
        return f"--{name} {small[name].get(value, min(value, 4))}" if name in small else found[0]

    return re.sub(r"--([a-z-]+) (\d+)(?![\d.])", shrink, text)


@pytest.mark.slow
def test_our_recipe_makes_a_family_in_miniature(recipe_file, make, tmp_path):
    code, printed = make("family", "adapter", "--recipe", recipe_file(in_miniature(cli.RECIPE.read_text())))
    assert code == 0, printed
    for card in ("family/models/README.md", "adapter/weights/README.md"):
        assert "--steps 4" in (tmp_path / "work" / card).read_text()
