"""Compiles python/tidegate/protos/*.proto to typed modules beside them: `make` and the image's build call it.

They are made at build time and are in the wheel, but not in git: what is committed is what people read.
"""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent.parent / "python"


def main() -> int:
    sources = sorted(str(path) for path in (ROOT / "tidegate" / "protos").glob("*.proto"))
    well_known = str(files("grpc_tools") / "_proto")
    options = [f"-I{ROOT}", f"-I{well_known}", f"--python_out={ROOT}", f"--pyi_out={ROOT}"]
    return int(protoc.main(["protoc", *options, *sources]))


if __name__ == "__main__":
    sys.exit(main())
