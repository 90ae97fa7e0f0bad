"""Residual networks as torchvision names their arrays."""

import numpy as np

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def torch_arrays(depth, features, seed=0, stem=7):
    """The state dict of a torchvision ResNet of `features` channels in the first stage, with random values."""
    rng = np.random.default_rng(seed)
    arrays = {}

    def conv(name, out, inside, size):
        scale = (inside * size * size) ** -0.5
        arrays[f"{name}.weight"] = rng.normal(0, scale, (out, inside, size, size)).astype(
            np.float32
        )

    def bn(name, channels):
        arrays[f"{name}.weight"] = rng.uniform(0.5, 1.5, channels).astype(np.float32)
        arrays[f"{name}.bias"] = rng.normal(0, 0.3, channels).astype(np.float32)
        arrays[f"{name}.running_mean"] = rng.normal(0, 0.3, channels).astype(np.float32)
        arrays[f"{name}.running_var"] = rng.uniform(0.5, 2, channels).astype(np.float32)
        arrays[f"{name}.num_batches_tracked"] = np.array(7, np.int64)

    conv("conv1", features, 3, stem)
    bn("bn1", features)
    inside = features
    for stage, count in enumerate(BLOCKS[depth], 1):
        wide = features * 2 ** (stage - 1)
        out = wide * (4 if depth == 50 else 1)
        for block in range(count):
            name = f"layer{stage}.{block}"
            shapes = [(wide, inside, 3), (out, wide, 3)]
            if depth == 50:
                shapes = [(wide, inside, 1), (wide, wide, 3), (out, wide, 1)]
            for i, shape in enumerate(shapes, 1):
                conv(f"{name}.conv{i}", *shape)
                bn(f"{name}.bn{i}", shape[0])
            if block == 0 and (stage > 1 or inside != out):
                conv(f"{name}.downsample.0", out, inside, 1)
                bn(f"{name}.downsample.1", out)
            inside = out
    arrays["fc.weight"] = rng.normal(size=(10, inside)).astype(np.float32)
    arrays["fc.bias"] = np.zeros(10, np.float32)
    return arrays
