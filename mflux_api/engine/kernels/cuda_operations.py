"""The row operations of a fused transformer as CUDA kernels, one launch each, for heads of 128 and bfloat16 rows.

Each thread reads and writes 8 or 16 bytes at a time, and what is added up is float32.
"""

from typing import Any

import mlx.core as mx

from mflux_api.engine.kernels.cuda_kernels import PER_THREAD, WARP, kernel, launched, numbers
from mflux_api.engine.kernels.row_operations import HEAD_EPS, NORM_EPS, HeadNorms, Heads, Modulation, Rope

HEAD_DIM = 128
_MOST_THREADS = 1024


def fits(heads: int, head_dim: int, width: int, mlp_width: int) -> bool:
    """Whether the kernels take rows of a transformer of these dimensions."""
    whole_warps = width % (WARP * PER_THREAD) == 0 and width // PER_THREAD <= _MOST_THREADS
    return head_dim == HEAD_DIM and heads * head_dim == width and whole_warps and mlp_width % PER_THREAD == 0


class CudaOperations:
    """:class:`mflux_api.engine.kernels.row_operations.RowOperations` on CUDA."""

    def __init__(self, heads: int) -> None:
        self._heads = heads

    def heads(self, text: mx.array | None, image: mx.array, norms: tuple[HeadNorms, HeadNorms], rope: Rope) -> Heads:
        """See :class:`RowOperations`."""
        of_text, of_image = norms
        first = image if text is None else text.astype(image.dtype)
        text_tokens = 0 if text is None else text.shape[1]
        batch, tokens = image.shape[0], image.shape[1] + text_tokens
        shape = (batch, self._heads, tokens, HEAD_DIM)
        weights = (each.astype(image.dtype) for each in (of_text.query, of_text.key, of_image.query, of_image.key))
        query, key, value = kernel("heads", _HEADS_INPUTS, ("query", "key", "value"), _HEADS)(
            inputs=[
                *(first, image, *weights, rope.cos, rope.sin),
                numbers(batch, tokens, text_tokens, self._heads, first.shape[-1], image.shape[-1]),
            ],
            **launched(batch * tokens * self._heads * WARP, [shape] * 3, image.dtype),
        )
        return query, key, value

    def split(self, attention: mx.array, text_tokens: int) -> tuple[mx.array, mx.array]:
        """See :class:`RowOperations`."""
        batch, heads, tokens, _ = attention.shape
        width = heads * HEAD_DIM
        text, image = kernel("split", ("attention", "sizes"), ("text", "image"), _SPLIT)(
            inputs=[attention, numbers(batch, tokens, text_tokens, heads)],
            **launched(
                batch * tokens * width // PER_THREAD,
                [(batch, text_tokens, width), (batch, tokens - text_tokens, width)],
                attention.dtype,
            ),
        )
        return text, image

    def gated(self, attention: mx.array | None, rows: mx.array, width: int) -> mx.array:
        """See :class:`RowOperations`."""
        batch, tokens, row = rows.shape
        heads = 0 if attention is None else self._heads
        # Without attention the kernel reads none.
        inputs = [rows if attention is None else attention.astype(rows.dtype), rows]
        size = heads * HEAD_DIM + width
        (product,) = kernel("gated", ("attention", "rows", "sizes"), ("out",), _GATED)(
            inputs=[*inputs, numbers(batch, tokens, heads, width, row)],
            **launched(batch * tokens * size // PER_THREAD, [(batch, tokens, size)], rows.dtype),
        )
        return product

    def normed(self, x: mx.array, modulation: Modulation) -> mx.array:
        """See :class:`RowOperations`."""
        (normed,) = kernel("norm", ("x", "scales", "shifts", "sizes"), ("normed",), _NORM.replace("ADDITION", ""))(
            inputs=[x, *_typed(x, modulation.scale, modulation.shift), _sizes(x, modulation)],
            **_by_row(x, outputs=1),
        )
        return normed

    def added(self, x: mx.array, y: mx.array, modulation: Modulation) -> tuple[mx.array, mx.array]:
        """See :class:`RowOperations`."""
        source = _NORM.replace("ADDITION", _ADDITION)
        total, normed = kernel("added", ("x", "y", "gates", "scales", "shifts", "sizes"), ("total", "normed"), source)(
            inputs=[
                x,
                *_typed(x, y, modulation.gate, modulation.scale, modulation.shift),
                _sizes(x, modulation),
            ],
            **_by_row(x, outputs=2),
        )
        return total, normed


def _typed(x: mx.array, *others: mx.array) -> list[mx.array]:
    """Return arrays in the type of ``x``, which a kernel takes all of them for."""
    return [each.astype(x.dtype) for each in others]


def _sizes(x: mx.array, modulation: Modulation) -> mx.array:
    """Return the tokens of an image, how many of them have the first set of a modulation, and the width."""
    tokens = x.shape[1]
    return numbers(tokens, tokens if modulation.scale.shape[0] == 1 else modulation.plain_tokens, x.shape[-1])


def _by_row(x: mx.array, *, outputs: int) -> dict[str, Any]:
    """Return how a kernel of one block a row is started."""
    threads = x.shape[-1] // PER_THREAD
    return launched(x.size // PER_THREAD, [x.shape] * outputs, x.dtype, block=threads)


_HEADS_INPUTS = ("text", "image", "text_query", "text_key", "image_query", "image_key", "cosines", "sines", "sizes")

# A warp is one token's head: RMSNorm over its 128 numbers, then the rotation of pairs, 4 numbers a lane.
_HEADS = f"""
    unsigned int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    unsigned int batches = sizes[0], tokens = sizes[1], before = sizes[2], heads = sizes[3];
    if (warp >= batches * tokens * heads) return;
    unsigned int head = warp % heads, token = (warp / heads) % tokens, batch = warp / (heads * tokens);
    bool in_text = token < before;
    const T* row = in_text ? text + (size_t)(batch * before + token) * sizes[4]
                           : image + (size_t)(batch * (tokens - before) + token - before) * sizes[5];
    const T* from = row + head * 128 + lane * 4;
    size_t to = ((size_t)(batch * heads + head) * tokens + token) * 128 + lane * 4;
    unsigned int pair = token * 64 + lane * 2;
    float cos0 = cosines[pair], sin0 = sines[pair], cos1 = cosines[pair + 1], sin1 = sines[pair + 1];
    #pragma unroll
    for (int which = 0; which < 2; which++) {{
        uint2 packed = *(const uint2*)(from + (size_t)which * heads * 128), result;
        const T* weight = which == 0 ? (in_text ? text_query : image_query) : (in_text ? text_key : image_key);
        T* numbers = (T*)&packed;
        T* rotated = (T*)&result;
        float v[4], squares = 0.f;
        #pragma unroll
        for (int i = 0; i < 4; i++) {{ v[i] = (float)numbers[i]; squares += v[i] * v[i]; }}
        #pragma unroll
        for (int step = 16; step > 0; step >>= 1) squares += __shfl_xor_sync(0xffffffff, squares, step);
        float scale = rsqrtf(squares / 128.f + {HEAD_EPS}f);
        #pragma unroll
        for (int i = 0; i < 4; i++) v[i] = v[i] * scale * (float)weight[lane * 4 + i];
        rotated[0] = (T)(v[0] * cos0 - v[1] * sin0);
        rotated[1] = (T)(v[1] * cos0 + v[0] * sin0);
        rotated[2] = (T)(v[2] * cos1 - v[3] * sin1);
        rotated[3] = (T)(v[3] * cos1 + v[2] * sin1);
        *(uint2*)((which == 0 ? query : key) + to) = result;
    }}
    *(uint2*)(value + to) = *(const uint2*)(from + (size_t)2 * heads * 128);
"""

# 8 numbers a thread, copied to the row of the text or of the image.
_SPLIT = """
    size_t first = (size_t)(blockIdx.x * (size_t)blockDim.x + threadIdx.x) * 8;
    unsigned int batches = sizes[0], tokens = sizes[1], before = sizes[2], heads = sizes[3];
    if (first >= (size_t)batches * heads * tokens * 128) return;
    unsigned int within = first % 128, token = (first / 128) % tokens;
    size_t slot = first / 128 / tokens;
    unsigned int head = slot % heads, batch = slot / heads;
    T* row = token < before ? text + (size_t)(batch * before + token) * heads * 128
                            : image + (size_t)(batch * (tokens - before) + token - before) * heads * 128;
    *(uint4*)(row + head * 128 + within) = *(const uint4*)(attention + first);
"""

# 8 numbers a thread: a copy of the attention, or SiLU of the gate times what it gates.
_GATED = """
    size_t thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned int batches = sizes[0], tokens = sizes[1], heads = sizes[2], width = sizes[3], numbers = sizes[4];
    unsigned int size = heads * 128 + width;
    if (thread * 8 >= (size_t)batches * tokens * size) return;
    unsigned int column = thread * 8 % size;
    size_t row = thread * 8 / size;
    uint4 result;
    if (column < heads * 128) {
        unsigned int token = row % tokens, batch = row / tokens, head = column / 128;
        result = *(const uint4*)(attention + ((size_t)(batch * heads + head) * tokens + token) * 128 + column % 128);
    } else {
        const T* from = rows + (row + 1) * numbers - 2 * width + column - heads * 128;
        uint4 gates = *(const uint4*)from, others = *(const uint4*)(from + width);
        T *gate = (T*)&gates, *other = (T*)&others, *product = (T*)&result;
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            float x = (float)gate[i];
            product[i] = (T)((float)(T)(x / (1.f + __expf(-x))) * (float)other[i]);
        }
    }
    *(uint4*)(out + thread * 8) = result;
"""

_ADDITION = """
    uint4 packed_y = *(const uint4*)(y + at), packed_gate = *(const uint4*)(gates + set), sums;
    T *other = (T*)&packed_y, *gate = (T*)&packed_gate, *added = (T*)&sums;
    #pragma unroll
    for (int i = 0; i < 8; i++) {
        T product = (T)((float)gate[i] * (float)other[i]);
        added[i] = (T)((float)numbers[i] + (float)product);
        numbers[i] = added[i];
    }
    *(uint4*)(total + at) = sums;
"""

# A block is a row, 8 numbers a thread: LayerNorm in two passes over registers, then scale and shift.
_NORM = f"""
    __shared__ float partial[64];
    unsigned int row = blockIdx.x, thread = threadIdx.x;
    unsigned int width = sizes[2], warps = blockDim.x / 32;
    size_t at = (size_t)row * width + thread * 8;
    unsigned int set = (row % sizes[0] < sizes[1] ? 0 : width) + thread * 8;
    uint4 packed = *(const uint4*)(x + at);
    T* numbers = (T*)&packed;
    ADDITION
    float v[8], sum = 0.f, squares = 0.f;
    #pragma unroll
    for (int i = 0; i < 8; i++) {{ v[i] = (float)numbers[i]; sum += v[i]; }}
    #pragma unroll
    for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(0xffffffff, sum, step);
    if (thread % 32 == 0) partial[thread / 32] = sum;
    __syncthreads();
    sum = 0.f;
    for (int i = 0; i < warps; i++) sum += partial[i];
    float mean = sum / width;
    #pragma unroll
    for (int i = 0; i < 8; i++) {{ float d = v[i] - mean; squares += d * d; }}
    #pragma unroll
    for (int step = 16; step > 0; step >>= 1) squares += __shfl_xor_sync(0xffffffff, squares, step);
    if (thread % 32 == 0) partial[32 + thread / 32] = squares;
    __syncthreads();
    squares = 0.f;
    for (int i = 0; i < warps; i++) squares += partial[32 + i];
    float deviation = rsqrtf(squares / width + {NORM_EPS}f);
    uint4 packed_scale = *(const uint4*)(scales + set), packed_shift = *(const uint4*)(shifts + set), result;
    T *scale = (T*)&packed_scale, *shift = (T*)&packed_shift, *out = (T*)&result;
    #pragma unroll
    for (int i = 0; i < 8; i++) out[i] = (T)((v[i] - mean) * deviation * (1.f + (float)scale[i]) + (float)shift[i]);
    *(uint4*)(normed + at) = result;
"""
