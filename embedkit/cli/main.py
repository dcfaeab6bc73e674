"""Where the command line begins, and where every error becomes one sentence and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import IO, Any, NoReturn, cast

import click

from embedkit.cli.compare import compare_command
from embedkit.cli.data import data_group
from embedkit.cli.demo import demo_command
from embedkit.cli.doctor import doctor_command
from embedkit.cli.embed import embed_command
from embedkit.cli.evaluate import eval_command
from embedkit.cli.index import index_group
from embedkit.cli.search import search_command
from embedkit.cli.train import train_command
from embedkit.errors import EmbedkitError, Stopped, is_full_disk, is_out_of_descriptors, is_out_of_memory
from embedkit.escapes import EscapedStream
from embedkit.version import __version__

OK, DEFECT, WRONG_USE = 0, 1, 2


# color: click leaves escape sequences in a pipe alone, which EscapedStream shows; nothing here is coloured
@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120, "color": True})
@click.version_option(__version__, prog_name="embedkit")
def cli() -> None:
    """From raw documents to retrieval whose quality is proven.

    \b
    embedkit index build corpus.jsonl -o my.index     build an index from documents
    embedkit search my.index "a question"             search it
    embedkit eval --data BEIR-FOLDER                  measure a model on judged queries

    Exit codes: 0 done, 1 a defect of embedkit, 2 wrong use, 3 bad data, 4 bad model, 5 damaged or mismatched artefact,
    6 a goal that cannot be met, 75 stopped (run it again).
    """


COMMANDS = (
    embed_command,
    index_group,
    search_command,
    eval_command,
    compare_command,
    data_group,
    doctor_command,
    train_command,
    demo_command,
)
for command in COMMANDS:
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    _open_closed_streams()
    with redirect_stdout(EscapedStream(sys.stdout)), redirect_stderr(EscapedStream(sys.stderr, keep="\r")):
        code = _run(arguments)
    sys.exit(code)


def _open_closed_streams() -> None:
    """Under `2>&-`, and in many a daemon, the first file that is opened would become the standard error of all libraries.
    Standard input stays None, so that whoever asks for it is told that there is none."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _terminate(*_: Any) -> None:
    raise KeyboardInterrupt  # so that half-written files are cleared away as after Ctrl-C


def _run(arguments: Sequence[str] | None) -> int:
    try:
        with cli.make_context("embedkit", list(sys.argv[1:] if arguments is None else arguments)) as context:
            cli.invoke(context)  # not cli.main, which answers a closed pipe and an EOFError in its own way
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show(
            file=cast(IO[str], EscapedStream(sys.stderr))
        )  # names that came as arguments, carriage returns with them
        return error.exit_code
    except EmbedkitError as error:
        return _say(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _say("Stopped; nothing half-written is left. Run it again to start over.", Stopped.exit_code)
    except BrokenPipeError:  # the reader of a pipe went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        if is_full_disk(error):
            return _say(
                f"The disk is full ({error.filename or error.strerror}); free some space, then run it again.",
                Stopped.exit_code,
            )
        if error.filename is None or is_out_of_descriptors(error):
            return _lacking(error)
        return _say(f"{error.filename}: {error.strerror}; check the path and its permissions.", WRONG_USE)
    except Exception as error:
        return _lacking(error)
    return OK


def _lacking(error: Exception) -> int:
    """What the system has no more of, or a defect."""
    if is_out_of_descriptors(error):
        return _say(
            "This process may open no more files; allow more with: ulimit -n 1024. Then run it again.",
            Stopped.exit_code,
        )
    if is_out_of_memory(error):
        return _say(
            "This machine is out of memory; run it again with fewer --batch-tokens, or --limit.", Stopped.exit_code
        )
    return _defect()


def _say(sentence: str, code: int) -> int:
    click.echo(f"Error: {sentence}", err=True)
    return code


def _defect() -> int:
    traceback.print_exc()
    return _say("This is a defect of embedkit; please report it with the lines above.", DEFECT)
