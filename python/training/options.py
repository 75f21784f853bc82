# SPDX-License-Identifier: MIT
"""The command line of a program as a typed dataclass; its fields are the parser: `warmup_epochs` is --warmup-epochs.

Options that several programs have in common are in `shared_options`, a task's own in its folder.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping

from training.errors import OptionError

MODEL_ALIASES = {"container_v1_light": "container_light"}
TRUTH_VALUES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "none": None}
DTYPE_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}


def option(default, help, group, *, choices=None, nargs=None, metavar=None):
    """A dataclass field that is also a command-line flag."""
    metadata = dict(help=help, group=group, choices=choices, nargs=nargs, metavar=metavar)
    return dataclasses.field(default=default, metadata=metadata)


def positional(help, group, *, nargs=None):
    """A dataclass field that is a word of the command line by its place, which cannot be left out; or several words."""
    return dataclasses.field(metadata=dict(help=help, group=group, nargs=nargs, positional=True))


def flag(field_name: str) -> str:
    """The command-line spelling of a field: warmup_epochs -> --warmup-epochs."""
    return "--" + field_name.replace("_", "-")


def wrap_command_line(values: dict, width: int) -> list[str]:
    """{"lr": 0.1, "model_ema": False} -> ["--lr 0.1 --no-model-ema"]; no line breaks between a flag and its value."""
    lines = [""]
    for name, value in values.items():
        words = f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
        if isinstance(value, bool):
            words = flag(name) if value else flag(f"no_{name}")
        if len(lines[-1]) + len(words) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {words}".strip()
    return lines


def parse_explicit(argv: list[str], description: str, cls: type) -> dict:
    """Only the options that `argv` names, typed, as {field name: value}.

    Options left out are left out here too: what they become may depend on the data, the device or --resume.

    Raises:
        OptionError: an unknown option (prefixes do not count), a missing or malformed value.
    """
    words = [
        field.name.upper() + (" ..." if field.metadata["nargs"] else "")
        for field in dataclasses.fields(cls)
        if _is_positional(field)
    ]
    parser = _Parser(
        description=description,
        usage=" ".join(["%(prog)s", *words, "[options]"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    groups = {}
    hints = typing.get_type_hints(cls)
    elsewhere = getattr(cls, "DEFAULTS_ELSEWHERE", {})
    for field in dataclasses.fields(cls):
        name = field.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        _add_flag(groups[name], field, hints[field.name], elsewhere.get(field.name))
    aliases = {flag(name): flag(field) for name, field in getattr(cls, "FLAG_ALIASES", {}).items()}
    switches = {flag(field.name) for field in dataclasses.fields(cls) if hints[field.name] is bool}
    words = _join_truth_values([_normalize(argument, aliases) for argument in argv], switches)
    namespace, unknown = parser.parse_known_args(words)
    if unknown:
        raise OptionError(f"unknown option {unknown[0]}{_suggest(unknown[0], cls)} (--help lists the options)")
    explicit = vars(namespace)
    if "model" in explicit:
        explicit["model"] = MODEL_ALIASES.get(explicit["model"], explicit["model"])
    if "amp_dtype" in explicit:
        explicit["amp_dtype"] = DTYPE_ALIASES.get(explicit["amp_dtype"], explicit["amp_dtype"])
    return {name: _collect(value, hints[name]) for name, value in explicit.items()}


def _collect(value, hint):
    """Several values of a flag are a tuple, KEY=VALUE pairs a dict."""
    if not isinstance(value, list):
        return value
    if _scalar_type(hint) is not parse_pair:
        return tuple(value)
    keys = [key for key, _ in value]
    for key in keys:
        if keys.count(key) > 1:
            raise OptionError(f"{key}=… is given {keys.count(key)} times: leave one of them")
    return dict(value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise OptionError(f"{message} (--help lists the options)")


def _suggest(unknown: str, cls: type) -> str:
    flags = [flag(field.name) for field in dataclasses.fields(cls) if not _is_positional(field)]
    similar = difflib.get_close_matches(unknown.partition("=")[0], flags, n=1)
    return f"; did you mean {similar[0]}?" if similar else ""


def _normalize(argument: str, aliases: Mapping[str, str]) -> str:
    """DeiT and DINO spell flags with underscores (--output_dir); both spellings, and aliases, mean the same."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    name = name.replace("_", "-")
    return aliases.get(name, name) + equals + value


def _join_truth_values(argv: list[str], switches: set[str]) -> list[str]:
    """`--norm-last-layer false`, as DINO spells it, is --no-norm-last-layer."""
    joined: list[str] = []
    for word in argv:
        name, equals, value = word.partition("=")
        if equals and name in switches:
            joined += [name, value]
        else:
            joined.append(word)
    merged: list[str] = []
    for word in joined:
        truth = TRUTH_VALUES.get(word.lower())
        if truth is not None and merged and merged[-1] in switches:
            name = merged.pop()
            merged.append(name if truth else flag("no_" + name.removeprefix("--")))
        else:
            merged.append(word)
    return merged


def _is_positional(field: dataclasses.Field) -> bool:
    return field.metadata.get("positional", False)


def _add_flag(group, field: dataclasses.Field, hint, default_elsewhere: str | None) -> None:
    metadata = field.metadata
    if _is_positional(field):
        group.add_argument(
            field.name, type=_scalar_type(hint), nargs=metadata["nargs"], metavar=field.name.upper(),
            help=metadata["help"],
        )  # fmt: skip
        return
    default = default_elsewhere or field.default
    help = metadata["help"] if default is None else f"{metadata['help']} (default: {default})"
    help = help.replace("%", "%%")
    if hint is bool:
        group.add_argument(flag(field.name), action=argparse.BooleanOptionalAction, help=help)
        return
    group.add_argument(
        flag(field.name),
        type=_scalar_type(hint),
        choices=metadata["choices"],
        nargs=metadata["nargs"],
        metavar=metadata["metavar"] or ("{" + ",".join(metadata["choices"]) + "}" if metadata["choices"] else "X"),
        help=help,
    )


def parse_pair(text: str) -> tuple[str, object]:
    """`depths=(1, 2)` -> ("depths", (1, 2)); what is no Python literal is text.

    Raises:
        argparse.ArgumentTypeError: it is not KEY=VALUE, or a truth value that Python spells otherwise: as text, false
            would count as true.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if (word := value.strip().lower()) in TRUTH_VALUES:
            raise argparse.ArgumentTypeError(f"{text}: write {key}={TRUTH_VALUES[word]}") from None
        return key, value


def _scalar_type(hint) -> Callable:
    """str, int or float inside `X | None` and `tuple[X, ...]`, `parse_pair` for a mapping."""
    if typing.get_origin(hint) is Mapping:
        return parse_pair
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) in (typing.Union, tuple):
        return _scalar_type(next(arg for arg in typing.get_args(hint) if arg not in (type(None), Ellipsis)))
    return hint
