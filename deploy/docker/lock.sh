#!/usr/bin/env bash
# Writes requirements/*.txt, every package with its hashes, for Python 3.11 on Linux x86-64. Not part of `make verify`: it
# asks PyPI. Needs uv (`pip install uv`).
#
# torch has two builds of one version. PyPI's brings CUDA and is for worker-cuda. The one for CPUs alone, 2.13.0+cpu, is on
# https://download.pytorch.org/whl/cpu: give that, or a folder that has its wheel, as TORCH_CPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
torch_cpu=${TORCH_CPU:-https://download.pytorch.org/whl/cpu}
here=deploy/docker
lock() {
  local target=$1
  shift
  uv pip compile pyproject.toml --quiet --generate-hashes --no-annotate --no-header --only-binary :all: \
    --python-version 3.11 --python-platform x86_64-manylinux_2_36 --constraint "$constraints" \
    --output-file "$here/requirements/$target.txt" "$@"
}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
constraints=$scratch/constraints.txt
grep -v '^triton==' deploy/constraints.txt > "$constraints" # a torch with CUDA wants the triton it was built for
lock gateway --extra gateway --extra kubernetes
lock worker-cuda --extra worker --extra gpu
echo 'torch==2.13.0+cpu' > "$scratch/override.txt"
lock worker-cpu --extra worker --override "$scratch/override.txt" --find-links "$torch_cpu"
# hatchling makes our own wheel, in a stage that no image keeps.
echo 'hatchling==1.33.0' > "$scratch/build.in"
uv pip compile "$scratch/build.in" --quiet --generate-hashes --no-annotate --no-header --only-binary :all: \
  --python-version 3.11 --constraint deploy/constraints.txt --output-file "$here/requirements/build.txt"
