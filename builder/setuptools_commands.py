# SPDX-License-Identifier: MIT
"""The commands of setup.py."""

import pprint
import shutil
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension
from setuptools.command.build_ext import build_ext

from . import cpu, cuda, cuda_emulator
from .commands import CannotBuild, NothingToBuild
from .project import RECORD_FILE, ROOT, SOABI, env

# Extension -> its name in the record, and what builds it.
BUILDERS = {"container_kernels._C_cpu": ("cpu", cpu.build), "container_kernels._C_cuda": ("cuda", cuda.build)}


class BuildExtension(build_ext):
    """Builds what it can, writes down what it decided; only CONTAINER_KERNELS_REQUIRE_EXT makes it fail."""

    def run(self) -> None:
        self.record = {"python": SOABI}
        # setuptools clears inplace during super().run(), which builds into build_lib and copies afterwards.
        self.in_source_tree = bool(self.inplace)
        super().run()
        record = pprint.pformat(self.record, width=110, sort_dicts=False)
        text = f'"""Written by setup.py: what the build decided, and why."""\n\nRECORD = (\n{record}\n)\n'
        for root in [Path(self.build_lib), *([ROOT] if self.in_source_tree else [])]:
            path = root / RECORD_FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def build_extension(self, ext: Extension) -> None:
        name, build = BUILDERS[ext.name]
        record = self.record[name] = {"built": False, "reason": None}
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            module = build(record)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(module, target)
        except (CannotBuild, OSError) as failure:
            record["reason"] = str(failure)
            print(f"{ext.name} is not built: {failure}", file=sys.stderr)
            if env.flag("CONTAINER_KERNELS_REQUIRE_EXT") and not isinstance(failure, NothingToBuild):
                raise SystemExit(f"CONTAINER_KERNELS_REQUIRE_EXT is set, but {ext.name} is not built") from failure
            # A module of an earlier build would belie the record.
            target.unlink(missing_ok=True)
            if self.in_source_tree:
                (ROOT / RECORD_FILE).with_name(target.name).unlink(missing_ok=True)
            self.extensions = [other for other in self.extensions if other is not ext]
        else:
            record["built"] = True

    def get_outputs(self) -> list[str]:
        return sorted({*super().get_outputs(), str(Path(self.build_lib, RECORD_FILE))})

    def get_output_mapping(self) -> dict[str, str]:
        mapping = super().get_output_mapping()
        if self.inplace:
            mapping[str(Path(self.build_lib, RECORD_FILE))] = str(RECORD_FILE)
        return mapping


class BuildCudaEmulator(Command):
    """Builds the CUDA kernels for this machine's processor; the last line it prints is the path of what it built."""

    description = "build the CUDA kernels to run on this machine's processor, for tests"
    user_options: ClassVar = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        try:
            print(cuda_emulator.build_module())
        except CannotBuild as failure:
            raise SystemExit(str(failure)) from failure
