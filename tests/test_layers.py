"""Layers import downwards only, and from the file that defines the name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import celrec

PACKAGE = Path(celrec.__file__).parent

# Each layer may import what stands below it here, and itself. Layers in one line are strangers.
LAYERS: list[set[str]] = [
    {"errors"},
    {"core", "losses"},
    {"data", "models", "baselines", "metrics"},
    {"checkpoint", "history"},
    {"training"},
    {"serving", "report"},
    {"experiments"},
    {"cli", "__main__"},
]
STRANGERS_OF_CORE = {"models", "data", "losses", "metrics"}
CORE_MAY_IMPORT = {"torch", "numpy"} | set(sys.stdlib_module_names)


def layer_of(module: str) -> str:
    """The layer of 'celrec.core.split' is 'core'."""
    return module.split(".")[1]


def imports() -> list[tuple[str, str, str]]:
    """(file, its module, imported module or name) of every import in the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        module = ".".join(["celrec", *relative.with_suffix("").parts])
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(str(relative), module, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{relative}: relative import"
                found.append((str(relative), module, node.module or ""))
    return found


def rank_of(layer: str) -> int:
    for rank, names in enumerate(LAYERS):
        if layer in names:
            return rank
    raise AssertionError(f"layer {layer!r} stands nowhere in LAYERS: give it its place")


@pytest.mark.parametrize(
    ("file", "module", "imported"),
    [i for i in imports() if i[2].split(".")[0] == "celrec" and i[1] != "celrec.__init__"],
)
def test_imports_point_downwards(file: str, module: str, imported: str) -> None:
    assert imported != "celrec", f"{file} imports from the front door"
    target = PACKAGE.joinpath(*imported.split(".")[1:])
    assert target.with_suffix(".py").is_file(), f"{file}: {imported} is no file that defines names"
    own, other = layer_of(module), layer_of(imported)
    assert own == other or rank_of(other) < rank_of(own), f"{file}: {own} imports {other}"
    assert not (other == "core" and own in STRANGERS_OF_CORE), f"{file}: {own} knows the core"


def test_the_core_names_no_other_library() -> None:
    names = {
        imported.split(".")[0] for file, _, imported in imports() if Path(file).parts[0] == "core"
    }
    assert names - {"celrec"} <= CORE_MAY_IMPORT


def test_the_front_door_is_the_core_alone() -> None:
    layers = {
        layer_of(imported)
        for _, module, imported in imports()
        if module == "celrec.__init__" and imported.startswith("celrec.")
    }
    assert layers <= {"core", "errors"}


# As if only torch and numpy were installed: celrec is refused every other distribution.
ONLY_TORCH_AND_NUMPY = """
import importlib.metadata as metadata
import sys

def needs(name, found):
    name = name.lower().replace("_", "-")
    if name in found:
        return
    found.add(name)
    try:
        required = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    for line in required:
        if "extra ==" not in line:
            bare = line.split(";")[0]
            for sign in "<>=!~[ (":
                bare = bare.split(sign)[0]
            needs(bare, found)

allowed = set()
for name in ("torch", "numpy"):
    needs(name, allowed)
of_module = metadata.packages_distributions()
hidden = {
    module
    for module, owners in of_module.items()
    if not {owner.lower().replace("_", "-") for owner in owners} & (allowed | {"celrec"})
}
assert {"polars", "sklearn", "safetensors"} <= hidden, sorted(hidden)

import builtins
import_anything = builtins.__import__

def import_or_refuse(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    if importer.split(".")[0] == "celrec" and name.split(".")[0] in hidden:
        raise ModuleNotFoundError(f"{importer} imports {name}")
    return import_anything(name, globals, locals, fromlist, level)

builtins.__import__ = import_or_refuse
import torch
import celrec
import celrec.core.cluster_optimizer
table = celrec.ClusteredEmbedding(10, 4, max_clusters=2)
optimizer = torch.optim.Adam(table.parameters())
rounds = celrec.ClusterOptimizer(table, optimizer, lambda ids: table(ids).square().sum(1))
rounds.round([torch.arange(10)])
print(celrec.memory_report(table).total_bytes)
"""


def test_the_core_runs_where_only_torch_and_numpy_are() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONLY_TORCH_AND_NUMPY], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 4 * 4 + 10
