#!/bin/sh
# Installs this project, from the folder it is run in, beside a PyTorch that must stay as it is:
# NVIDIA's own build, for which no wheel on a package index is a substitute.
#
# The image pins its packages in a constraint file, which is respected. If a dependency of the
# project needs a version that the image excludes, this fails and says which.
#
# EXTRAS: optional dependencies to install too, with commas between.
set -eu

torch_version() { python -c 'from importlib.metadata import version; print(version("torch"))'; }

# pip also reads the variable for the tools that it builds a package with.
image=${PIP_CONSTRAINT:-/etc/pip/constraint.txt}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_CONSTRAINT="$work/constraints.txt" PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1

before=$(torch_version)
if [ -f "$image" ]; then
    grep -viE '^torch[^a-z0-9_-]' "$image" > "$PIP_CONSTRAINT" || true
fi
echo "torch==$before" >> "$PIP_CONSTRAINT"

# The project's dependencies but PyTorch, whose pre-release in the image pip would want to replace.
python - > "$work/requirements.txt" << 'END'
import os
import re
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
optional = project["optional-dependencies"]
wanted = list(project["dependencies"])
for extra in filter(None, os.environ.get("EXTRAS", "").split(",")):
    if extra not in optional:
        sys.exit(f"EXTRAS: there is no '{extra}'; there are {', '.join(optional)}")
    wanted += optional[extra]
for requirement in wanted:
    if re.match(r"[\w.-]+", requirement)[0] != "torch":
        print(requirement)
END
python -m pip install --requirement "$work/requirements.txt"
python -m pip install --no-deps .

after=$(torch_version)
if [ "$after" != "$before" ]; then
    echo "PyTorch $before was replaced by $after" >&2
    exit 1
fi
llm-pretrain --version
