"""Docstrings and the examples of the 1.x documentation run, and print what is written there."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import textwrap
from typing import Any

import pytest

import ubatch
from ubatch.testing import VirtualRuntime

MODULES = [
    module.name for module in pkgutil.walk_packages(ubatch.__path__, "ubatch.") if "integrations" not in module.name
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def run_example_of_1x(source: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run an example as it stands, but in virtual time: ten threads that start late on a busy machine are one batch
    more than the documentation shows. It is changed in nothing but the option that says so.
    """
    runtime = VirtualRuntime("threading")
    source = textwrap.dedent(source).replace("timeout=0.01)", "timeout=0.01, runtime=runtime)")
    exec(compile(source, "<1.x>", "exec"), {"runtime": runtime})
    return capsys.readouterr().out


def test_the_first_example_of_1x_prints_the_same_batches(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_example_of_1x(
        """
        import threading

        from typing import List
        from ubatch import ubatch_decorator


        @ubatch_decorator(max_size=5, timeout=0.01)
        def squared(a: List[int]) -> List[int]:
            print(a)
            return [x ** 2 for x in a]


        inputs = list(range(10))

        # Run squared as usual
        _ = squared(inputs)


        def thread_function(number: int) -> None:
            _ = squared.ubatch(number)

        # Multiple threads squared individual inputs
        threads = []
        for i in inputs:
            t = threading.Thread(target=thread_function, args=(i,))
            threads.append(t)
            t.start()

        for t in threads:
            t.join()
        """,
        capsys,
    )
    assert printed == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n[0, 1, 2, 3, 4]\n[5, 6, 7, 8, 9]\n"


SQUARED_CUBE = """
    inputs = list(range(10))
    modes = ['square' if i % 2 == 0 else 'cube' for i in inputs]

    _ = {direct}(inputs, modes)


    def thread_function(number: int, mode: str) -> None:
        _ = {batched}.ubatch(number, mode)

    threads = []
    for i, j in zip(inputs, modes):
        t = threading.Thread(target=thread_function, args=(i, j))
        threads.append(t)
        t.start()

    for t in threads:
        t.join()
"""
TEN_MODES = str(["square", "cube"] * 5)
PRINTED = (
    f"[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n{TEN_MODES}\n"
    "[0, 1, 2, 3, 4]\n['square', 'cube', 'square', 'cube', 'square']\n"
    "[5, 6, 7, 8, 9]\n['cube', 'square', 'cube', 'square', 'cube']\n"
)


def test_the_second_example_of_1x_with_two_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    source = """
    import threading

    from typing import List
    from ubatch import ubatch_decorator


    @ubatch_decorator(max_size=5, timeout=0.01)
    def squared_cube(a: List[int], mode: List[str]) -> List[int]:
        print(a)
        print(mode)
        return [x ** 2 if y == 'square' else x ** 3 for x, y in zip(a, mode)]

    """ + SQUARED_CUBE.format(direct="squared_cube", batched="squared_cube")
    assert run_example_of_1x(source, capsys) == PRINTED


def test_the_third_example_of_1x_with_a_partial(capsys: pytest.CaptureFixture[str]) -> None:
    source = """
    import threading

    from functools import partial
    from typing import List, Any
    from ubatch import ubatch_decorator


    def squared_cube(model: Any, a: List[int], mode: List[str]) -> List[int]:
        print(a)
        print(mode)
        return [x ** 2 if y == 'square' else x ** 3 for x, y in zip(a, mode)]

    squared_cube = partial(squared_cube, 'This is a model')
    squared_cube = ubatch_decorator(max_size=5, timeout=0.01)(squared_cube)
    """ + SQUARED_CUBE.format(direct="squared_cube", batched="squared_cube")
    assert run_example_of_1x(source, capsys) == PRINTED


def test_the_names_of_1x_are_there() -> None:
    names: dict[str, Any] = vars(ubatch)
    for name in ("UBatch", "ubatch_decorator", "HandlerNotSet", "HandlerAlreadySet", "BadBatchOutputSize"):
        assert name in names
