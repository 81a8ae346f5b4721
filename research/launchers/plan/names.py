"""The keys that vary between the jobs of a sweep, and directory names that show them."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

MAX_BYTES = 150
DROPPED = str.maketrans("", "", "'\"`$\\()[]{}<>")


def varying(jobs: Sequence[Mapping[str, str]], declared: Iterable[str]) -> list[str]:
    """The keys that are declared as swept or differ between jobs, in their order, seed last."""
    declared = set(declared)
    keys = [
        key
        for key in dict.fromkeys(key for job in jobs for key in job)
        if key in declared or len({job.get(key) for job in jobs}) > 1
    ]
    return sorted(keys, key=lambda key: key == "seed")


def labels(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, ``lr`` of ``alg.optim.lr``; the whole key where two share it."""
    last = {key: re.split(r"[./]", key)[-1] for key in keys}
    shared = Counter(last.values())
    return {key: part if part and shared[part] == 1 else key for key, part in last.items()}


def folder_names(
    jobs: Sequence[Mapping[str, str]], keys: Sequence[str], taken: Iterable[str]
) -> list[str]:
    """A directory name for each job, ``env=cheetah,lr=0.001,seed=0``.

    Names differ from each other and from ``taken``, by more than upper and lower case. They have
    at most 150 characters of ``A-Z a-z 0-9 . _ + - = ,`` and do not depend on later jobs. A job
    with none of ``keys`` is named by its index in the list.
    """
    short, names = labels(keys), []
    used, tries = {name.casefold() for name in taken}, Counter[str]()
    for place, job in enumerate(jobs):
        parts = [f"{safe(short[key])}={safe(job[key])}" for key in keys if key in job]
        whole = ",".join(parts) or str(place)
        name = fitting(whole)
        while name.casefold() in used:
            tries[whole] += 1
            name = fitting(whole, f"-{tries[whole] + 1}")
        used.add(name.casefold())
        names.append(name)
    return names


def safe(text: str) -> str:
    """``text`` without the characters that a file system, a shell or Hydra could misread."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return "-".join(re.findall(r"[\w.+-]+", plain.translate(DROPPED)))


def fitting(name: str, ending: str = "") -> str:
    """``name + ending``; if it is too long, a hash replaces the characters before its seed."""
    room = MAX_BYTES - len(ending)
    if len(name) > room:
        rest, comma, seed = name.rpartition(",seed=")
        if not comma or len(seed) > 20:
            rest, comma, seed = name, "", ""
        mark = "-" + hashlib.sha256(rest.encode()).hexdigest()[:8]
        name = rest[: room - len(mark + comma + seed)] + mark + comma + seed
    # Some file systems drop dots at the end.
    return name.rstrip(".") + ending
