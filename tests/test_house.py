"""The shape of the package: no import circles, functions one can read, imports inside functions only with a reason."""

import ast
import graphlib
from pathlib import Path

import grimp
import pytest

PACKAGE = Path(__file__).parents[1] / "unihetero_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
#: Lines of a function; a kernel or a whole compiled program may have more.
LONGEST, LONGEST_KERNEL = 60, 100
KERNELS = ("model/attention/", "parallel/", "train/step")


def _functions(file: Path):
    tree = ast.parse(file.read_text("utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def test_no_file_is_imported_by_what_it_imports():
    graph = grimp.build_graph("unihetero_jax", exclude_type_checking_imports=True, cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) - {name} for name in graph.modules}
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail("import circle: " + " -> ".join(reversed(error.args[1])))


def test_few_files_at_the_root():
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_functions_and_files_are_short():
    too_long = []
    for file in FILES:
        name = file.relative_to(PACKAGE).as_posix()
        limit = LONGEST_KERNEL if name.startswith(KERNELS) else LONGEST
        for function in _functions(file):
            if (lines := function.end_lineno - function.lineno + 1) > limit:
                too_long.append(f"{name}: {function.name} has {lines} lines")
        if (lines := len(file.read_text("utf-8").splitlines())) > 500:
            too_long.append(f"{name} has {lines} lines")
    assert not too_long


def test_constructors_take_few_parameters():
    wide = []
    for file in FILES:
        for function in _functions(file):
            arguments = function.args
            if function.name == "__init__" and len(arguments.args) + len(arguments.kwonlyargs) - 1 > 8:
                wide.append(f"{file.relative_to(PACKAGE)}:{function.lineno}")
    assert not wide
