"""`python tools/bench/ray.py` is `python tools/bench/on_ray.py`; imported, it makes way for the package `ray`.

A script of this folder has the folder first on its path, and whatever imports Ray there would find this file.
"""

import importlib
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

if __name__ == "__main__":
    runpy.run_path(str(FOLDER / "on_ray.py"), run_name="__main__")
else:
    before = list(sys.path)
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != FOLDER]
    del sys.modules["ray"]
    try:
        sys.modules["ray"] = importlib.import_module("ray")
    finally:
        sys.path[:] = before
