"""Settings from TOML and the command line: what is understood, and what is said of the rest."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest
from likeness.pipelines.configuration import (
    SettingsError,
    add_arguments,
    as_arguments,
    as_tables,
    build_settings,
    changed_fixed_settings,
    dump_toml,
    given_on_command_line,
    option,
    read_toml,
    unknown_option,
)


@dataclass(frozen=True)
class Run:
    """The run."""

    output: Path = option(help="where to")
    steps: int = option(10, "how many, at most 100 % of them", minimum=1, maximum=1000, fixed=True)
    rate: float = option(0.5, "how fast", minimum=0)
    names: tuple[str, ...] = option((), "some names")
    limit: int | None = option(None, "no limit unless set")
    flip: bool = option(True, "mirror")


@dataclass(frozen=True)
class Model:
    """The model."""

    kind: str = option("small", "which", choices=("small", "large"))


@dataclass(frozen=True)
class Settings:
    run: Run
    model: Model


def from_command_line(*words: str) -> dict:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Settings)
    return given_on_command_line(parser.parse_args(words))


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    (tmp_path / "a.toml").write_text('[run]\noutput = "here"\nsteps = 20\nrate = 2\n[model]\nkind = "large"\n')
    settings = build_settings(Settings, read_toml(tmp_path / "a.toml"), from_command_line("--steps", "30", "--no-flip"))
    assert settings == Settings(Run(Path("here"), 30, 2.0, (), None, False), Model("large"))
    assert isinstance(settings.run.rate, float)


def test_a_path_in_a_file_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere/me")
    monkeypatch.setenv("USERPROFILE", "/somewhere/me")
    settings = build_settings(Settings, {"run": {"output": "~/runs", "names": ["~/a"]}})
    assert settings.run.output == Path("/somewhere/me/runs") and settings.run.names == ("~/a",)


def test_settings_as_words_of_a_command_line_read_back_as_themselves():
    for run in (Run(Path("a b")), Run(Path("x"), 7, 1e-7, ("a", "b c"), 0, False)):
        words = as_arguments(Run, as_tables(Settings(run, Model()))["run"])
        assert build_settings(Settings, from_command_line(*words)) == Settings(run, Model())
    assert as_arguments(Run, {"output": "here", "steps": 10, "flip": True}) == ["--output", "here"]


@pytest.mark.parametrize("words", [["--names", "a", 'with "quotes" and \\'], ["--limit", "3"], ["--rate", "1e-5"]])
def test_what_is_dumped_reads_back_the_same(tmp_path, words):
    settings = build_settings(Settings, from_command_line("--output", "x y", *words))
    (tmp_path / "a.toml").write_text(dump_toml(settings), encoding="utf-8")
    assert build_settings(Settings, read_toml(tmp_path / "a.toml")) == settings
    assert build_settings(Settings, as_tables(settings)) == settings
    assert "# how many, at most 100 % of them" in dump_toml(settings)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"run": {"output": "x", "stepps": 3}}, r"\[run\] has no setting 'stepps': did you mean 'steps'\?"),
        ({"run": {"output": "x", "kind": "large"}}, r"'kind': it belongs into the section \[model\]"),
        ({"rum": {"steps": 3}}, r"unknown section \[rum\]: did you mean 'run'\?"),
        ({"steps": 3}, r"unknown section \[steps\]"),
        ({"run": 3}, r"run in the configuration is 3: it is a section, write \[run\] above it"),
        ({"run": {"output": "x", "steps": float("inf")}}, "steps in .run. is inf: expected a whole number"),
        ({}, r"output in \[run\] must be given: in the TOML file, or with --output"),
        ({"run": {"output": "x", "steps": 0}}, "steps in .run. is 0: it must be at least 1"),
        ({"run": {"output": "x", "steps": 1001}}, "steps in .run. is 1001: it must be at most 1000"),
        ({"run": {"output": "x", "steps": 2.5}}, "steps in .run. is 2.5: expected a whole number"),
        ({"run": {"output": "x", "steps": True}}, "steps in .run. is True: expected a whole number"),
        ({"run": {"output": "x", "rate": "fast"}}, "rate in .run. is 'fast': expected a number"),
        ({"run": {"output": "x", "rate": float("nan")}}, "rate in .run. is nan: it must be a finite number"),
        ({"run": {"output": "x", "flip": "yes"}}, "flip in .run. is 'yes': expected true or false"),
        ({"run": {"output": 3}}, "output in .run. is 3: expected a path"),
        ({"run": {"output": "x", "names": [3]}}, "names in .run. is 3: expected a text"),
        ({"run": {"output": "x"}, "model": {"kind": "larg"}}, "kind in .model. is 'larg': did you mean 'large'"),
    ],
)
def test_what_is_wrong_is_named_with_its_mend(table, message):
    with pytest.raises(SettingsError, match=message):
        build_settings(Settings, table)


def test_a_mistyped_option_is_answered_with_the_nearest_one():
    assert unknown_option("--stepps", Settings) == "unknown option --stepps: did you mean --steps?"
    assert unknown_option("--zzzzzz", Settings) == "unknown option --zzzzzz: see --help."


def test_files_that_are_no_toml_are_refused_by_name(tmp_path):
    (tmp_path / "bad.toml").write_text("[run\n")
    (tmp_path / "latin.toml").write_bytes(b'[run]\noutput = "\xe4"\n')
    for name in ("bad.toml", "latin.toml", "missing.toml"):
        with pytest.raises(SettingsError, match=name):
            read_toml(tmp_path / name)


def test_only_fixed_settings_count_as_changed():
    old = as_tables(build_settings(Settings, {"run": {"output": "x"}}))
    new = build_settings(Settings, {"run": {"output": "y", "rate": 1.0, "steps": 11}})
    assert changed_fixed_settings(old, new) == ["run.steps: 10 -> 11"]
