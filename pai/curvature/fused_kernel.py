"""The Triton kernel behind ``fused.py``. Importing this module needs triton.

Legend: s counts pairs (b, k) of B samples and K columns; G groups, O rows, D columns of a product,
L positions. A program owns one tile ``[BLOCK_O, BLOCK_D]`` of one group and a part of the
samples, which it takes one after another.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["samples", "part", "columns", "width_l"])
def square_sum(
    a_ptr: tl.tensor, x_ptr: tl.tensor, squares_ptr: tl.tensor, sums_ptr: tl.tensor,
    samples: tl.tensor, part: tl.tensor, columns: tl.tensor,
    size_o: tl.tensor, size_d: tl.tensor, size_l: tl.tensor,
    area_d: tl.tensor, width_d: tl.tensor, width_l: tl.tensor,
    a_b: tl.tensor, a_k: tl.tensor, a_g: tl.tensor, a_o: tl.tensor, a_l: tl.tensor,
    x_b: tl.tensor, x_g: tl.tensor, x_i: tl.tensor,
    x_kh: tl.tensor, x_kw: tl.tensor, x_oh: tl.tensor, x_ow: tl.tensor,
    SUMS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr,
) -> None:  # fmt: skip
    """``squares[n, g] = sum_{s in part n} (A_s U_s^T)^2``, and ``sums[n, g]`` without the square.

    ``a_ptr`` points to the gradients at the output, ``[B, K, G, O, L]`` of strides ``a_*``, and
    ``x_ptr`` to the padded input, in which ``U[b, g, d, l]`` is at ``b x_b + g x_g + i x_i +
    kh x_kh + kw x_kw + oh x_oh + ow x_ow`` with ``d = i area_d + kh width_d + kw`` and
    ``l = oh width_l + ow``. The results are float32 ``[parts, G, O, D]``; ``sums_ptr`` is not
    touched without ``SUMS``.
    ``samples`` is B K, of which each program takes ``part``; ``columns`` is K.

    The two loops become one (``flatten``), so that the next sample's loads overlap with this one's
    products. Offsets within one sample and group are taken to fit into 32 bits, no others.
    """
    tiles_d = tl.cdiv(size_d, BLOCK_D)
    tiles = tl.cdiv(size_o, BLOCK_O) * tiles_d
    g = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    n = tl.program_id(1).to(tl.int64)
    o = tile // tiles_d * BLOCK_O + tl.arange(0, BLOCK_O)
    d = tile % tiles_d * BLOCK_D + tl.arange(0, BLOCK_D)
    a_rows = (o * a_o)[:, None]
    x_rows = (d // area_d * x_i + d % area_d // width_d * x_kh + d % width_d * x_kw)[:, None]
    a_ptr += g * a_g
    x_ptr += g * x_g

    first = tl.program_id(1) * part
    squares = tl.zeros([BLOCK_O, BLOCK_D], tl.float32)
    sums = tl.zeros([BLOCK_O, BLOCK_D], tl.float32)
    for s in tl.range(first, tl.minimum(first + part, samples), flatten=True):
        a_sample = a_ptr + (s // columns).to(tl.int64) * a_b + (s % columns).to(tl.int64) * a_k
        x_sample = x_ptr + (s // columns).to(tl.int64) * x_b
        product = tl.zeros([BLOCK_O, BLOCK_D], tl.float32)
        for start in range(0, size_l, BLOCK_L):
            at = start + tl.arange(0, BLOCK_L)
            inside = (at < size_l)[None, :]
            a_positions = (at * a_l)[None, :]
            x_positions = (at // width_l * x_oh + at % width_l * x_ow)[None, :]
            a = tl.load(a_sample + (a_rows + a_positions), (o < size_o)[:, None] & inside, 0.0)
            u = tl.load(x_sample + (x_rows + x_positions), (d < size_d)[:, None] & inside, 0.0)
            product = tl.dot(a, tl.trans(u), product, input_precision=PRECISION)
        squares += product * product
        if SUMS:
            sums += product

    row = (n * (tl.num_programs(0) // tiles) + g) * size_o + o
    out = row[:, None] * size_d + d[None, :]
    kept = (o < size_o)[:, None] & (d < size_d)[None, :]
    tl.store(squares_ptr + out, squares, kept)
    if SUMS:
        tl.store(sums_ptr + out, sums, kept)
