"""Settings as frozen dataclasses, filled from a TOML file and from the command line.

A settings class has sections, each a frozen dataclass whose fields are made with ``option``. From these follow the
command-line options with their help, the checks, the errors and the TOML that ``dump_toml`` writes.
"""

import argparse
import codecs
import difflib
import math
import os
import types
import typing
from dataclasses import MISSING, Field, asdict, field, fields
from pathlib import Path

PLACEHOLDER = "CHANGE-ME"


class SettingsError(ValueError):
    """A setting is unknown, of the wrong kind or out of its range; the message names it, its value and the mend."""


def option(default=MISSING, help: str = "", *, minimum=None, maximum=None, choices=None, fixed: bool = False):
    """A field of a section. Without a default it has to be given.

    minimum, maximum: inclusive bounds of a number (of each, in a list); choices: the allowed values; fixed: it may not
    change when a run goes on from a checkpoint. A default of None means "not set".
    """
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices, "fixed": fixed}
    if isinstance(default, list):
        raise TypeError("use a tuple: settings are frozen")
    return field(default=default, metadata=metadata)


def fields_of(section: type) -> tuple[Field, ...]:
    """The fields of a settings class; their types are types also where ``__future__.annotations`` made them text."""
    hints = typing.get_type_hints(section)
    for entry in fields(section):
        entry.type = hints[entry.name]
    return fields(section)


def add_arguments(parser: argparse.ArgumentParser, settings_class: type) -> None:
    """Give ``parser`` one option for every field, in a group for every section; what is not given stays unset."""
    for section in fields_of(settings_class):
        group = parser.add_argument_group(f"[{section.name}]", (section.type.__doc__ or "").split("\n")[0])
        for entry in fields_of(section.type):
            _add_argument(group, section.name, entry)


def _add_argument(group, section: str, entry: Field) -> None:
    kind, many, _ = _kind(entry)
    flag = _flag(entry)
    common = {"dest": f"{section}.{entry.name}", "default": argparse.SUPPRESS, "help": _help(entry)}
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
    else:
        metavar = "{" + ",".join(entry.metadata["choices"]) + "}" if entry.metadata["choices"] else kind.__name__
        group.add_argument(flag, nargs="*" if many else None, metavar=metavar.upper() if metavar[0] != "{" else metavar,
                           **common)  # fmt: skip


def _help(entry: Field) -> str:
    text = entry.metadata["help"].replace("%", "%%")
    if entry.default is MISSING:
        return f"{text} (required)"
    if entry.default in (None, ()):
        return text
    return f"{text} (default: {_plain(entry.default)})"


def unknown_option(word: str, settings_class: type) -> str:
    """The error for a word on the command line that is no option: what was probably meant."""
    flags = {_flag(entry) for section in fields_of(settings_class) for entry in fields_of(section.type)}
    close = _closest(word.split("=")[0], sorted(flags))
    return f"unknown option {word}: " + (f"did you mean {close}?" if close else "see --help.")


def _flag(entry: Field) -> str:
    return "--" + entry.name.replace("_", "-")


def given_on_command_line(namespace: argparse.Namespace) -> dict[str, dict]:
    """The options of ``add_arguments`` that were given, by section."""
    given: dict[str, dict] = {}
    for name, value in vars(namespace).items():
        section, dot, key = name.partition(".")
        if dot:
            given.setdefault(section, {})[key] = value
    return given


