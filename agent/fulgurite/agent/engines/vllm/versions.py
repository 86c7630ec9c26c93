"""The versions of vLLM whose inside we know: a table that the documentation repeats and the tests run.

A version is known by its release series; what else has to be there is asked of the objects themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Support:
    """What is known of a release series.

    Attributes
    ----------
    series : ``major.minor``.
    runner : name of the class whose steps are observed; a subclass will do.
    tested : the release that the tests run.
    """

    series: str
    runner: str
    tested: str


SUPPORTED: tuple[Support, ...] = (Support("0.32", "GPUModelRunner", "0.32.0"),)


def support_of(version: str) -> Support | None:
    """What is known of `version`, None where nothing is.

    Examples
    --------
    >>> support_of("0.32.0+cpu").runner
    'GPUModelRunner'
    >>> support_of("0.99.0") is None
    True
    """
    match = re.match(r"v?(\d+)\.(\d+)", version)
    series = f"{match[1]}.{match[2]}" if match else ""
    return next((known for known in SUPPORTED if known.series == series), None)


def installed_version() -> str:
    """The version of the vLLM that runs."""
    import vllm

    return str(getattr(vllm, "__version__", ""))
