# SPDX-License-Identifier: MIT
"""Numbering of class folders: as text, like torchvision, or with numbers by value, like timm."""

from __future__ import annotations

import re
from collections.abc import Iterable

from training.checkpoint import peek_checkpoint

CLASS_ORDERS = ("text", "natural")


def sort_classes(names: Iterable[str], order: str) -> list[str]:
    """`names` in the order "text" (1, 10, 2) or "natural" (1, 2, 10; capitals count as small letters)."""
    return sorted(sorted(names), key=_natural_key) if order == "natural" else sorted(names)


def describe_orders(names: Iterable[str]) -> str | None:
    """Both orders around their first difference; None where they are the same."""
    text, natural = (sort_classes(names, order) for order in CLASS_ORDERS)
    if text == natural:
        return None
    first = next(number for number, pair in enumerate(zip(text, natural, strict=True)) if pair[0] != pair[1])
    shown = slice(max(0, first - 2), first + 2)
    number = f"from class {shown.start} on " if shown.start else ""
    return (
        f"{number}{', '.join(text[shown])}, … as text (torchvision's order) and "
        f"{', '.join(natural[shown])}, … in natural order (timm's)"
    )


def question_order(path: str | None, classes: list[str], order: str, is_given: bool) -> list[str]:
    """A line if the --initial-checkpoint `path` may number `classes` otherwise than `order`, the --class-order: its
    classifier would start out wrong. `is_given`: the user chose it."""
    orders = describe_orders(classes)
    if path is None or orders is None:
        return []
    saved = peek_checkpoint(path).get("classes")
    if saved is None and not is_given:
        return [f"{path} does not name its classes. If its classifier fits, choose --class-order: they are {orders}"]
    if saved is not None and saved != classes and sorted(saved) == sorted(classes):
        return [f"{path} has the classes in another order: --class-order {_other(order)} takes it"]
    return []


def _other(order: str) -> str:
    return next(other for other in CLASS_ORDERS if other != order)


def _natural_key(name: str) -> list[str | int]:
    """Text and numbers in turn."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]
