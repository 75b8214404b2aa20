"""Under which licence a model may be published, by those of the weights that it began with.

Not legal advice: a list of licences that oblige to nothing but naming, and the rule that any other passes on unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

from visionzoo.runs.lineage import UNKNOWN, Ancestor, normalized

#: What is made of weights under these may be published under another licence, with credit.
PERMISSIVE = frozenset(
    {
        "apache-2.0",
        "mit",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc0-1.0",
        "cc-by-4.0",
        "cc-by-3.0",
        "unlicense",
        "isc",
    }
)
DEFAULT = "apache-2.0"


def published_licence(wish: str | None, lineage: Sequence[Ancestor] | None, run: str) -> str:
    """The licence to publish under.

    Args:
        wish: what the user said; None for nothing.
        lineage: the ancestors of the model; None where nothing says what it began with.
        run: its name, for messages.

    Raises:
        ValueError: where an ancestor's licence does not allow it, naming the ancestor; or where nothing says what the
            licence is and the user did not either.
    """
    licence = None if wish is None else normalized(wish)
    if lineage is None and licence is None:
        raise ValueError(f"{run} has no record of what it began with; say what it may be published under by --licence")
    known = [a for a in lineage or () if a.licence != UNKNOWN]
    for ancestor in known:
        if "-nd" in ancestor.licence:
            raise ValueError(
                f"{run} was made of {ancestor.name}, whose licence {ancestor.licence} forbids publishing what is made "
                "of it"
            )
    obliging = [a for a in known if a.licence not in PERMISSIVE]
    for ancestor in obliging:
        if ancestor.licence != (licence or obliging[0].licence):
            other = licence if licence is not None else f"{obliging[0].licence} of {obliging[0].name}"
            way = f"give --licence {ancestor.licence}" if licence is not None else "the two exclude each other"
            raise ValueError(
                f"{run} was made of {ancestor.name}, whose licence {ancestor.licence} does not allow publishing under "
                f"{other}; {way}"
            )
    if licence is not None:
        return licence
    if unsaid := [a.name for a in lineage or () if a.licence == UNKNOWN]:
        raise ValueError(
            f"{run} was made of {unsaid[0]}, and nothing says under which licence; look it up, and say what may be "
            "published under it by --licence"
        )
    return obliging[0].licence if obliging else DEFAULT
