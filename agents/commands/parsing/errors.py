"""Messages and exit codes for mistakes of users and refusals of the system."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from agents.config import TaskChoiceError
from envs import EnvironmentFailed
from lab.settings import ConfigError, Damaged

EXIT_USER_ERROR = 2


def flag(field: str) -> str:
    """The option of a field: ``total_steps`` is ``--total-steps``."""
    return "--" + field.replace("_", "-")


def plain_line(message: str) -> str:
    r"""A message as one line: what was typed may break lines or hold what terminals obey.

    >>> plain_line("no such option: --a\nb\x1b[31m")
    'no such option: --a b\\x1b[31m'
    """
    line = " ".join(part.strip() for part in message.splitlines()).strip()
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return "".join(escaped)


class UserError(click.ClickException):
    """A mistake in what was asked for: one line, exit code 2."""

    exit_code = EXIT_USER_ERROR


@contextmanager
def checking_input() -> Iterator[None]:
    """Turn a complaint about what the user gave into one line that names the option."""
    try:
        yield
    except Damaged as error:
        raise click.ClickException(str(error)) from None
    except TaskChoiceError:
        raise UserError(
            "give exactly one of --suite NAME and --env ID; 'rims suites' lists the suites."
        ) from None
    except ConfigError as error:
        raise UserError(f"{flag(error.field)} {error.rule}") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    except EnvironmentFailed as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:  # such as a name that is too long, or a folder of another user
        raise UserError(os_trouble(error)) from None


def say_notice(notice: str) -> None:
    """Say what the user should know of a run, beside the answer; nothing for an empty text."""
    if notice:
        click.echo(f"Notice: {notice}.", err=True)


#: Advice for each error of the operating system.
_CURES = {
    errno.ENOSPC: "make room, or give another place",
    errno.EDQUOT: "make room, or give another place",
    errno.EFBIG: "raise the limit on the size of files ('ulimit -f')",
    errno.EMFILE: "raise the limit on open files ('ulimit -n')",
    errno.ENFILE: "raise the system's limit on open files",
    errno.ENOMEM: "free some memory, or make the work smaller",
    errno.EAGAIN: "raise the limit on processes ('ulimit -u')",
    errno.EACCES: "change its permissions, or give another",
    errno.EPERM: "change its permissions, or give another",
}


#: Errors that only writing causes. The error holds the name of the written file.
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def os_trouble(error: OSError) -> str:
    """A message for an error of the operating system: the file, the reason, what to do."""
    where = error.filename
    if where is None and error.errno in _OF_WRITING:
        where = "standard output"
    name = f"{os.fsdecode(where)!r}: " if isinstance(where, str | bytes | os.PathLike) else ""
    what = f"{name}{error.strerror or error}".removesuffix(".")
    cure = _CURES.get(error.errno or 0, "give another" if error.filename is not None else "")
    return "; ".join(filter(None, (what, cure))) + "."


OUT_OF_MEMORY = (
    "the system gives no more memory or threads; free some, make the work smaller, or raise its "
    "limits ('ulimit -v', 'ulimit -u')."
)
