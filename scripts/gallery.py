"""Makes the pictures of `docs/gallery`: ``python -m scripts.gallery``.

Every picture is drawn from what an agent measured in this process: of the bundled model telling stories, and
of two models with random weights that really ran (labelled so), which show how larger shapes are drawn. No
value is made up.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fulgurite.agent import InMemoryExporter, instrument
from fulgurite.cli.demo.model.loading import load
from fulgurite.cli.demo.model.prompts import prompts
from fulgurite.viewer.camera import Pick
from fulgurite.viewer.hud import Hud
from fulgurite.viewer.palettes import palettes
from fulgurite.viewer.scene import ReplicaScene, Storm
from fulgurite.viewer.vtk.renderer import Renderer
from fulgurite.wire.frame import FrameBlock, Scale

FOLDER = Path(__file__).parents[1] / "docs" / "gallery"
STEP_S = 0.06  # of the display: an even pace, so that a picture shows the same wherever it is made
RANDOM = "Random weights: its lights mean nothing; this shows how such a shape is drawn."


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured of one model."""

    title: str
    topology: Any
    scale: Scale
    blocks: tuple[FrameBlock, ...]


@dataclass(frozen=True, slots=True)
class Plate:
    """One picture of the gallery."""

    name: str
    words: str
    run: str
    size: tuple[int, int] = (1280, 720)
    camera: int = 0
    change: Callable[[Storm], None] = field(default=lambda _storm: None)
    replicas: int = 1


def _measured(model: Any, tokenizer: Any, title: str, *, tokens: int, requests: list[Any]) -> Run:
    """One call of `generate` per request; their steps are shown in turn, as a server has them."""
    exporter, per_request = InMemoryExporter(), []
    with instrument(
        model, tokenizer=tokenizer, level="deep", exporter=exporter, tokens="text" if tokenizer else "ids"
    ) as agent:
        for inputs in requests:
            known = len(exporter.blocks)
            model.generate(
                **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
            )
            agent.flush(60.0)
            per_request.append(exporter.blocks[known:])
    blocks = tuple(
        block for step in itertools.zip_longest(*per_request) for block in step if block is not None
    )
    print(f"{title}: {len(exporter.frames)} tokens of {len(requests)} requests", flush=True)
    return Run(title, exporter.topology, exporter.scale, blocks)


def _bundled() -> Run:
    model, tokenizer = load()
    wanted = prompts(7)
    requests = [tokenizer(next(wanted), return_tensors="pt") for _ in range(3)]
    for inputs in requests:
        inputs.pop("token_type_ids", None)
    return _measured(model, tokenizer, "stories-3m", tokens=24, requests=requests)


def _random(kind: str) -> Run:
    import torch

    transformers: Any = importlib.import_module("transformers")
    torch.manual_seed(3)
    shape: dict[str, Any] = {
        "vocab_size": 512, "max_position_embeddings": 128, "num_key_value_heads": 4, "bos_token_id": 1,
        "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "experts":
        config = transformers.MixtralConfig(
            hidden_size=128, intermediate_size=64, num_hidden_layers=24, num_attention_heads=16,
            num_local_experts=8, num_experts_per_tok=2, **shape,
        )  # fmt: skip
        model, title = transformers.MixtralForCausalLM(config), "random MoE"
    else:
        config = transformers.LlamaConfig(
            hidden_size=256, intermediate_size=256, num_hidden_layers=64, num_attention_heads=64, **shape
        )
        model, title = transformers.LlamaForCausalLM(config), "random Llama"
    requests = [
        {"input_ids": torch.randint(3, 512, (1, 24)), "attention_mask": torch.ones(1, 24, dtype=torch.long)}
        for _ in range(3)
    ]
    return _measured(model.eval(), None, title, tokens=10, requests=requests)


def _plates() -> tuple[Plate, ...]:
    def contribution(storm: Storm) -> None:
        storm.shows_contribution = True

    def light(storm: Storm) -> None:
        storm.is_light = True

    def frost(storm: Storm) -> None:
        storm.palette = palettes()[1]

    def panels(storm: Storm) -> None:
        storm.panels_visible = True
        scene = storm.scenes[0]
        layer, head = np.unravel_index(int(np.nanargmax(scene.head_values)), scene.head_values.shape)
        storm.chosen = {scene.key: Pick("head", int(layer), int(head))}

    return (
        Plate("storm", "Three requests at once: nodes by what they wrote, bolts by request.", "bundled"),
        Plate("contribution", "The push of every node on the emitted token, and how its logit is made up.",
              "bundled", change=contribution),
        Plate("panels", "Numbers beside the picture; the ringed cell is the most active head.", "bundled",
              change=panels),
        Plate("cache", "From above: the cache, and which cells the drawn heads looked at.", "bundled",
              camera=3),
        Plate("light", "For print: light becomes ink.", "bundled", change=light),
        Plate("frost", "A palette for colour-blind eyes.", "bundled", change=frost),
        Plate("four", "One stream four times, as four replicas lie side by side.", "bundled", replicas=4),
        Plate("experts", f"Experts: 24 layers × 16 heads, 8 experts each. {RANDOM}",
              "experts"),
        Plate("wall", f"4,096 heads, drawn as a wall. {RANDOM}", "wall"),
    )  # fmt: skip


def _draw(plate: Plate, run: Run) -> None:
    storm = Storm(
        [ReplicaScene(run.topology, key=f"{run.title} {i}", title=run.title, tokens_shown="text")
         for i in range(plate.replicas)], arcs=600,
    )  # fmt: skip
    at_s = 1000.0
    for scene in storm.scenes:
        scene.set_scale(run.scale)
        scene.set_hud(Hud(level="deep"))
        at_s = 1000.0
        for block in run.blocks:
            at_s += STEP_S
            scene.apply(block, at_s)
    storm.camera.show(plate.camera)
    now_s = at_s + 0.26
    storm.advance(now_s)
    plate.change(storm)
    renderer = Renderer(storm, width=plate.size[0], height=plate.size[1])
    picture = renderer.render(now_s, now_s)
    renderer.close()
    Image.fromarray(picture).save(FOLDER / f"{plate.name}.png", optimize=True)
    print(f"{plate.name}.png", flush=True)


def main() -> None:
    """Run the models, draw the pictures, write the page; names as arguments: only those."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    plates = _plates()
    chosen = [plate for plate in plates if not sys.argv[1:] or plate.name in sys.argv[1:]]
    runs: dict[str, Run] = {}
    for plate in chosen:
        if plate.run not in runs:
            runs[plate.run] = _bundled() if plate.run == "bundled" else _random(plate.run)
        _draw(plate, runs[plate.run])
    lines = [f"## {plate.name}\n\n{plate.words}\n\n![{plate.name}]({plate.name}.png)\n" for plate in plates]
    head = (
        "# Gallery\n\nMade by `python -m scripts.gallery`, from what was measured while the bundled model "
        "(or, where it says so, a model with random weights) generated these tokens. How to read them: "
        "[reading the storm](../reading-the-storm.md).\n"
    )
    (FOLDER / "README.md").write_text("\n".join([head, *lines]), encoding="utf-8")


if __name__ == "__main__":
    main()
