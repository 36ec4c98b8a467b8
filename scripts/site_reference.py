"""Generates the reference pages of the documentation from the protos' comments, the settings and click's commands."""

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import click
from google.api import field_behavior_pb2  # type: ignore[import-untyped]
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc  # type: ignore[import-untyped]
from pseudoword.cli.main import main as command_line
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from registry.settings import RegistrySettings
from rpc.settings import Settings
from service.settings import GenerationSettings
from trainer.settings import TrainerSettings

SERVICES = ("registry", "trainer", "generation")
_SETTINGS: Mapping[str, tuple[str, type[Settings]]] = {
    "registry": ("registry", RegistrySettings),
    "trainer": ("trainer", TrainerSettings),
    "generation": ("service", GenerationSettings),
}


def pages(root: Path) -> dict[str, str]:
    """The Markdown of each generated page, by its path."""
    found = {f"reference/api/{name}.md": text for name, text in _api(root)}
    for name, (module, table) in _SETTINGS.items():
        found[f"reference/settings/{name}.md"] = _settings(name, module, table)
    return found | {"reference/commands.md": _commands()}


def _prose(text: str) -> str:
    """Escapes the characters of a text that Markdown would interpret, outside code spans."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.translate(_PLAIN) for part in parts)


_PLAIN = str.maketrans({"<": "&lt;", "{": "&#123;", "|": "&#124;"})


def _cell(text: str) -> str:
    return _prose(" ".join(text.split()))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return ["", *("| " + " | ".join(line) + " |" for line in lines), ""]


# The API


def _api(root: Path) -> Iterator[tuple[str, str]]:
    """Each service's name and page, from protoc's descriptors with their comments."""
    protos = sorted(str(file.relative_to(root / "protos")) for file in (root / "protos").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors"
        includes = [root / "protos", root / "third_party/googleapis", resources("grpc_tools") / "_proto"]
        arguments = [f"-I{include}" for include in includes]
        if protoc.main(["protoc", *arguments, "--include_source_info", f"--descriptor_set_out={out}", *protos]):
            raise RuntimeError("protoc failed")
        described = FileDescriptorSet.FromString(out.read_bytes())
    for name in SERVICES:
        package = f"pseudoword.{name}.v1"
        yield name, "\n".join(_package(name, [file for file in described.file if file.package == package]))


def _package(name: str, files: Sequence[FileDescriptorProto]) -> Iterator[str]:
    yield f"# API: {name}"
    yield f"\nPackage `pseudoword.{name}.v1`. Generated from the comments in `protos/pseudoword/{name}/v1/`.\n"
    messages: list[str] = []
    for file in files:
        comments = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}
        for index, service in enumerate(file.service):
            yield f"## {service.name}\n\n{_prose(comments.get((6, index), ''))}"
            yield from _table(
                ["rpc", "request", "response", "description"],
                [
                    [
                        f"`{method.name}`",
                        ("stream of " if method.client_streaming else "") + _linked(method.input_type, name),
                        ("stream of " if method.server_streaming else "") + _linked(method.output_type, name),
                        _cell(comments.get((6, index, 2, number), "")),
                    ]
                    for number, method in enumerate(service.method)
                ],
            )
        for index, message in enumerate(file.message_type):
            messages += _message(message, message.name, (4, index), comments, name)
        for index, enum in enumerate(file.enum_type):
            messages += _enum(enum, enum.name, (5, index), comments)
    yield "## Messages"
    yield from messages


def _message(
    message: DescriptorProto, title: str, path: tuple[int, ...], comments: Mapping[tuple[int, ...], str], page: str
) -> Iterator[str]:
    yield f"\n### {title} {{ #{title} }}\n\n{_prose(comments.get(path, ''))}"
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    if message.field:
        yield from _table(
            ["field", "type", "", "description"],
            [
                [
                    f"`{field.name}`",
                    _type(field, maps, page),
                    _rules(field, message),
                    _cell(comments.get((*path, 2, number), "")),
                ]
                for number, field in enumerate(message.field)
            ],
        )
    for number, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _message(nested, f"{title}.{nested.name}", (*path, 3, number), comments, page)
    for number, enum in enumerate(message.enum_type):
        yield from _enum(enum, f"{title}.{enum.name}", (*path, 4, number), comments)


def _enum(
    enum: EnumDescriptorProto, title: str, path: tuple[int, ...], comments: Mapping[tuple[int, ...], str]
) -> Iterator[str]:
    yield f"\n### {title} {{ #{title} }}\n\n{_prose(comments.get(path, ''))}"
    yield from _table(
        ["value", "number", "description"],
        [
            [f"`{value.name}`", str(value.number), _cell(comments.get((*path, 2, number), ""))]
            for number, value in enumerate(enum.value)
        ],
    )


def _type(field: FieldDescriptorProto, maps: Mapping[str, DescriptorProto], page: str) -> str:
    kind = field.type_name.rpartition(".")[2]
    if kind in maps:
        key, value = maps[kind].field
        return f"map of {_type(key, {}, page)} to {_type(value, {}, page)}"
    plain = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    name = _linked(field.type_name, page) if field.type_name else plain
    return f"list of {name}" if field.label == FieldDescriptorProto.LABEL_REPEATED else name


def _linked(type_name: str, page: str) -> str:
    """A link to a message of this API; for a message of Google, only its name."""
    full = type_name.lstrip(".")
    if not (found := re.fullmatch(r"pseudoword\.(\w+)\.v1\.(.+)", full)):
        return f"`{full}`"
    owner, title = found.groups()
    return f"[{title}]({'' if owner == page else owner + '.md'}#{title})"


def _rules(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    behaviours = field.options.Extensions[field_behavior_pb2.field_behavior]
    rules = [field_behavior_pb2.FieldBehavior.Name(one).lower().replace("_", " ") for one in behaviours]
    if field.HasField("oneof_index") and not field.proto3_optional:
        rules.append(f"one of `{message.oneof_decl[field.oneof_index].name}`")
    return ", ".join(rule for rule in rules if rule != "optional")


# Settings


def _settings(name: str, module: str, table: type[Settings]) -> str:
    lines = [
        f"# Settings: {name}",
        f"\n`python -m {module} --help` prints this table. The command line has precedence over the environment.\n",
    ]
    alone = {key: field for key, field in table.model_fields.items() if not _is_table(field)}
    if alone:
        lines += _setting_rows(alone, {key: field.default for key, field in alone.items()}, "")
    for key, field in table.model_fields.items():
        if _is_table(field):
            kind: type[BaseModel] = field.annotation  # type: ignore[assignment]
            lines.append(f"## {key}\n\n{_prose(field.description or ' '.join((kind.__doc__ or '').split()))}")
            lines += _setting_rows(
                kind.model_fields, {each: getattr(field.default, each) for each in kind.model_fields}, f"{key}."
            )
    return "\n".join(lines)


def _is_table(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _setting_rows(fields: Mapping[str, FieldInfo], defaults: Mapping[str, Any], prefix: str) -> list[str]:
    return _table(
        ["command line", "environment", "default", "description"],
        [
            [
                f"`--{prefix}{key.replace('_', '-')}`".replace("_", "-"),
                f"`PSEUDOWORD_{(prefix.replace('.', '__') + key).upper()}`",
                _default(defaults[key]),
                _cell(field.description or ""),
            ]
            for key, field in fields.items()
        ],
    )


def _default(value: object) -> str:
    match value:
        case None | "" | () | SecretStr():
            return ""
        case bool():
            return "on" if value else "off"
        case timedelta():
            return f"{value.total_seconds():g} s"
        case int() | float():
            return f"{value:,}"
        case _:
            return f"`{value}`"


# Commands


def _commands() -> str:
    context = click.Context(command_line, info_name="pseudoword", show_default=True)
    named = {name: command_line.get_command(context, name) for name in command_line.list_commands(context)}
    commands = {name: command for name, command in named.items() if command is not None}
    # The options of all commands that call a server are listed once.
    shared = {one.name for one in commands["draw"].params} & {one.name for one in commands["watch"].params}
    lines = ["# Command line", *_help(command_line), "## Options of all commands that call a server"]
    lines += _options(commands["watch"], context, lambda option: option.name in shared)
    for name, command in commands.items():
        lines += _command(command, click.Context(command, info_name=name, parent=context), shared, 2)
    return "\n".join(lines)


def _command(command: click.Command, context: click.Context, shared: set[str], level: int) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"\n{'#' * level} {context.command_path}\n\n```\n{context.command_path} {usage}\n```\n"
    yield from _help(command)
    yield from _options(command, context, lambda option: option.name not in shared)
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from _command(below, click.Context(below, info_name=name, parent=context), shared, level + 1)


def _help(command: click.Command) -> Iterator[str]:
    """The paragraphs of a command's help; click's \\b marks preformatted paragraphs."""
    for paragraph in (command.help or "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield f"```\n{paragraph.removeprefix(chr(8) + chr(10))}\n```\n"
        else:
            yield _prose(paragraph.strip()) + "\n"


def _options(command: click.Command, context: click.Context, wanted: Any) -> list[str]:
    records = [
        record
        for option in command.params
        if isinstance(option, click.Option) and wanted(option) and (record := option.get_help_record(context))
    ]
    return (
        _table(
            ["option", "description"],
            [[f"`{names}`", _cell(text.replace('[default: ""]', ""))] for names, text in records],
        )
        if records
        else []
    )
