# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Triton kernels of the tensor-product convolution: sum over neighbours and product with W2 in one, without Z in memory.

With y `(n, k, components, channels)`, h `(n, k, width)` and W `(channels, width, out)`, for one output irrep

    Z[n, m, u, w] = sum over k of y[n, k, m, u] h[n, k, w],    out[n, m, v] = sum over u, w of Z[n, m, u, w] W[u, w, v].

A program holds a tile of Z of some receivers, channels and hidden units in registers; the backward pass makes the tile again,
or that of its gradient. No kernel adds with atomic operations, so that its results repeat exactly. Sums are float32 (float64
for float64), whatever the products are rounded to.

Checked in Triton's interpreter and compiled for compute capability 8.0 and 9.0; not yet run on a device, so neither its
results nor its speed there are known. benchmarks/convolution_gpu.py measures both.
"""

import os

import torch


try:
    import triton
    import triton.language as tl
except ImportError:  # an optional package; `require` says so where it is needed
    triton = None


PROGRAMS = 512  # enough to fill a device; a sum is split among programs until there are as many
PRECISIONS = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}  # torch.get_float32_matmul_precision() -> tl.dot's


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the processor: TRITON_INTERPRET=1 when it was imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def require(device=None):
    """
    Raises:
        `ImportError`: without the package Triton.
        `RuntimeError`: if `device` is neither a CUDA device nor the interpreter's.
    """
    if triton is None:
        raise ImportError("conv_implementation='triton' needs the package triton, which is missing: pip install triton")
    if device is not None and device.type != ("cpu" if interpreted() else "cuda"):
        expected = "the processor, because TRITON_INTERPRET=1 is set" if interpreted() else "a CUDA device"
        raise RuntimeError(
            f"conv_implementation='triton' needs {expected}, but the features are on {str(device)!r}. Move model and inputs "
            "there, or use conv_implementation='torch' (or 'auto')."
        )


if triton is not None:
    INTERPRETED = tl.constexpr(interpreted())

    @triton.jit
    def rounded(values, DOT: tl.constexpr):
        values = values.to(DOT)
        if INTERPRETED and DOT == tl.bfloat16:  # which the interpreter would multiply as integers
            values = values.to(tl.float32)
        return values

    @triton.jit
    def y_tile(y, n, k, column, N, K, C, inside, DOT: tl.constexpr):
        """(receivers, columns, neighbours) of y; a column is a component and a channel."""
        where = (n[:, None, None] * K + k[None, None, :]) * C + column[None, :, None]
        mask = (n[:, None, None] < N) & (k[None, None, :] < K) & inside[None, :, None]
        return rounded(tl.load(y + where, mask=mask, other=0.0), DOT)

    @triton.jit
    def h_tile(h, n, k, w, N, K, W, DOT: tl.constexpr):
        """(receivers, neighbours, hidden units) of h."""
        where = (n[:, None, None] * K + k[None, :, None]) * W + w[None, None, :]
        mask = (n[:, None, None] < N) & (k[None, :, None] < K) & (w[None, None, :] < W)
        return rounded(tl.load(h + where, mask=mask, other=0.0), DOT)

    @triton.jit
    def weight_tile(weight, u, w, v, U, W, V, DOT: tl.constexpr):
        """(channels and hidden units, outputs) of W."""
        where = (u * W + w)[:, None] * V + v[None, :]
        mask = ((u < U) & (w < W))[:, None] & (v < V)[None, :]
        return rounded(tl.load(weight + where, mask=mask, other=0.0), DOT)

    @triton.jit
    def gradient_tile(gradient, n, m, v, N, M: tl.constexpr, V, DOT: tl.constexpr):
        """(receivers and components, outputs) of the gradient of out."""
        where = (n * M + m)[:, None] * V + v[None, :]
        mask = ((n < N) & (m < M))[:, None] & (v < V)[None, :]
        return rounded(tl.load(gradient + where, mask=mask, other=0.0), DOT)

    @triton.jit
    def start_at(pointer, receiver, size):
        """A pointer to the rows of a receiver, so that the tile's own offsets fit in 32 bits."""
        return pointer + receiver.to(tl.int64) * size

    @triton.jit
    def z_tile(y, h, n, column, inside, w, N, K, C, W, BN: tl.constexpr, BC: tl.constexpr, BW: tl.constexpr,
               BK: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
        """(receivers, columns, hidden units) of Z."""
        z = tl.zeros((BN, BC, BW), dtype=SUM)
        for start in range(0, K, BK):
            k = start + tl.arange(0, BK)
            part = y_tile(y, n, k, column, N, K, C, inside, DOT)
            z = tl.dot(part, h_tile(h, n, k, w, N, K, W, DOT), z, input_precision=PRECISION, out_dtype=SUM)
        return z

    @triton.jit
    def z_gradient_tile(gradient, weight, rows, m, u, w, N, U, W, V, M: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
                        BW: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr,
                        PRECISION: tl.constexpr):  # fmt: skip
        """(receivers, columns, hidden units) of the gradient of Z."""
        BM: tl.constexpr = triton.next_power_of_2(M)
        z = tl.zeros((BN * BM, BC // BM * BW), dtype=SUM)
        for start in range(0, V, BV):
            v = start + tl.arange(0, BV)
            g = gradient_tile(gradient, rows, m, v, N, M, V, DOT)
            part = weight_tile(weight, u, w, v, U, W, V, DOT)
            z = tl.dot(g, tl.trans(part), z, input_precision=PRECISION, out_dtype=SUM)
        return rounded(tl.reshape(z, (BN, BC, BW)), DOT)

    @triton.jit
    def out_kernel(y, h, weight, out, N, K, U, W, V, tiles, M: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr,
                   BW: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr,
                   PRECISION: tl.constexpr):  # fmt: skip
        """Sums of `tiles` tiles of channels, to (split, n, component, output); grid: receivers, splits, outputs."""
        BM: tl.constexpr = triton.next_power_of_2(M)
        n, here = tl.arange(0, BN), tl.program_id(0) * BN
        split, v = tl.program_id(1), tl.program_id(2) * BV + tl.arange(0, BV)
        y, h = start_at(y, here, K * M * U), start_at(h, here, K * W)
        out = start_at(out, split * N + here, M * V)
        N -= here
        column, pair = tl.arange(0, BM * BU), tl.arange(0, BU * BW)
        total = tl.zeros((BN * BM, BV), dtype=SUM)
        for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(U, BU))):
            u = tile * BU + column % BU
            inside = (column // BU < M) & (u < U)
            for start in range(0, W, BW):
                z = z_tile(y, h, n, column // BU * U + u, inside, start + tl.arange(0, BW), N, K, M * U, W, BN, BM * BU, BW,
                           BK, DOT, SUM, PRECISION)  # fmt: skip
                part = weight_tile(weight, tile * BU + pair // BW, start + pair % BW, v, U, W, V, DOT)
                z = rounded(tl.reshape(z, (BN * BM, BU * BW)), DOT)
                total = tl.dot(z, part, total, input_precision=PRECISION, out_dtype=SUM)
        row = tl.arange(0, BN * BM)
        n, m = row // BM, row % BM
        where = (n * M + m)[:, None] * V + v[None, :]
        tl.store(out + where, total, mask=((n < N) & (m < M))[:, None] & (v < V)[None, :])

    @triton.jit
    def y_gradient_kernel(gradient, weight, h, shift, y_gradient, N, K, U, W, V, M: tl.constexpr, BN: tl.constexpr,
                          BU: tl.constexpr, BW: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr,
                          SUM: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
        """Gradient of y, plus `shift` (n, component, channel) for every neighbour; grid: receivers, channels, neighbours."""
        BM: tl.constexpr = triton.next_power_of_2(M)
        n, here = tl.arange(0, BN), tl.program_id(0) * BN
        column, pair, row = tl.arange(0, BM * BU), tl.arange(0, BU * BW), tl.arange(0, BN * BM)
        first = tl.program_id(1) * BU
        k = tl.program_id(2) * BK + tl.arange(0, BK)
        h, y_gradient = start_at(h, here, K * W), start_at(y_gradient, here, K * M * U)
        gradient, shift = start_at(gradient, here, M * V), start_at(shift, here, M * U)
        N -= here
        m, u = column // BU, first + column % BU
        inside = (n < N)[:, None] & ((m < M) & (u < U))[None, :]
        C = M * U
        part = tl.load(shift + n[:, None] * C + (m * U + u)[None, :], mask=inside, other=0.0)
        total = tl.zeros((BN, BM * BU, BK), dtype=SUM) + part[:, :, None]
        for start in range(0, W, BW):
            w = start + tl.arange(0, BW)
            z = z_gradient_tile(gradient, weight, row // BM, row % BM, first + pair // BW, start + pair % BW, N, U, W, V, M, BN,
                                BM * BU, BW, BV, DOT, SUM, PRECISION)  # fmt: skip
            hidden = tl.permute(h_tile(h, n, k, w, N, K, W, DOT), (0, 2, 1))
            total = tl.dot(z, hidden, total, input_precision=PRECISION, out_dtype=SUM)
        where = (n[:, None, None] * K + k[None, None, :]) * C + (m * U + u)[None, :, None]
        tl.store(y_gradient + where, total, mask=inside[:, :, None] & (k < K)[None, None, :])

    @triton.jit
    def h_gradient_kernel(gradient, weight, y, h_gradient, N, K, U, W, V, M: tl.constexpr, BN: tl.constexpr,
                          BU: tl.constexpr, BW: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr,
                          SUM: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
        """Adds to the gradient of h; grid: receivers, hidden units, neighbours."""
        BM: tl.constexpr = triton.next_power_of_2(M)
        n, here = tl.arange(0, BN), tl.program_id(0) * BN
        column, pair, row = tl.arange(0, BM * BU), tl.arange(0, BU * BW), tl.arange(0, BN * BM)
        first = tl.program_id(1) * BW
        w, k = first + tl.arange(0, BW), tl.program_id(2) * BK + tl.arange(0, BK)
        y, h_gradient = start_at(y, here, K * M * U), start_at(h_gradient, here, K * W)
        gradient = start_at(gradient, here, M * V)
        N -= here
        where = (n[:, None, None] * K + k[None, :, None]) * W + w[None, None, :]
        mask = (n[:, None, None] < N) & (k[None, :, None] < K) & (w[None, None, :] < W)
        total = tl.load(h_gradient + where, mask=mask, other=0.0)
        for start in range(0, U, BU):
            u = start + column % BU
            z = z_gradient_tile(gradient, weight, row // BM, row % BM, start + pair // BW, first + pair % BW, N, U, W, V, M, BN,
                                BM * BU, BW, BV, DOT, SUM, PRECISION)  # fmt: skip
            part = y_tile(y, n, k, column // BU * U + u, N, K, M * U, (column // BU < M) & (u < U), DOT)
            total = tl.dot(tl.permute(part, (0, 2, 1)), z, total, input_precision=PRECISION, out_dtype=SUM)
        tl.store(h_gradient + where, total, mask=mask)

    @triton.jit
    def weight_gradient_kernel(gradient, y, h, weight_gradient, N, K, U, W, V, tiles, M: tl.constexpr, BN: tl.constexpr,
                               BU: tl.constexpr, BW: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr,
                               SUM: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
        """Sums over `tiles` tiles of receivers, to (split, channel, hidden unit, output); grid: channels, hidden units and
        outputs, splits."""
        BM: tl.constexpr = triton.next_power_of_2(M)
        column, pair, row = tl.arange(0, BM * BU), tl.arange(0, BU * BW), tl.arange(0, BN * BM)
        split, parts = tl.program_id(2), tl.cdiv(W, BW)
        first, start = tl.program_id(0) * BU, tl.program_id(1) % parts * BW
        v = tl.program_id(1) // parts * BV + tl.arange(0, BV)
        u = first + column % BU
        inside = (column // BU < M) & (u < U)
        total = tl.zeros((BU * BW, BV), dtype=SUM)
        n = tl.arange(0, BN)
        for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(N, BN))):
            here = tile * BN
            z = z_tile(start_at(y, here, K * M * U), start_at(h, here, K * W), n, column // BU * U + u, inside,
                       start + tl.arange(0, BW), N - here, K, M * U, W, BN, BM * BU, BW, BK, DOT, SUM, PRECISION)  # fmt: skip
            g = gradient_tile(start_at(gradient, here, M * V), row // BM, row % BM, v, N - here, M, V, DOT)
            z = tl.trans(rounded(tl.reshape(z, (BN * BM, BU * BW)), DOT))
            total = tl.dot(z, g, total, input_precision=PRECISION, out_dtype=SUM)
        u, w = first + pair // BW, start + pair % BW
        where = ((split * U + u) * W + w)[:, None] * V + v[None, :]
        tl.store(weight_gradient + where, total, mask=((u < U) & (w < W))[:, None] & (v < V)[None, :])


# Receivers, channels and hidden units of a tile of Z, and warps, by components (as a power of two). Chosen so that registers
# suffice, not yet by speed on a device: benchmarks/convolution_gpu.py tries others.
TILES = {1: (16, 16, 16, 8), 4: (8, 4, 32, 8), 8: (8, 4, 16, 8)}


def launch(kernel, grid, *arguments, components, outputs, products):
    """Starts a kernel with the tiles and types for these components, output channels and the dtype of the products."""
    receivers, channels, hidden, warps = TILES[triton.next_power_of_2(components)]
    kernel[grid](
        *arguments, M=components, BN=receivers, BU=channels, BW=hidden, BK=16, BV=16 if outputs <= 16 else 32,
        DOT=getattr(tl, products), SUM=tl.float64 if products == "float64" else tl.float32,
        PRECISION=PRECISIONS[torch.get_float32_matmul_precision()] if products == "float32" else "ieee", num_warps=warps,
        num_stages=1,
    )  # fmt: skip


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def parts_of(count: int, others: int):
    """How many programs share `count` tiles beside `others` programs, and how many tiles each takes."""
    tiles = ceil_div(count, max(1, min(count, PROGRAMS // max(1, others))))
    return ceil_div(count, tiles), tiles


def sizes_of(y, h, weight, components):
    """
    Raises:
        `ValueError`: for more components than there are tiles for.
    """
    if triton.next_power_of_2(components) not in TILES:
        raise ValueError(f"The kernels have no tiles for {components} components; use conv_implementation='torch'.")
    (n, k, width), (channels, _, outputs) = h.shape, weight.shape
    receivers, block, hidden, _ = TILES[triton.next_power_of_2(components)]
    tiles = (
        ceil_div(n, receivers),
        ceil_div(channels, block),
        ceil_div(width, hidden),
        ceil_div(outputs, 16 if outputs <= 16 else 32),
    )
    return (n, k, channels, width, outputs), tiles


def contract(y, h, weight, components: int, products: str):
    """Z W for one output irrep.

    Args:
        y (`torch.FloatTensor` of shape `(n, k, components * channels)`), h (`(n, k, width)`), weight (`(channels, width,
            outputs)`): contiguous.
        products (`str`): the dtype that what is multiplied is rounded to.

    Returns:
        `torch.FloatTensor` of shape `(n * components, outputs)`.
    """
    sizes, (receivers, blocks, _, parts) = sizes_of(y, h, weight, components)
    if y.numel() == 0:
        return y.new_zeros(sizes[0] * components, sizes[4])
    splits, tiles = parts_of(blocks, receivers * parts)
    out = y.new_empty(splits, sizes[0] * components, sizes[4])
    with torch.cuda.device_of(y):
        launch(out_kernel, (receivers, splits, parts), y, h, weight, out, *sizes, tiles, components=components,
               outputs=sizes[4], products=products)  # fmt: skip
    return out.sum(0)


def contract_backward(gradient, y, h, weight, shift, h_gradient, weight_gradient, components: int, products: str):
    """Gradients of `contract`: adds those of h and of the weight to `h_gradient` and `weight_gradient`.

    Args:
        gradient (`torch.FloatTensor` of shape `(n * components, outputs)`): of the result.
        shift (`torch.FloatTensor` of shape `(n, components * channels)`): added to the gradient of y of every neighbour.

    Returns:
        `torch.FloatTensor`, gradient of y, plus `shift`.
    """
    sizes, (receivers, blocks, hidden, parts) = sizes_of(y, h, weight, components)
    y_gradient = torch.empty_like(y)
    if y.numel() == 0:
        return y_gradient
    neighbors = ceil_div(sizes[1], 16)
    splits, tiles = parts_of(receivers, blocks * hidden * parts)
    parted = y.new_empty(splits, *weight.shape)
    options = {"components": components, "outputs": sizes[4], "products": products}
    with torch.cuda.device_of(y):
        launch(y_gradient_kernel, (receivers, blocks, neighbors), gradient, weight, h, shift, y_gradient, *sizes, **options)
        launch(h_gradient_kernel, (receivers, hidden, neighbors), gradient, weight, y, h_gradient, *sizes, **options)
        launch(weight_gradient_kernel, (blocks, hidden * parts, splits), gradient, y, h, parted, *sizes, tiles, **options)
    weight_gradient += parted.sum(0)
    return y_gradient


__all__ = ["contract", "contract_backward", "interpreted", "require"]
