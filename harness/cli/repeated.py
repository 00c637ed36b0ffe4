"""An option that is given twice: what names several things accumulates, of all else one of the two would be dropped."""

from __future__ import annotations

from typing import Any

from harness.errors import UserError

# Names of the parameters that take several things, comma separated, in every command that has them.
LISTS = frozenset({"backbones", "bench", "category", "defense", "ids", "methods", "regen", "scorer", "seeds"})


def watch(command: Any) -> Any:
    """The command, and all commands within it, with every option given twice accumulated or refused.

    Args:
        command: a click command or group, as ``typer.main.get_command`` gives it.
    """
    make = command.make_parser

    def make_parser(context: Any) -> Any:
        valued = [p for p in command.get_params(context) if _takes_one_value(p)]
        for option in valued:
            option.multiple = True  # so that the parser keeps every value
        parser = make(context)
        for option in valued:
            option.multiple = False
        return _Parser(parser, valued)

    command.make_parser = make_parser
    for nested in getattr(command, "commands", {}).values():
        watch(nested)
    return command


class _Parser:
    """A command's parser of words; what it gives is as if every option had been given once."""

    def __init__(self, parser: Any, valued: list[Any]) -> None:
        """Args: valued: options of one value, of which ``parser`` gives all that were given."""
        self._parser, self._valued = parser, valued

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def parse_args(self, args: list[str]) -> tuple[dict[str, Any], list[str], list[Any]]:
        """Options, remaining words, and the order of what was given.

        Raises:
            UserError: an option that takes one value, or none, is given twice.
        """
        opts, rest, order = self._parser.parse_args(args=args)
        for option in (p for p in self._valued if p.name in opts):
            opts[option.name] = _one(option, opts[option.name])
        for option in dict.fromkeys(order):
            if _is_option(option) and option not in self._valued and not option.multiple and order.count(option) > 1:
                raise UserError(f"{'/'.join(_names(option))} is given {order.count(option)} times: give it once")
        return opts, rest, order


def _one(option: Any, values: list[Any]) -> Any:
    """The value of an option: of a list, all that was given."""
    if len(values) == 1:
        return values[0]
    if option.name in LISTS:
        return ",".join(values)
    said = ", ".join(map(str, values))
    raise UserError(f"{_names(option)[0]} is given {len(values)} times ({said}): it takes one value")


def _takes_one_value(parameter: Any) -> bool:
    return _is_option(parameter) and not (parameter.is_flag or parameter.count or parameter.multiple)


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _names(option: Any) -> list[str]:
    """Its long names; an option of two sides has both."""
    return [name for name in (*option.opts, *option.secondary_opts) if name.startswith("--")] or list(option.opts)
