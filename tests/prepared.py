"""Data sets as TFDS prepares them for ArrayRecord, made without TensorFlow."""

import io
import json

from array_record.python import array_record_module
from PIL import Image

CORE = "tensorflow_datasets.core.features"


def write(root, name, version, splits, names):
    """Writes `root`/name/version.

    Args:
      root: the data_dir.
      name: of the data set.
      version: of it.
      splits: split -> [(image u8[32, 32, 3], {label feature: id})].
      names: label feature -> names of its ids.

    Returns:
      root.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / name / version
    folder.mkdir(parents=True)
    described = []
    for split, examples in splits.items():
        file = folder / f"{name}-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
        written = 0
        for i, (image, labels) in enumerate(examples):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            example = tf_example_pb2.Example()
            feature = example.features.feature
            feature["id"].bytes_list.value.append(f"{split}_{i:05d}".encode())
            feature["image"].bytes_list.value.append(buffer.getvalue())
            for key, label in labels.items():
                feature[key].int64_list.value.append(label)
            record = example.SerializeToString()
            written += len(record)
            writer.write(record)
        writer.close()
        described.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(written),
                "shardLengths": [str(len(examples))],
            }
        )
    info = {
        "fileFormat": "array_record",
        "moduleName": f"tensorflow_datasets.image_classification.{name}",
        "name": name,
        "splits": described,
        "version": version,
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    features = {
        "id": {"text": {}, "pythonClassName": f"{CORE}.text_feature.Text"},
        "image": {
            "image": {"dtype": "uint8", "shape": {"dimensions": ["32", "32", "3"]}},
            "pythonClassName": f"{CORE}.image_feature.Image",
        },
    }
    for key, known in names.items():
        features[key] = {
            "classLabel": {"numClasses": str(len(known))},
            "pythonClassName": f"{CORE}.class_label_feature.ClassLabel",
        }
        (folder / f"{key}.labels.txt").write_text("\n".join(known) + "\n")
    kind = f"{CORE}.features_dict.FeaturesDict"
    text = {"featuresDict": {"features": features}, "pythonClassName": kind}
    (folder / "features.json").write_text(json.dumps(text))
    return root
