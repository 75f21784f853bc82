// SPDX-License-Identifier: MIT
// The four pixels around a location.
#pragma once

#include <cmath>

#include "cuda/device.h"
#include "deformable_attention/params.h"

namespace ck::cuda {

// A level with its sides as the arithmetic of locations needs them.
struct Map {
    int height, width;
    float rows, columns;

    CK_DEVICE explicit Map(const Level& level)
        : height(level.height),
          width(level.width),
          rows(static_cast<float>(level.height)),
          columns(static_cast<float>(level.width)) {}

    CK_DEVICE bool has_row(int row) const {
        return static_cast<unsigned>(row) < static_cast<unsigned>(height);
    }
    CK_DEVICE bool has_column(int column) const {
        return static_cast<unsigned>(column) < static_cast<unsigned>(width);
    }
};

struct Point {
    int column, row;    // of the upper left pixel, −1 at the left and upper edge
    float right, down;  // how far the point is from there, as a part of the way to the next pixel

    // What is outside, or NaN, is at (−2, −2), none of whose four pixels there is. Compared before anything
    // is an integer, which a distant point would overflow.
    CK_DEVICE Point(Vec<float, 2> location, const Map& map) {
        float x = location.data[0] * map.columns - 0.5f, y = location.data[1] * map.rows - 0.5f;
        if (!(x > -1 && x < map.columns && y > -1 && y < map.rows)) x = y = -2;
        column = static_cast<int>(std::floor(x));
        row = static_cast<int>(std::floor(y));
        right = x - static_cast<float>(column);
        down = y - static_cast<float>(row);
    }

    CK_DEVICE bool is_inside() const { return column > -2; }
};

}  // namespace ck::cuda
