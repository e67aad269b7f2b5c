#!/usr/bin/env bash
# The CUDA 13.0 compiler and libraries from PyPI, for a machine that has neither them nor a GPU: enough to build e2llm with
# --features cuda. Needs Python 3 with pip, unzip and a C compiler. Prints the variables that cargo needs.
#
#     vars=$(deploy/cuda/toolkit.sh target/cuda-toolkit) && eval "$vars"
#     cargo build --release --features cuda
set -euo pipefail
root=$(mkdir -p "${1:?give a directory for the toolkit}" && cd "$1" && pwd)
python=${PYTHON:-python3}

# One release, so that its code runs on drivers from 580 on.
wheels=(
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-nvrtc==13.0.88
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96 nvidia-curand==10.4.0.35 nvidia-cublas==13.0.2.14
)

unpack() {
    local download
    download=$(mktemp -d "$root/wheels.XXXX")
    "$python" -m pip download --quiet --no-deps --dest "$download" "${wheels[@]}" >&2
    for wheel in "$download"/*.whl; do
        unzip -q -o "$wheel" -d "$root"
    done
    rm -rf "$download"
}

# The driver comes with the GPU's machine; to link, functions of its names are enough.
stub_driver() {
    local sources names
    sources=$(cargo metadata --format-version 1 --features cuda --manifest-path "$(dirname "$0")/../../services/e2llm/Cargo.toml" |
        "$python" -c 'import json,os,sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "cudarc":
        print(os.path.dirname(package["manifest_path"]))
        break')
    names=$(grep -rhoE '\bcu[A-Z][A-Za-z0-9_]*' "$sources/src/driver/sys" | sort -u)
    mkdir -p "$cuda/lib/stubs"
    for name in $names; do echo "void $name(void) {}"; done |
        cc -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$cuda/lib/stubs/libcuda.so" -x c -
}

cuda=$root/nvidia/cu13
if [ ! -e "$root/complete" ]; then
    unpack
    chmod +x "$cuda"/bin/* "$cuda"/nvvm/bin/*
    ln -sfn lib "$cuda/lib64"
    for library in "$cuda"/lib/lib*.so.*; do
        ln -sf "$(basename "$library")" "${library%%.so.*}.so"
    done
    stub_driver
    touch "$root/complete"
fi
echo "export CUDA_HOME='$cuda' CUDA_PATH='$cuda' PATH='$cuda/bin':\"\$PATH\" CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-90}"
echo "export LIBRARY_PATH='$cuda/lib/stubs:$cuda/lib'\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
