"""Explains an error to the user in one line, with the nearest name."""

import errno
import logging
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.config import explain_move
from research.errors import (
    PREEMPTED,
    Preempted,
    UserError,
    did_you_mean,
    is_ours,
    iterate_causes,
    override,
)
from research.hydra_versions import VERSION_BASE

CANNOT_USE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EIO),
)
COULD_NOT = re.compile(r"Could not override '([^']+)'")
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
CONF = Path(__file__).parent.parent / "conf"

log = logging.getLogger(__name__)


def one_line(error: BaseException) -> str | None:
    """The line to show the user, or None if only a programmer can mend the error."""
    for cause in iterate_causes(error):
        if isinstance(cause, UserError):
            return " ".join(str(cause).split())
        if isinstance(cause, KeyboardInterrupt):
            return str(cause) or "interrupted"
        if isinstance(cause, MissingConfigException):
            return explain_choice(cause)
        if isinstance(cause, OSError) and (line := explain_file(cause)):
            return line
    if match := COULD_NOT.match(str(error)):
        return explain_move(match[1]) or explain_override(match[1])
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        cause = f": {str(error.__cause__).partition(chr(10))[0]}" if error.__cause__ else ""
        return " ".join(f"{error}{cause}".split())
    return None


def explain_file(error: OSError) -> str | None:
    """One line for a file that cannot be used; None for other errors, or in a user's own code."""
    if error.errno not in CANNOT_USE or error.filename is None or not is_ours(error):
        return None
    return f"{error.filename}: {error.strerror}"


def log_traceback(error: BaseException) -> None:
    """Write an error with its traceback to the log files, and to no terminal."""
    record = log.makeRecord(
        *(log.name, logging.ERROR, __file__, 0, "failed", ()),
        exc_info=(type(error), error, error.__traceback__),
    )
    for handler in logging.root.handlers:
        if isinstance(handler, logging.FileHandler) and handler.stream is not None:
            with suppress(OSError):  # the disk may be full
                handler.stream.write(f"{handler.format(record)}\n")
                handler.flush()


def explain_choice(error: MissingConfigException) -> str:
    """One line for ``env=chetah``."""
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    options = error.options or []
    if not options:
        return " ".join(str(error).split())
    guess = did_you_mean(choice, options)
    return f"{group}={choice} is not a choice; allowed: {', '.join(options)}{guess}"


def explain_no_choice(words: Sequence[str]) -> str | None:
    """One line for the first group that is left without the choice that it needs, if there is one.

    Hydra's own message would be about keys that are composed from the choices.
    """
    for word in words:
        group, _, choice = word.partition("=")
        if group in ("~alg", "~env"):
            return f"{word} leaves no {group[1:]}; choose another by {group[1:]}=..."
        if choice == "null" and group and (CONF / group).is_dir():
            return f"{word} is not a choice; '~{group}' takes none"
    return None


def explain_word(wrong: str, typed: Sequence[str]) -> str:
    """One line for a word that Hydra's parser rejects, with a form that it accepts.

    Args:
        wrong: the word.
        typed: all words of the command line.

    """
    for start, end in combinations(range(len(typed) + 1), 2):
        whole = re.sub(" *= *", "=", " ".join(typed[start:end]), count=1)
        is_split = wrong in typed[start:end] and end - start > 1 and not is_parsed(typed[start])
        if is_split and not whole.endswith("=") and is_parsed(whole):
            return f"{' '.join(typed[start:end])} is one override; write {shlex.quote(whole)}"
    key, equals, value = wrong.partition("=")
    if "[" in key:
        name = key.partition("[")[0]
        return f"{key} is no key; a list is given as a whole: '{name}=[...]'"
    quoted = override(key, value)
    if equals and value[:1] not in "[{" and is_parsed(quoted):
        return f"{wrong} needs quotes, for Hydra and for the shell: {shlex.quote(quoted)}"
    if equals:
        return f"{wrong} cannot be parsed; is a bracket or a quotation mark missing?"
    return f"'{wrong}' is no override, which is key=value; a value with blanks needs quotes"


def is_parsed(word: str) -> bool:
    """Whether Hydra parses this as an override of a key."""
    try:
        return bool(OverridesParser.create().parse_override(word).key_or_group)
    except HydraException:
        return False


def is_override(word: str) -> bool:
    """Whether a word of the command line is an override, not an option or its value."""
    return word.startswith("~") or ("=" in word and not word.startswith("-"))


def explain_override(key: str) -> str:
    """One line for an unknown key, with the keys of the config without that override."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import ConfigCompositionException

    GlobalHydra.instance().clear()
    given = OverridesParser.create().parse_overrides(list(filter(is_override, sys.argv[1:])))
    kept = {first_value(each): each.key_or_group for each in given if not each.is_add()}
    cfg, wrong = None, key
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        while cfg is None:
            kept = {line: name for line, name in kept.items() if name != wrong}
            try:
                cfg = compose("config", list(kept), return_hydra_config=True)
            except ConfigCompositionException as error:  # another one is wrong too
                match = COULD_NOT.match(str(error))
                wrong = match[1] if match else ""
                if not kept:
                    raise
                kept = kept if wrong in kept.values() else {}
    parent, _, name = key.replace("/", ".").rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    while parent and not OmegaConf.is_dict(node):
        parent, _, name = parent.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
    known = [str(choice) for choice in node if not str(choice).startswith("_")]
    place = f"{parent}: allowed are" if parent else "allowed are"
    deeper = list(keys_that_end(cfg, parent, key.rpartition(".")[2]))
    guess = f"; did you mean '{deeper[0]}'?" if len(deeper) == 1 else did_you_mean(name, known)
    return f"{key} is not a known key; {place} {', '.join(sorted(known))}{guess}"


def keys_that_end(cfg: DictConfig, parent: str, name: str) -> Iterator[str]:
    """The keys below ``parent`` whose last part is ``name``, but for Hydra's own."""

    def search(node: Any, path: str) -> Iterator[str]:
        for key, value in node.items() if isinstance(node, dict) else ():
            inner = f"{path}.{key}" if path else str(key)
            if key == name and f"{inner}.".startswith(f"{parent}." if parent else ""):
                yield inner
            yield from search(value, inner)

    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict), "the root is a dict"
    plain.pop("hydra", None)
    return search(plain, "")


def first_value(override: Override) -> str:
    """An override as the first job of a sweep gets it, or as a job of a search might."""
    if override.is_interval_sweep():
        return f"{override.get_key_element()}={getattr(override.value(), 'start', None)}"
    if not override.is_discrete_sweep():
        return str(override.input_line)
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


def exit_status(error: BaseException) -> int:
    """The program's exit status for an error; launchers read it, too."""
    if isinstance(error, Preempted):
        return PREEMPTED
    return 130 if isinstance(error, KeyboardInterrupt) else 1
