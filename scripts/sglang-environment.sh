#!/usr/bin/env bash
# Builds build/sglang, where SGLang runs on the CPU in the tests, on top of build/engines (scripts/engines-environment.sh):
# torch, transformers and most of what it needs are there already.
# Usage: sglang-environment.sh. Status 0: it is there. Status 3: it cannot be had here, for the reason that it says.
#
# What SGLang declares is for CUDA, so it is installed without its dependencies, and what serving text on a CPU needs
# of them one by one. It imports torchvision, whose wheels expect a torch with CUDA: the two operators that are
# missing without one are declared, and never called.
set -u
cd "$(dirname "$0")/.."

place=build/sglang
below=build/engines
sglang=0.5.23
stamp=$place/.built
wanted=$(cat "$0" "$below/.built" 2>/dev/null | sha256sum | cut -d' ' -f1)

if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

cannot() { echo "sglang: $1"; exit 3; }

[ -e "$below/.built" ] || cannot "$below is not there: make test-engines builds it"
[ "$(uname -m)" = x86_64 ] || cannot "its wheel was tried on x86_64 alone"
"$below/bin/python" -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" \
  || cannot "its wheel was tried with Python 3.11 alone"

echo "sglang: building $place (SGLang $sglang)"
log=$place.log
: >"$log"
"$below/bin/python" -m venv --clear --without-pip "$place" >>"$log" 2>&1 || cannot "no virtual environment: see $log"
site=$("$place/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
"$below/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))" >"$site/below.pth"
printf '%s\n' "$PWD/agent" "$PWD/proto" >>"$site/below.pth"
"$below/bin/python" -m pip --python "$place/bin/python" install --quiet --no-deps \
  "sglang==$sglang" "torchvision==0.28.0" orjson ipython traitlets gguf soundfile cffi pycparser >>"$log" 2>&1 \
  || cannot "SGLang $sglang could not be installed: see $log"

cat >"$site/_torchvision_without_cuda.py" <<'PYTHON'
import importlib.abc
import sys


class _Before(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.kept = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.kept.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.modules[__name__].kept = self
        return None


sys.meta_path.insert(0, _Before())
PYTHON
echo "import _torchvision_without_cuda" >"$site/torchvision_without_cuda.pth"

# The entry point by which SGLang finds us: that of the installed distribution, in this environment too.
entry="$site/fulgurite_here-0.dist-info"
mkdir -p "$entry"
printf 'Metadata-Version: 2.1\nName: fulgurite-here\nVersion: 0\n' >"$entry/METADATA"
"$below/bin/python" - >"$entry/entry_points.txt" <<'PYTHON'
import tomllib

group = "sglang.srt.plugins"
found = tomllib.load(open("pyproject.toml", "rb"))["project"]["entry-points"][group]
print(f"[{group}]", *(f"{name} = {value}" for name, value in found.items()), sep="\n")
PYTHON
"$place/bin/python" -c "import sglang.srt.managers.scheduler" >>"$log" 2>&1 || cannot "it does not start here: see $log"
echo "$wanted" >"$stamp"
