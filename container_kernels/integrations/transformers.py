# SPDX-License-Identifier: MIT
"""`use_deformable_attention`: the detectors of transformers on `container_kernels.deformable_attention`.
`register_backbones`: DETR with one of our networks in it comes back from `from_pretrained` as it was saved.

transformers' files repeat one class, `MultiScaleDeformableAttention`, without parameters: all that is replaced is its
`forward`. Mask2Former and OneFormer have a function of the same arithmetic in its place.
"""

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from .ms_deform_attn import ms_deform_attn_core

# The names by which files of transformers have it.
CLASS = "MultiScaleDeformableAttention"
FUNCTION = "multi_scale_deformable_attention"
OTHER_FUNCTION = "multi_scale_deformable_attention_v2"

_ABSENT = object()
_WHY_NOT_OTHER = "levels may differ in their number of points, and decoder_method='discrete' reads single pixels"


def _forward(
    value,
    value_spatial_shapes,
    value_spatial_shapes_list,
    level_start_index,
    sampling_locations,
    attention_weights,
    im2col_step,
):
    """Put on an instance: a function of no instance survives copies and pickling."""
    # The list is on the host: nothing waits for the device.
    sizes = value_spatial_shapes if value_spatial_shapes_list is None else value_spatial_shapes_list
    return ms_deform_attn_core(value, sizes, sampling_locations, attention_weights)


def _method(
    self,
    value,
    value_spatial_shapes,
    value_spatial_shapes_list,
    level_start_index,
    sampling_locations,
    attention_weights,
    im2col_step,
):
    """Put on a class."""
    return _forward(
        value,
        value_spatial_shapes,
        value_spatial_shapes_list,
        level_start_index,
        sampling_locations,
        attention_weights,
        im2col_step,
    )


def _function(value, value_spatial_shapes, sampling_locations, attention_weights):
    """Put in a file."""
    return ms_deform_attn_core(value, value_spatial_shapes, sampling_locations, attention_weights)


class _Target(NamedTuple):
    """`owner.name` is to become `function`."""

    path: str
    owner: Any
    name: str
    function: Any

    def why_not(self) -> str | None:
        """None, or why the arithmetic may be another."""
        expected = [*inspect.signature(self.function).parameters]
        current = getattr(type(self.owner) if isinstance(self.owner, nn.Module) else self.owner, self.name)
        actual = [*inspect.signature(current).parameters]
        if isinstance(self.owner, nn.Module):
            actual = actual[1:]
        return None if actual == expected else f"its {self.name} takes ({', '.join(actual)})"


class DeformableAttentionUse:
    """What `use_deformable_attention` changed.

    Attributes:
        changed: names of the modules, classes and functions that now run on `deformable_attention`.
        skipped: why others do not, by name.

    `undo()`, or the end of a `with` block, puts back what was there before, unless it has been changed again since.
    """

    def __init__(self) -> None:
        self.changed: list[str] = []
        self.skipped: dict[str, str] = {}
        self._before: list[tuple[_Target, Any]] = []

    def undo(self) -> None:
        while self._before:
            target, before = self._before.pop()
            if vars(target.owner).get(target.name) is not target.function:
                continue  # someone else has put a function there since
            if before is _ABSENT:
                delattr(target.owner, target.name)
            else:
                setattr(target.owner, target.name, before)

    def __enter__(self) -> "DeformableAttentionUse":
        return self

    def __exit__(self, *exception) -> None:
        self.undo()

    def __repr__(self) -> str:
        changed = [f"  {path}" for path in self.changed]
        skipped = [f"  {path}: {reason}" for path, reason in self.skipped.items()]
        lines = [f"On container_kernels.deformable_attention ({len(changed)}):", *changed]
        return "\n".join([*lines, f"Not ({len(skipped)}):", *skipped] if skipped else lines)

    def _add(self, target: _Target) -> None:
        before = vars(target.owner).get(target.name, _ABSENT)
        # An earlier use that is still on stays responsible for it.
        reason = "is on it already" if before is target.function else target.why_not()
        if reason is not None:
            self.skipped[target.path] = reason
            return
        setattr(target.owner, target.name, target.function)
        self._before.append((target, before))
        self.changed.append(target.path)

    def _refuse_nothing(self, given: str) -> None:
        if self.changed or any(reason == "is on it already" for reason in self.skipped.values()):
            return
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in self.skipped.items())
        raise ValueError(f"model_or_class: expected a {CLASS} of transformers in it, got {given}{reasons}")