def read_toml(path: str | Path) -> dict[str, dict]:
    """The tables of a TOML file. Raises ``SettingsError`` where it is missing or no TOML."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        content = Path(path).read_bytes()
        # What ">" of Windows PowerShell writes.
        encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        return tomlkit.parse(content.decode(encoding)).unwrap()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}): give the path of a TOML file.") from None
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None


def build_settings(settings_class: type, *layers: dict[str, dict], where: str = "the configuration"):
    """``settings_class`` from tables of sections; later layers win. Raises ``SettingsError`` naming what is wrong."""
    known = {section.name: section.type for section in fields_of(settings_class)}
    merged: dict[str, dict] = {name: {} for name in known}
    for layer in layers:
        for section, values in layer.items():
            if section not in known:
                raise SettingsError(f"{where} has an unknown section [{section}]: {_nearest(section, known)}")
            if not isinstance(values, dict):
                raise SettingsError(f"{section} in {where} is {values!r}: it is a section, write [{section}] above it.")
            merged[section].update(values)
    return settings_class(**{name: _build_section(name, cls, merged[name], known) for name, cls in known.items()})


def settings_of_command(
    settings_class: type, defaults: dict[str, dict], options: argparse.Namespace, where: str = "the configuration"
):
    """``settings_class`` from a script's options, over the TOML of ``--config``, over ``defaults``.

    Where ``--dump-config`` only wants to see them, settings without a default are ``placeholders``.
    """
    layers = [defaults]
    if options.dump_config:
        layers.append(placeholders(settings_class))
    if options.config is not None:
        layers.append(read_toml(options.config))
    return build_settings(settings_class, *layers, given_on_command_line(options), where=where)


def placeholders(settings_class: type) -> dict[str, dict]:
    """A table with ``PLACEHOLDER`` for every text or path that has to be given, for a configuration to begin with."""
    return {
        section.name: {
            entry.name: PLACEHOLDER
            for entry in fields_of(section.type)
            if entry.default is MISSING and _kind(entry)[0] in (str, Path)
        }
        for section in fields_of(settings_class)
    }


def build_section(cls: type, table: dict, name: str = "settings"):
    """One section from its table. Raises ``SettingsError``."""
    return _build_section(name, cls, table, {name: cls})


def _build_section(section: str, cls: type, values: dict, sections: dict[str, type]):
    entries = {entry.name: entry for entry in fields_of(cls)}
    for key in values:
        if key not in entries:
            raise SettingsError(f"[{section}] has no setting {key!r}: {_suggest(key, section, sections)}")
    missing = [name for name, entry in entries.items() if entry.default is MISSING and name not in values]
    if missing:
        flags = ", ".join(_flag(entries[name]) for name in missing)
        raise SettingsError(f"{', '.join(missing)} in [{section}] must be given: in the TOML file, or with {flags}.")
    return cls(**{key: _convert(section, entries[key], value) for key, value in values.items()})


def _suggest(key: str, section: str, sections: dict[str, type]) -> str:
    for name, cls in sections.items():
        if name != section and key in {entry.name for entry in fields(cls)}:
            return f"it belongs into the section [{name}]."
    return _nearest(key, [entry.name for entry in fields(sections[section])])


def _nearest(word: str, known) -> str:
    close = _closest(word, known)
    return f"did you mean {close!r}?" if close else f"known are {', '.join(known)}."


def _closest(word: str, known) -> str | None:
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.5)), None)


def _kind(entry: Field) -> tuple[type, bool, bool]:
    """(type of a value, is it a tuple of them, may it be None)."""
    annotation, optional = entry.type, False
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        options = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
        annotation, optional = options[0], len(options) < len(typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True, optional
    return annotation, False, optional


def _convert(section: str, entry: Field, value):
    kind, many, optional = _kind(entry)
    if value is None or (optional and value == "none"):
        if optional:
            return None
        raise SettingsError(f"{entry.name} in [{section}] must have a value.")
    if many:
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert_one(section, entry, kind, item) for item in values)
    return _convert_one(section, entry, kind, value)


def _convert_one(section: str, entry: Field, kind: type, value):
    name = f"{entry.name} in [{section}]"
    wrong = SettingsError(f"{name} is {value!r}: expected {_describe(kind)}.")
    if kind is bool or isinstance(value, bool):
        if kind is not bool or not isinstance(value, bool):
            raise wrong
        return value
    if kind in (str, Path) and not isinstance(value, (str, Path)):
        raise wrong
    try:
        # No shell has expanded what stands in a file, and Windows' shells expand nothing.
        converted = Path(os.path.expanduser(value)) if kind is Path else kind(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong from None
    if kind is int and isinstance(value, float) and converted != value:
        raise wrong
    _check_range(name, converted, entry)
    return converted


def _check_range(name: str, value, entry: Field) -> None:
    low, high, choices = (entry.metadata[key] for key in ("minimum", "maximum", "choices"))
    if choices and value not in choices:
        raise SettingsError(f"{name} is {value!r}: {_nearest(str(value), choices)} Allowed: {', '.join(choices)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{name} is {value}: it must be a finite number.")
    if low is not None and value < low:
        raise SettingsError(f"{name} is {value}: it must be at least {low}.")
    if high is not None and value > high:
        raise SettingsError(f"{name} is {value}: it must be at most {high}.")


def _describe(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}[kind]


def dump_toml(settings) -> str:
    """All settings as TOML with each one's help as comment; reading it back gives the same settings."""
    import tomlkit

    document = tomlkit.document()
    for section in fields(settings):
        values = getattr(settings, section.name)
        table = tomlkit.table()
        for entry in fields(values):
            value = getattr(values, entry.name)
            table.add(tomlkit.comment(entry.metadata["help"]))
            if value is None:
                table.add(tomlkit.comment(f"{entry.name} = not set"))
            else:
                table.add(entry.name, _plain(value))
        document.add(section.name, table)
    return tomlkit.dumps(document)


def as_tables(settings) -> dict[str, dict]:
    """The settings as plain tables, as JSON and ``build_settings`` take them."""
    return {section.name: section_as_table(getattr(settings, section.name)) for section in fields(settings)}


def section_as_table(section) -> dict:
    """One section as a plain table, as JSON and ``build_section`` take it."""
    return {name: _plain(value) for name, value in asdict(section).items()}


def as_arguments(section: type, values: dict) -> list[str]:
    """The words of a command line that give one section these plain values; defaults are left out."""
    words = []
    for entry in fields_of(section):
        value = values.get(entry.name)
        if value is None or value == _plain(entry.default):
            continue
        if isinstance(value, bool):
            words.append(_flag(entry) if value else f"--no-{_flag(entry)[2:]}")
        else:
            words += [_flag(entry), *(str(item) for item in (value if isinstance(value, list) else [value]))]
    return words


def holds_paths(entry: Field) -> bool:
    """True if the values of a field that ``fields_of`` gave are paths, or tuples of them."""
    return _kind(entry)[0] is Path


def changed_fixed_settings(old: dict[str, dict], settings) -> list[str]:
    """Of the settings marked fixed, those that differ from the tables ``old``, as "section.name: old -> new"."""
    changes = []
    for section in fields_of(type(settings)):
        before, now = old.get(section.name, {}), as_tables(settings)[section.name]
        for entry in fields_of(section.type):
            if entry.metadata["fixed"] and before.get(entry.name) != now[entry.name]:
                changes.append(f"{section.name}.{entry.name}: {before.get(entry.name)!r} -> {now[entry.name]!r}")
    return changes


def _plain(value):
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
