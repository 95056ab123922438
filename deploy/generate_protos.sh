#!/usr/bin/env bash
# Regenerates services/gemline/{v1,internal/v1}/*_pb2* from protos/. Called by `make verify`; the output is committed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
PATH="$(dirname "$(command -v "$python")"):$PATH"
find services/gemline/v1 services/gemline/internal -name '*_pb2*' -delete 2>/dev/null || true
mapfile -t protos < <(cd protos && find gemline -name '*.proto' | LC_ALL=C sort)
"$python" -m grpc_tools.protoc -I protos \
  --python_out=services --mypy_out=quiet:services \
  --grpc_python_out=services --mypy_grpc_out=quiet:services \
  "${protos[@]}"
for package in services/gemline/v1 services/gemline/internal services/gemline/internal/v1; do
  touch "$package/__init__.py"
done
# A file without a service needs no stub.
for proto in "${protos[@]}"; do
  grep -q '^service ' "protos/$proto" || rm -f services/"${proto%.proto}"_pb2_grpc.py services/"${proto%.proto}"_pb2_grpc.pyi
done
