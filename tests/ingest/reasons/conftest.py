"""Loads the tables of damaged files: with importlib mode, tests do not import one another's modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

PACKAGE: Final = "fovea_reason_cases"


def load_cases() -> ModuleType:
    """The package `cases` beside this file, under a name of its own."""
    folder = Path(__file__).with_name("cases")
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)
    return module


cases = load_cases()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each damaged file, and for each pair of faults."""
    for name, table in (("case", cases.CASES), ("pair", cases.PAIRS)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, table, ids=lambda one: one.label)
    if "seed" in metafunc.fixturenames:
        used = {case.seed for case in (*cases.CASES, *cases.PAIRS) if case.seed.is_good}
        metafunc.parametrize("seed", sorted(used, key=lambda one: (one.label, one.name)), ids=lambda one: one.label)


@pytest.fixture(scope="session")
def damaged() -> ModuleType:
    """The tables: `CASES`, `PAIRS`."""
    return cases
