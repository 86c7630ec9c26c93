"""One rank of a model that several processes share: `python -m tests.agent.split_model FOLDER`.

Started by `test_ranks.py`. Leaves what it captured in each case in ``FOLDER/rank<n>.pickle``.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.reference import gate

from fulgurite.agent import InMemoryExporter, instrument

# how the model is split, the level, and which ranks are observed
CASES = (
    ("auto", "heads", "all"),
    ("auto", "deep", "all"),
    ("whole ends", "deep", "all"),
    ("auto", "deep", "first"),
    ("sharded", "deep", "all"),
    ("auto", "heads", "joined"),
    ("whole ends", "deep", "joined"),
    ("auto", "deep", "joined"),
    ("routed", "deep", "joined"),
    ("hooked", "deep", "joined"),
    ("auto", "heads", "leaving"),
    ("auto", "deep", "leaving"),
    ("auto", "heads", "alone"),
)
Case = tuple[str, str, str]
WHOLE_ENDS = {"lm_head": "replicate", "model.embed_tokens": "replicate"}


def load(folder: Path, way: str) -> Any:
    """The saved model: split as its own plan says, with whole embeddings, or by torch's own hand. `routed` is
    the one of experts, split as its own plan says; `hooked` has a projection under a hook of accelerate."""
    import accelerate
    import transformers
    from transformers.distributed import DistributedConfig

    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    if way != "sharded":
        plan: Any = WHOLE_ENDS if way == "whole ends" else "auto"
        options["distributed_config"] = DistributedConfig(tp_size=dist.get_world_size(), tp_plan=plan)
    saved = folder / ("routed" if way == "routed" else "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(saved, **options).eval()
    if way == "sharded":
        _split_outputs(model)
    if way == "hooked":
        accelerate.hooks.add_hook_to_module(
            model.model.layers[1].self_attn.o_proj, accelerate.hooks.ModelHook()
        )
    return model


def _split_outputs(model: Any) -> None:
    """Output projections whose rows, not heads, are split: what a plan that nobody foresaw may do."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        style = ColwiseParallel(output_layouts=Replicate())
        parallelize_module(layer.self_attn, mesh, {"o_proj": style})


class Collected:
    """An exporter that is not in-process, as far as the agent can tell: ranks join in front of it."""

    def __init__(self) -> None:
        self.kept = InMemoryExporter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kept, name)


def joined(generate: Any, model: Any, level: str, observers: str) -> dict[str, Any]:
    """Generate twice, joined to the other rank; the second rank leaves in between, or never comes."""
    exporter: Any = Collected()
    if observers == "alone" and dist.get_rank():
        return {"observed": [generate(), generate()]}
    agent = instrument(model, level=level, exporter=exporter, deep_ratio=1.0)
    first = generate()
    found: dict[str, Any] = {"settled": agent.flush(60)}
    if observers == "leaving":
        if dist.get_rank():
            agent.close()
        dist.barrier()
    second = generate()
    found["settled"] &= agent.flush(60)
    found |= {"observed": [first, second], "stats": agent.stats()}
    if dist.get_rank() == 0:
        found |= {"topology": exporter.topology, "events": exporter.events}
    dist.barrier() if observers != "alone" else None
    agent.close()
    return found | {"blocks": list(exporter.blocks)}


def observed(folder: Path, case: Case) -> dict[str, Any]:
    """Generate without and with an agent."""
    way, level, observers = case
    model = load(folder, way)
    ids, mask = gate.prompts()

    def generate() -> Any:
        settings = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": gate.NEW_TOKENS}
        return model.generate(ids, attention_mask=mask, **settings).tolist()

    found: dict[str, Any] = {"alone": generate()}
    if observers in ("joined", "leaving", "alone"):
        return found | joined(generate, model, level, observers)
    if observers != "all" and dist.get_rank() != 0:
        return found | {"observed": generate()}
    exporter: Any = InMemoryExporter()
    with instrument(model, level=level, exporter=exporter) as agent:
        found["observed"] = generate()
        agent.flush()
        found["errors"] = dict(agent.stats().errors)
    return found | {"blocks": list(exporter.blocks), "topology": exporter.topology}


def main(folder: Path) -> None:
    """Take this rank through every case."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", timeout=timedelta(seconds=100))
    found = {case: observed(folder, case) for case in CASES}
    (folder / f"rank{dist.get_rank()}.pickle").write_bytes(pickle.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
