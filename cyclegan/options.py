"""Strict loading of settings.

In: the command line, an optional YAML file (`--config FILE`), a preset. Out: the settings of one job.
The command line wins over the file, the file over the preset, the preset over the defaults; an unknown option or key is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from cyclegan import storage
from cyclegan.config import PRESETS, Settings
from cyclegan.errors import InputError

S = TypeVar("S", bound=Settings)


def load_settings(cls: type[S], argv: Sequence[str], prog: str) -> S:
    """Reads the settings of one job from its command line and the file named there.

    Args:
        cls: what to read.
        argv: the words after the program's name.
        prog: the program's name, for `--help`.

    Raises:
        InputError: one line that names the option or key and says what is wrong with it.
        SystemExit: after `--help`.
    """

    class Command(BaseSettings, cls):  # type: ignore[valid-type, misc]
        model_config = SettingsConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
        config: str | None = None
        """YAML file with any of these settings; the command line wins over it."""

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            command_line: CliSettingsSource[Any] = CliSettingsSource(
                settings_cls,
                cli_prog_name=prog,
                cli_parse_args=list(argv),
                cli_implicit_flags=True,
                cli_kebab_case=True,
                cli_avoid_json=True,
                cli_hide_none_type=True,
                cli_exit_on_error=False,
            )
            return command_line, _FileAndPreset(settings_cls)

    Command.__doc__ = cls.__doc__
    try:
        merged = Command().model_dump(exclude={"config"})
    except SettingsError as error:
        raise InputError(f"{str(error).removeprefix('error parsing CLI: ')}; {prog} --help lists the options") from None
    except ValidationError as error:
        raise InputError(_one_line(error, prog)) from None
    return cls(**merged)


class _FileAndPreset(InitSettingsSource):
    """The YAML file over the preset; both depend on what the command line said."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, {})

    def __call__(self) -> dict[str, Any]:
        said = self.current_state
        file = read_yaml(str(said["config"])) if said.get("config") else {}
        if said.get("resume"):
            file = {**read_yaml(storage.join(str(said["resume"]), "config.yaml")), **file, "out": said["resume"]}
        if "preset" not in self.settings_cls.model_fields:
            return file
        values = dict(PRESETS.get(str(said.get("preset") or file.get("preset") or "seed"), {}))
        if {"steps", "epochs"} & (file.keys() | said.keys()):  # one length replaces the preset's
            values = {key: value for key, value in values.items() if key not in ("steps", "epochs")}
        return _merge(values, file)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _merge(base[key], over[key]) for key in over if isinstance(over[key], dict) and isinstance(base.get(key), Mapping)}
    return {**base, **over, **both}


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    try:
        values = yaml.safe_load(storage.read_text(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict | None):
        raise InputError(f"{path}: expected lines such as `steps: 1000`, found {type(values).__name__}")
    return values or {}


def to_yaml(settings: Settings) -> str:
    """The settings as a YAML document that `--config` reads back."""
    text: str = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    return text


def _one_line(error: ValidationError, prog: str) -> str:
    problems = []
    for item in error.errors(include_url=False):
        option = "--" + ".".join(str(part).replace("_", "-") for part in item["loc"])
        if item["type"] == "missing":
            problems.append(f"{option} is required")
        elif item["type"] == "extra_forbidden":
            problems.append(f"{option}: no such setting")
        elif item["loc"]:
            problems.append(f"{option} {item['input']}: {item['msg'][0].lower()}{item['msg'][1:]}")
        else:
            problems.append(item["msg"].removeprefix("Value error, "))
    return "; ".join(problems) + f"; {prog} --help lists the options"
