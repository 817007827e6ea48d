#!/bin/sh
# Installs probe into a virtual environment of its own, /opt/probe, on a Python that this image has already.
# Run by the Dockerfile beside it, in a stage of which only /opt/probe and /etc/probe are kept: nothing else that is
# done here reaches the image.
set -eu
umask 022

say() { echo "install.sh: $*" >&2; }

fits() { "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python \
        /opt/conda/bin/python /usr/local/bin/python3 /usr/bin/python3}; do
        if fits "$python"; then
            command -v "$python"
            return
        fi
    done
    say "no Python >= 3.11 with the module venv${PYTHON:+ at $PYTHON}."
    say "Add one to the base image (Ubuntu 22.04: apt-get install python3.11 python3.11-venv), or name it: --build-arg PYTHON=/path"
    return 1
}

# A pip for this one time; what is installed holds none.
find_pip() {
    if "$1" -m venv /tmp/pip >/dev/null 2>&1; then
        echo /tmp/pip/bin/python
    elif "$1" -m pip --version >/dev/null 2>&1; then
        echo "$1"
    else
        say "$1 has neither ensurepip nor pip. Debian and Ubuntu: add python3-venv or python3-pip to the base image."
        return 1
    fi
}

python=$(find_python)
pip=$(find_pip "$python")
"$python" -m venv --without-pip /opt/probe
"$pip" -m pip --python /opt/probe/bin/python install --no-cache-dir "${PROBE:-/build}"
/opt/probe/bin/probe --version

# By mode and owner, not as it lies in the checkout: as root, probe refuses a file that others can write.
mkdir -p /etc/probe
install -m 0644 -o 0 -g 0 /build/docker/config.toml /etc/probe/config.toml
/opt/probe/bin/probe config --check /etc/probe/config.toml