def use_deformable_attention(model_or_class: nn.Module | type | ModuleType | None = None) -> DeformableAttentionUse:
    """Run deformable attention of transformers on `container_kernels.deformable_attention`.

        model = DeformableDetrForObjectDetection.from_pretrained(…)
        print(use_deformable_attention(model))          # for good, says what it changed

        with use_deformable_attention():                # every model of every family, within the block
            …

    Parameters, state dicts and configurations stay what they are, results agree up to rounding. Works under
    `torch.compile` (compile after the change); copies and pickles of a changed model are changed ones.

    Args:
        model_or_class: a model: its own modules alone. A class, or a Python module, of transformers: what its file
            has, so every model made of it. None: all families of the installed transformers. The functions of
            Mask2Former and OneFormer belong to a file, so that a model alone cannot be changed.

    Returns:
        What was changed and what was not, printable; its `undo()` or the end of a `with` block ends the change.

    Raises:
        ValueError: there is nothing to change.
        TypeError: neither a model nor a class nor a Python module.
        ImportError: None was given, and transformers is not installed.
    """
    use = DeformableAttentionUse()
    if model_or_class is None:
        for name in _names_of_files():
            try:
                file = importlib.import_module(name)
            except ImportError as error:  # of a library that this family needs
                use.skipped[name] = f"cannot be imported: {error}"
                continue
            _add_file(use, file)
        use._refuse_nothing("an installed transformers without any")
    elif isinstance(model_or_class, nn.Module):
        _add_model(use, model_or_class)
        use._refuse_nothing(f"a model of class {type(model_or_class).__name__}")
    elif isinstance(model_or_class, type) and model_or_class.__name__ == CLASS:
        use._add(_class_target(model_or_class))
        use._refuse_nothing(f"the class {model_or_class.__module__}.{CLASS}")
    elif isinstance(model_or_class, type):
        for base in model_or_class.__mro__:
            if base.__module__ in sys.modules:
                _add_file(use, sys.modules[base.__module__])
        use._refuse_nothing(f"the class {model_or_class.__name__}")
    elif isinstance(model_or_class, ModuleType):
        _add_file(use, model_or_class)
        use._refuse_nothing(f"the Python module {model_or_class.__name__}")
    else:
        raise TypeError(
            f"model_or_class: expected a model, a class, a Python module or None, got {type(model_or_class).__name__}"
        )
    return use


def register_backbones() -> None:
    """Let `DetrForObjectDetection.from_pretrained` read what was saved with one of our networks as the backbone.

        register_backbones()
        model = DetrForObjectDetection.from_pretrained(…)

    In files of DETR, transformers renames every `out_proj` to `o_proj`, those of our blocks too, and draws these anew,
    which nothing but its loading report says. Afterwards it renames those of DETR's own attention alone. Files of
    Conditional and Deformable DETR are read as they are.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        mapping = importlib.import_module("transformers.conversion_mapping")
        loading = importlib.import_module("transformers.core_model_loading")
    except ModuleNotFoundError as error:
        if error.name == "transformers":
            raise ImportError(
                "register_backbones needs transformers: pip install 'container_kernels[integrations]'"
            ) from error
        return  # a version that renames nothing
    renames = mapping.get_checkpoint_conversion_mapping("DetrModel") or []
    scoped = [
        loading.WeightRenaming(f"{attention}.out_proj", f"{attention}.o_proj")
        for attention in ("self_attn", "encoder_attn")
    ]
    kept = [rename for rename in renames if [*getattr(rename, "source_patterns", ())] != ["out_proj"]]
    if len(kept) < len(renames):
        mapping.register_checkpoint_conversion_mapping("DetrModel", [*kept, *scoped], overwrite=True)


def _names_of_files() -> Iterator[str]:
    """The Python modules of transformers that have deformable attention, whatever families it comes with."""
    try:
        transformers = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(
            "use_deformable_attention needs transformers: pip install 'container_kernels[integrations]'"
        ) from error
    signs = (f"class {CLASS}(".encode(), f"def {FUNCTION}(".encode(), f"def {OTHER_FUNCTION}(".encode())
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        source = path.read_bytes()
        if any(sign in source for sign in signs):
            yield f"transformers.models.{path.parent.name}.{path.stem}"


def _class_target(cls: type) -> _Target:
    return _Target(f"{cls.__module__}.{cls.__name__}", cls, "forward", _method)


def _add_file(use: DeformableAttentionUse, file: ModuleType) -> None:
    cls = vars(file).get(CLASS)
    # Not one that the file imports, which is said to be elsewhere.
    if isinstance(cls, type) and cls.__module__ == file.__name__:
        use._add(_class_target(cls))
    function = vars(file).get(FUNCTION)
    if function is _function or getattr(function, "__module__", None) == file.__name__:
        use._add(_Target(f"{file.__name__}.{FUNCTION}", file, FUNCTION, _function))
    if hasattr(file, OTHER_FUNCTION):
        use.skipped[f"{file.__name__}.{OTHER_FUNCTION}"] = _WHY_NOT_OTHER


def _add_model(use: DeformableAttentionUse, model: nn.Module) -> None:
    for path, module in model.named_modules():
        cls = type(module)
        if cls.__name__ == CLASS:
            use._add(_Target(path or CLASS, module, "forward", _forward))
        elif cls.__name__.endswith("MultiscaleDeformableAttention"):
            file = sys.modules.get(cls.__module__)
            if hasattr(file, FUNCTION):
                use.skipped[path] = f"calls a function of its file: use_deformable_attention({cls.__name__})"
            elif hasattr(file, OTHER_FUNCTION):
                use.skipped[path] = _WHY_NOT_OTHER
