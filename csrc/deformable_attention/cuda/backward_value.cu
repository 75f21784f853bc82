// SPDX-License-Identifier: MIT
// The gradient of value, without atomics: the warps of a tile (tile_plan.h) look for the points that meet it
// and add them to sums in shared memory, in the order of the queries; at the end the sums of the warps are
// added in turn. So the same inputs give the same bits.
//
// A warp tests the boxes of 32 query blocks at a time (query_boxes.h), then 32 points at a time, a lane each,
// of a block whose box meets the tile. The hits wait in shared memory, as what each adds to which pixels, and
// are added 32 lanes at once: a quarter of the warp has the tile's pixels whose row and column are even or
// odd in one way, of which every point has exactly one. So a lane alone adds to what is its own, four
// channels of 16 pixels, and need not wait for others.
//
// At an encoder's 22,223 queries of 8 heads with 4 points on each of 4 levels, 2.84 M points meet 3.6 M
// tiles. To add one takes 35 instructions and 11 passes through shared memory, 140 and 170 µs on 132
// processors. Where queries are in the order of pixels, 0.9 M tests of 32 points take 110 µs; were there no
// order, a tile would test all points of its head and level, 7.8 M tests of mostly no hits, 600 µs.
#include "deformable_attention/cuda/channels.h"
#include "deformable_attention/cuda/point.h"
#include "deformable_attention/cuda/query_boxes.h"
#include "deformable_attention/cuda/tile_plan.h"

namespace ck::cuda {
namespace {

constexpr int kThreads = kTileWarps * kWarpSize;
constexpr int kOwnChannels = 4;
constexpr int kQuarters = 4;
static_assert(kTileChannels * kQuarters == kOwnChannels * kWarpSize);
// Hits that wait at most; those of one test find room where half is free.
constexpr int kQueue = 64;
// Hits whose gradients are on their way at the same time.
constexpr int kBatch = 4;

// What a point adds to the pixel of one quarter.
struct alignas(8) Share {
    float weight;
    int place;  // the query in its block times kTilePixels, plus the pixel; negative for none
};

struct WarpMemory {
    float sums[kTilePixels][kTileChannels];
    Share queue[kQueue][kQuarters];
};

struct Tile {
    int left, top;

    CK_DEVICE bool meets(const Box& box) const {
        return box.left < left + kTileSide && box.right >= left - 1 && box.top < top + kTileSide &&
               box.bottom >= top - 1;
    }
    // One of its four pixels may be in the tile.
    CK_DEVICE bool meets(const Point& point) const {
        return static_cast<unsigned>(point.column - left + 1) <= kTileSide &&
               static_cast<unsigned>(point.row - top + 1) <= kTileSide;
    }
};

CK_DEVICE int quarter_of(int row, int column) { return 2 * (row & 1) + (column & 1); }

// `shares` has room for one of every quarter.
CK_DEVICE void leave_shares(const Point& point, const Tile& tile, float weight, int query, Share* shares) {
    CK_UNROLL
    for (int corner = 0; corner < 4; ++corner) {
        const int down = corner / 2, right = corner % 2;
        const int row = point.row - tile.top + down, column = point.column - tile.left + right;
        const bool inside =
            static_cast<unsigned>(row) < kTileSide && static_cast<unsigned>(column) < kTileSide;
        const float part = (down ? point.down : 1 - point.down) * (right ? point.right : 1 - point.right);
        shares[quarter_of(row, column)] = {weight * part,
                                           inside ? query * kTilePixels + row * kTileSide + column : -1};
    }
}

// A lane's channels of rows of a head: in one access, or in as many as there are channels.
template <class T, bool Aligned>
struct LaneRows {
    static constexpr int kAccesses = Aligned ? 1 : kOwnChannels, kWidth = kOwnChannels / kAccesses;
    using Access = Channels<T, kWidth>;
    struct Row {
        Access accesses[kAccesses];
    };
    int first_channel, head_dim;

