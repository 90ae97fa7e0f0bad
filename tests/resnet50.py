"""The hand's numbers of a ResNet-50 with SimCLR's head, by the tables of the paper (He et al., 2015), for 224 x 224 images."""

BLOCKS = (3, 4, 6, 3)


def _layers():
    """(kernel side, inputs, outputs, output side) of every convolution."""
    yield 7, 3, 64, 112
    channels = 64
    for stage, (count, side) in enumerate(zip(BLOCKS, (56, 28, 14, 7), strict=True)):
        width = 64 * 2**stage
        for block in range(count):
            # The stride is in the 3x3: the first 1x1 of a stage still sees the larger image.
            before = 2 * side if block == 0 and stage > 0 else side
            yield 1, channels, width, before
            yield 3, width, width, side
            yield 1, width, 4 * width, side
            if block == 0:
                yield 1, channels, 4 * width, side
            channels = 4 * width


LAYERS = tuple(_layers())
NORMS = sum(outputs for _, _, outputs, _ in LAYERS)

# Numbers, not bytes. BatchNorm has a scale and a bias, and a running mean and variance.
BACKBONE = sum(k * k * i * o for k, i, o, _ in LAYERS) + 2 * NORMS
HEAD = 2048 * 2048 + 2 * 2048 + 2048 * 128 + 128  # the last BatchNorm has a scale only
STATISTICS = 2 * (NORMS + 2048 + 128)


def _valid(side, kernel, stride):
    """Pairs (output, kernel position) along a side that meet the image, padded by kernel // 2."""
    size = side * stride
    return sum(0 <= o * stride + k - kernel // 2 < size for o in range(side) for k in range(kernel))


def _flops():
    """(forward pass of one view, its first convolution), products with padding left out."""
    total = []
    for n, (kernel, inputs, outputs, side) in enumerate(LAYERS):
        stride = 2 if n == 0 else 1
        if kernel == 3 and LAYERS[n - 1][3] == 2 * side:
            stride = 2
        total.append(2 * _valid(side, kernel, stride) ** 2 * inputs * outputs)
    return sum(total), total[0]


FLOPS = _flops()
