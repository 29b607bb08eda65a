"""What the build of a wheel does beyond collecting files: it compiles the gateway, where there is a compiler.

A wheel is the same without, only slower. MODELSUPD_COMPILE=0 asks for that; an editable installation is never compiled,
since what was compiled would go on running when the file that it was made of is changed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent))

import compile_gateway


class CompileHook(BuildHookInterface[Any]):  # type: ignore[misc] # hatchling is not there when types are checked
    """Adds compiled modules to a wheel."""

    PLUGIN_NAME = "custom"
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the wheel take the result in."""
        if version == "editable" or os.environ.get("MODELSUPD_COMPILE") == "0":
            return
        missing = compile_gateway.lacking()
        if missing is not None:  # which pip shows with --verbose only; `make install` looks at what was installed
            self.app.display_warning(f"the gateway is installed uncompiled, and slower: {missing}")
            return
        self.app.display_info("compiling the gateway (a minute)")
        self._folder = tempfile.TemporaryDirectory(prefix="modelsupd-wheel-")
        for path in compile_gateway.compile_into(Path(self.root) / "supervisor", Path(self._folder.name)):
            build_data["force_include"][f"{self._folder.name}/{path}"] = path
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - hatchling's
        """Remove what the wheel has taken in."""
        if self._folder is not None:
            self._folder.cleanup()
