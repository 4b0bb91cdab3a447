"""The configuration file of a server: reading it, and writing the effective configuration in its format."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from neuroglot.errors import NeuroglotError
from neuroglot_server.config.options import BY_NAME, OPTIONS, FileType, Option

MODELS = "models"
BUNDLE = "bundle"


class ConfigurationError(NeuroglotError):
    """A configuration file that cannot be read or is invalid."""


class ModelTable(NamedTuple):
    """The table of one model.

    Attributes:
        bundle: folder of the bundle.
        values: options set for this model, by name.
    """

    bundle: Path
    values: dict[str, Any]


class ConfigurationFile(NamedTuple):
    """The content of a configuration file.

    Attributes:
        values: options by name, parsed as the command line parses its flags.
        models: table of each model, by name.
    """

    values: dict[str, Any]
    models: dict[str, ModelTable]


def read(file: Path) -> ConfigurationFile:
    """Read a configuration file.

        batch_tokens = 8192
        [models.bloomz-560m]
        bundle = "bundles/bloomz-560m"   # relative to the file's folder
        shared_cache = true

    Raises:
        ConfigurationError: the file cannot be read, or has unknown keys or invalid values.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is not valid TOML: {error}") from None
    tables = content.pop(MODELS, {})
    if not isinstance(tables, dict):
        raise ConfigurationError(f"{file}: models is {_shown(tables)}, expected tables [models.NAME]")
    values = {key: _value(file, key, key, [*BY_NAME, MODELS], given) for key, given in content.items()}
    return ConfigurationFile(values, {name: _model(file, name, table) for name, table in tables.items()})


def _model(file: Path, name: str, table: object) -> ModelTable:
    where = f"{MODELS}.{name}"
    if not isinstance(table, dict):
        raise ConfigurationError(f"{file}: {where} is {_shown(table)}, expected a table [{where}]")
    bundle = table.pop(BUNDLE, "")
    if not isinstance(bundle, str) or not bundle:
        given = _shown(bundle) if bundle else "not set"
        raise ConfigurationError(f"{file}: {where}.{BUNDLE} is {given}, expected the path of a bundle")
    allowed = [BUNDLE, *(option.name for option in OPTIONS if option.setting)]
    values = {key: _value(file, f"{where}.{key}", key, allowed, given) for key, given in table.items()}
    return ModelTable(file.parent / bundle, values)


def _value(file: Path, path: str, key: str, allowed: Collection[str], given: object) -> Any:
    """Parse the value of an option as the command line would.

    Raises:
        ConfigurationError: the option is unknown here, or the value is not allowed.
    """
    if key not in allowed:
        near = difflib.get_close_matches(key, allowed, 1)
        meant = f"did you mean {near[0]}? It" if near else "it"
        raise ConfigurationError(f"{file}: {path} is unknown, {meant} has to be one of {', '.join(allowed)}")
    option = BY_NAME[key]
    kinds, expected = _in_toml(option)
    if not isinstance(given, kinds) or (isinstance(given, bool) and bool not in kinds):
        raise ConfigurationError(f"{file}: {path} is {_shown(given)}, expected {expected}")
    if isinstance(option.type, FileType):
        return str(file.parent / str(given))
    try:
        return option.type.convert(given, None, None)
    except click.BadParameter as error:
        raise ConfigurationError(f"{file}: {path} is {_shown(given)}: {error.message}") from None


def _in_toml(option: Option) -> tuple[tuple[type, ...], str]:
    """Return the Python types of an option's TOML values, and their description for messages."""
    match option.type.name:
        case "boolean":
            return (bool,), "true or false"
        case "integer range":
            return (int,), "a whole number"
        case "float range":
            return (int, float), "a number"
        case "size":
            return (int, str), 'a number of bytes, or a text such as "512MiB"'
        case _:
            return (str,), "a text"


def effective(values: Mapping[str, Any], sources: Mapping[str, str], models: Mapping[str, ModelTable]) -> Iterator[str]:
    """Yield the lines of a configuration file with the effective values, each with its source as a comment.

    Args:
        values: all options, by name.
        sources: where each value came from (flag, variable, file or default), for the comment.
        models: tables of the served models, by name.
    """
    for name, value in values.items():
        if value is None:
            yield f"# {name} is not set"
        else:
            yield f"{name} = {_shown(value)}  # {sources[name]}"
    for name, table in models.items():
        yield ""
        yield f"[{MODELS}.{quoted(name)}]"
        yield f"{BUNDLE} = {_shown(str(table.bundle.resolve()))}"
        for key, value in table.values.items():
            yield f"{key} = {_shown(value)}"


def quoted(text: str) -> str:
    """Quote a string as TOML does, for values and keys."""
    return json.dumps(text, ensure_ascii=False)


def _shown(value: object) -> str:
    """Format a value as TOML; JSON has the same syntax for all types of options."""
    return json.dumps(value if isinstance(value, bool | int | float | str) else str(value), ensure_ascii=False)
