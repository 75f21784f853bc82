# SPDX-License-Identifier: MIT
"""Layers, queries and heads that the command line selects."""

from __future__ import annotations

import dataclasses
import re

from labelled_images.sources import enumerate_names
from training.errors import OptionError

DEFAULT_QUERIES = ("0.5,0.5", "0.25,0.25")


@dataclasses.dataclass(frozen=True)
class Query:
    """A place in the image as the network sees it: pixels from its left and upper edge."""

    x: float
    y: float

    def cell(self, grid_size: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int]:
        """Row and column of the token that covers the place."""
        row, column = (
            int(place / side * tokens)
            for place, side, tokens in zip((self.y, self.x), image_size, grid_size, strict=True)
        )
        return min(row, grid_size[0] - 1), min(column, grid_size[1] - 1)


def choose_layers(words: tuple[str, ...] | None, names: list[str]) -> list[int]:
    """Numbers of the layers that `words` name or count (from the end if negative); first, middle and last without.

    Raises:
        OptionError: there is no such layer.
    """
    count = len(names)
    if words is None:
        return sorted({0, count // 2, count - 1})
    return [_layer_number(word, names) for word in words]


def _layer_number(word: str, names: list[str]) -> int:
    if word in names:
        return names.index(word)
    try:
        number = int(word)
    except ValueError:
        raise OptionError(f"--layers {word}: expected one of {enumerate_names(names)}") from None
    if not -len(names) <= number < len(names):
        raise OptionError(
            f"--layers {word}: expected {-len(names)} to {len(names) - 1}, as many layers have affinities"
        )
    return number % len(names)


def parse_queries(words: tuple[str, ...], image_size: tuple[int, int]) -> list[Query]:
    """`x,y` each: whole numbers are pixels of the image as the network sees it, decimal fractions parts of it.

    Raises:
        OptionError: a query is malformed or outside the image.
    """
    return [_parse_query(word, image_size) for word in words]


def refuse_signs(argv: list[str]) -> None:
    """Refuse -1,5 as what it is: to a parser of options it would be an unknown flag.

    Raises:
        OptionError: a word is a query with a leading minus.
    """
    for word in argv:
        if re.fullmatch(r"-[\d.]+,.*", word):
            raise OptionError(f"--queries {word} is outside the image: x and y count from its left and upper edge")


def _parse_query(word: str, image_size: tuple[int, int]) -> Query:
    height, width = image_size
    parts = word.split(",")
    try:
        if len(parts) != 2:
            raise ValueError
        if all("." not in part for part in parts):
            x, y = (int(part) for part in parts)
            inside, query = 0 <= x < width and 0 <= y < height, Query(x + 0.5, y + 0.5)
        else:
            x, y = (float(part) for part in parts)
            inside, query = 0 <= x <= 1 and 0 <= y <= 1, Query(x * width, y * height)
    except ValueError:
        raise OptionError(f"--queries {word}: expected x,y in pixels, as 16,8, or as parts, as 0.5,0.25") from None
    if not inside:
        raise OptionError(
            f"--queries {word} is outside the image: expected pixels below {width},{height} or parts from 0.0 to 1.0"
        )
    return query


def parse_head(word: str) -> int | None:
    """The number of a head, None for the mean over all.

    Raises:
        OptionError: it is neither a number nor "mean".
    """
    if word == "mean":
        return None
    if not word.isdecimal():
        raise OptionError(f"--head must be mean or a number from 0, got {word}")
    return int(word)