    CK_DEVICE Row read(const T* row) const {
        Row result{};
        CK_UNROLL
        for (int i = 0; i < kAccesses; ++i) {
            const int channel = first_channel + i * kWidth;
            if (channel < head_dim) result.accesses[i] = Access::read(row + channel);
        }
        return result;
    }
    CK_DEVICE void write(T* row, const float (&values)[kOwnChannels]) const {
        CK_UNROLL
        for (int i = 0; i < kAccesses; ++i) {
            const int channel = first_channel + i * kWidth;
            float some[kWidth];
            CK_UNROLL
            for (int j = 0; j < kWidth; ++j) some[j] = values[i * kWidth + j];
            if (channel < head_dim) Access::rounded(some).write(row + channel);
        }
    }
    CK_DEVICE static void widen(const Row& row, float (&values)[kOwnChannels]) {
        CK_UNROLL
        for (int i = 0; i < kAccesses; ++i) {
            float some[kWidth];
            row.accesses[i].widen(some);
            CK_UNROLL
            for (int j = 0; j < kWidth; ++j) values[i * kWidth + j] = some[j];
        }
    }
};

// Adds the first `count` hits in the queue; `grad_out` is the first query's of their block.
template <class T, bool Aligned>
CK_DEVICE void add_hits(WarpMemory& memory, int count, const LaneRows<T, Aligned>& rows, const T* grad_out,
                        int64_t query_stride) {
    const int quarter = lane() / (kWarpSize / kQuarters);
    float* const sums = memory.sums[0] + lane() % (kWarpSize / kQuarters) * kOwnChannels;
    sync_warp();
    CK_NO_UNROLL
    for (int first = 0; first < count; first += kBatch) {
        Share shares[kBatch];
        typename LaneRows<T, Aligned>::Row gradients[kBatch];
        CK_UNROLL
        for (int i = 0; i < kBatch; ++i) {
            shares[i] = first + i < count ? memory.queue[first + i][quarter] : Share{0, -1};
            gradients[i] = {};
            if (shares[i].place >= 0) {
                gradients[i] = rows.read(grad_out + shares[i].place / kTilePixels * query_stride);
            }
        }
        CK_UNROLL
        for (int i = 0; i < kBatch; ++i) {
            if (shares[i].place < 0) continue;
            float gradient[kOwnChannels];
            rows.widen(gradients[i], gradient);
            float* const pixel = sums + shares[i].place % kTilePixels * kTileChannels;
            Vec<float, kOwnChannels> sum = load<kOwnChannels>(pixel);
            CK_UNROLL
            for (int j = 0; j < kOwnChannels; ++j) sum.data[j] += shares[i].weight * gradient[j];
            store(pixel, sum);
        }
    }
    sync_warp();
}

template <class T, bool Aligned>
CK_KERNEL(kThreads, 2)
deformable_attention_backward_value_kernel(Problem problem, TilePlan plan, int query_blocks, const int* boxes,
                                           const T* grad_out, const float* locations, const float* weights,
                                           T* grad_value) {
    CK_DYNAMIC_SHARED(shared);
    WarpMemory* const memories = reinterpret_cast<WarpMemory*>(shared);
    const int index = shuffle(warp(), 0);
    WarpMemory& own = memories[index];

    // Blocks in the order of levels, then images, heads, groups of channels.
    const unsigned heads = problem.heads, groups = plan.channel_groups;
    const unsigned others = static_cast<unsigned>(problem.batch) * heads * groups;
    const int block = static_cast<int>(block_index().x / others);
    const unsigned other = block_index().x % others;
    const int channel_group = static_cast<int>(other % groups),
              head = static_cast<int>(other / groups % heads);
    const int64_t image = other / groups / heads;
    int which = 0;
    while (which + 1 < problem.level_count && plan.levels[which + 1].first_block <= block) ++which;
    const TileLevel& planned = plan.levels[which];
    const int part = index % planned.warps;
    const int tile_index =
        (block - planned.first_block) * plan.tiles_per_block(which) + index / planned.warps;
    const bool exists = tile_index < planned.tiles;
    const Tile tile{tile_index % planned.tiles_across * kTileSide,
                    tile_index / planned.tiles_across * kTileSide};
    const Map map(planned.level);
    const LaneRows<T, Aligned> rows{
        channel_group * kTileChannels + lane() % (kWarpSize / kQuarters) * kOwnChannels, problem.head_dim};

    for (int i = lane(); i < kTilePixels * kTileChannels / 4; i += kWarpSize) {
        store(own.sums[0] + 4 * i, Vec<float, 4>{});
    }
    const int64_t query_stride = heads * int64_t{problem.head_dim};
    const int points = problem.points_of_query();
    // Of the image, head and level.
    const int64_t first_row = image * problem.queries * heads + head;
    const int* const level_boxes =
        boxes + kBoxNumbers * ((image * heads + head) * problem.level_count + planned.index) * query_blocks;
    const auto look_at = [&](int query_block) {
        const int64_t first_query = int64_t{query_block} * kBoxQueries, query = first_query + lane();
        const int64_t first_point =
            (first_row + query * heads) * points + int64_t{planned.index} * problem.points;
        const T* const gradients = grad_out + (first_row + first_query * heads) * problem.head_dim;
        int waiting = 0;
        CK_NO_UNROLL
        for (int i = 0; i < problem.points; ++i) {
            Vec<float, 2> location{-9, -9};
            if (query < problem.queries) location = load<2>(locations + 2 * (first_point + i));
            const Point point(location, map);
            const bool hit = point.is_inside() && tile.meets(point);
            const unsigned hits = lanes_where(hit);
            if (!hits) continue;
            if (hit) {
                const int slot = waiting + count_bits(hits & ((1u << lane()) - 1));
                leave_shares(point, tile, weights[first_point + i], lane(), own.queue[slot]);
            }
            waiting += count_bits(hits);
            if (waiting > kQueue - kWarpSize) {
                add_hits(own, waiting, rows, gradients, query_stride);
                waiting = 0;
            }
        }
        if (waiting) add_hits(own, waiting, rows, gradients, query_stride);
    };
    // Query blocks by turns, so that the warps of a tile have as much to do each.
    const int turns = exists ? (query_blocks - part + planned.warps - 1) / planned.warps : 0;
    sync_warp();
    CK_NO_UNROLL
    for (int first = 0; first < turns; first += kWarpSize) {
        const int turn = first + lane();
        bool meets = false;
        if (turn < turns) {
            const auto box =
                load<kBoxNumbers>(level_boxes + kBoxNumbers * (int64_t{turn} * planned.warps + part));
            meets = tile.meets(Box{box.data[0], box.data[1], box.data[2], box.data[3]});
        }
        CK_NO_UNROLL
        for (unsigned left = lanes_where(meets); left; left &= left - 1) {
            look_at((first + lowest_bit(left)) * planned.warps + part);
        }
    }

    sync_threads();
    if (!exists) return;
    T* const out = grad_value + ((image * int64_t{problem.pixels} + planned.level.start) * heads + head) *
                                    problem.head_dim;
    constexpr int kStep = kQuarters;
    for (int pixel = part * kStep + lane() / (kWarpSize / kQuarters); pixel < kTilePixels;
         pixel += planned.warps * kStep) {
        const int row = tile.top + pixel / kTileSide, column = tile.left + pixel % kTileSide;
        if (row >= map.height || column >= map.width) continue;
        float total[kOwnChannels] = {};
        for (int other_part = 0; other_part < planned.warps; ++other_part) {
            const WarpMemory& memory = memories[index - part + other_part];
            const auto sum = load<kOwnChannels>(memory.sums[pixel] + rows.first_channel % kTileChannels);
            CK_UNROLL
            for (int i = 0; i < kOwnChannels; ++i) total[i] += sum.data[i];
        }
        rows.write(out + (row * int64_t{map.width} + column) * query_stride, total);
    }
}

}  // namespace

size_t deformable_attention_backward_value_workspace(const DeformableAttentionShape& shape) {
    return sizeof(int) * kBoxNumbers * shape.batch * shape.heads * shape.level_count *
           query_blocks(shape.queries);
}

void deformable_attention_backward_value(const DeformableAttentionBackwardValue& params, void* workspace,
                                         DType dtype, Stream stream) {
    const Problem problem = problem_of(params.shape);
    const auto [plan, blocks] = plan_tiles(problem);
    check_locations(params.locations);
    const float* const locations = static_cast<const float*>(params.locations);
    int* const boxes = static_cast<int*>(workspace);
    find_query_boxes(problem, locations, boxes, stream);
    with_type(dtype, [&, &plan = plan, blocks = blocks]<class T>() {
        const auto start = [&]<bool Aligned>() {
            launch<deformable_attention_backward_value_kernel<T, Aligned>>(
                {blocks}, kThreads, kTileWarps * sizeof(WarpMemory), stream, problem, plan,
                static_cast<int>(query_blocks(problem.queries)), boxes,
                static_cast<const T*>(params.grad_out), locations, static_cast<const float*>(params.weights),
                static_cast<T*>(params.grad_value));
        };
        constexpr int kBytes = kOwnChannels * sizeof(T);
        const bool aligned = problem.head_dim % kOwnChannels == 0 && is_multiple(params.grad_out, kBytes) &&
                             is_multiple(params.grad_value, kBytes);
        aligned ? start.template operator()<true>() : start.template operator()<false>();
    });
}

}  // namespace ck::cuda
