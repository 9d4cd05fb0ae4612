"""The group of commands, and what their errors become."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from omniq.cli.failure import FAILED, UNREACHABLE, USAGE, Failed
from omniq_core import BackendError, ErrorCode, OmniQError, OptionError, PluginError, Unreachable

__all__ = ["run"]

_COMMANDS = {
    "worker": "omniq.cli.worker:worker",
    "enqueue": "omniq.cli.enqueue:enqueue",
    "inspect": "omniq.cli.inspect:inspect",
    "check": "omniq.cli.check:check",
    "plugins": "omniq.cli.check:plugins",
    "version": "omniq.cli.check:version",
}


class _Commands(click.Group):
    """Our commands, loaded one by one when they are called, and those of plugins."""

    _has_plugins = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._add_plugins()
        return sorted({*_COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            module, _, attribute = _COMMANDS[cmd_name].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        self._add_plugins()
        return super().get_command(ctx, cmd_name)

    def _add_plugins(self) -> None:
        if not self._has_plugins:
            from omniq.plugins import hooks

            self._has_plugins = True
            hooks().call("omniq_register_commands", cli=self)


@click.group(
    cls=_Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "OMNIQ",
        "max_content_width": 100,
    },
    epilog=(
        "Exit codes: 0 done, or stopped cleanly; 1 it failed, or the awaited task did; 2 wrong usage, configuration or "
        "import; 3 a backend cannot be reached; 128 + N forced to end by signal N."
    ),
)
def cli() -> None:
    """OmniQ: a task queue whose storage is a plugin.

    An APP is MODULE:ATTRIBUTE, such as shop.tasks:oq; MODULE alone will do if it holds one OmniQ. The current directory is
    on the import path. OMNIQ_APP stands in for it.
    """


def run(
    arguments: Sequence[str],
    *,
    name: str = "omniq",
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> int:
    """Runs one command; the exit code. See :func:`omniq.cli.main`."""
    try:
        done = cli.main(list(arguments), prog_name=name, standalone_mode=False, default_map=defaults)
        return done if isinstance(done, int) else 0
    except click.exceptions.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Failed as error:
        _say(str(error))
        return error.exit_code
    except (OptionError, PluginError) as error:
        _say(str(error))
        return USAGE
    except BackendError as error:
        _say(str(error))
        away = isinstance(error, Unreachable) or error.error_code in (
            ErrorCode.UNAVAILABLE,
            ErrorCode.TIMEOUT,
        )
        return UNREACHABLE if away else FAILED
    except OmniQError as error:
        _say(str(error))
        return FAILED
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stderr.close()
        return FAILED


def _say(message: str) -> None:
    click.echo(f"omniq: {' '.join(message.split())}", err=True)
