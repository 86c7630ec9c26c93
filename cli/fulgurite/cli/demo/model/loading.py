"""A model and its tokenizer, ready to generate: the bundled one, a local folder's, or one by its id.

torch and transformers are imported on the first call, not with this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MEND = "name a folder with config.json, weights and tokenizer, or the id of a causal language model"


class ModelUnavailable(RuntimeError):
    """A model could not be loaded; the message is one line and says what to do."""


def bundled_path() -> Path:
    """The folder of the bundled model's weights and tokenizer."""
    return Path(__file__).parent / "stories-3m"


def load(path_or_id: str | None = None) -> tuple[Any, Any]:
    """A model in float32 on the CPU, and its tokenizer, which pads on the left.

    Parameters
    ----------
    path_or_id : str, optional
        A local folder or an id of `transformers`; without it, the bundled model.

    Returns
    -------
    tuple of PreTrainedModel, PreTrainedTokenizer

    Raises
    ------
    ModelUnavailable
        torch or transformers is not installed, or there is no such model.
    """
    torch, transformers = _libraries()
    place = str(_bundled() if path_or_id is None else _local(path_or_id) or path_or_id)
    try:
        with _quiet(transformers.utils.logging):
            transformers.AutoConfig.from_pretrained(place)  # where there is nothing, this says it soonest
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, padding_side="left")
            model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelUnavailable(f"cannot load the model {place!r}: {_first_line(error)}; {MEND}") from error
    return model.eval(), tokenizer


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        missing = error.name or "transformers"
        raise ModelUnavailable(f"{missing} is not installed; run: pip install 'fulgurite[model]'") from error
    return torch, transformers


def _bundled() -> Path:
    if not list(bundled_path().glob("*.safetensors")):
        mend = "run: pip install --force-reinstall fulgurite, or name another model"
        raise ModelUnavailable(f"the bundled model's weights are not in {bundled_path()}; {mend}")
    return bundled_path()


def _local(path_or_id: str) -> Path | None:
    path = Path(path_or_id).expanduser()
    if not path.exists() and not _names_a_path(path_or_id):
        return None
    if not (path / "config.json").is_file():
        raise ModelUnavailable(f"cannot load the model {path_or_id!r}: there is no config.json; {MEND}")
    return path


def _names_a_path(text: str) -> bool:
    return text.startswith(("/", ".", "~")) or text.count("/") > 1


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
