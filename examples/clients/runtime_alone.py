"""An export with onnxruntime and tokenizers alone: python runtime_alone.py EXPORT [onnx/model_quantized.onnx] < texts.txt"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

export = Path(sys.argv[1])
file = sys.argv[2] if len(sys.argv) > 2 else "onnx/model_quantized.onnx"
labels = json.loads((export / "config.json").read_text(encoding="utf-8"))["id2label"]
tokenizer = Tokenizer.from_file(str(export / "tokenizer.json"))
tokenizer.enable_truncation(json.loads((export / "tokenizer_config.json").read_text(encoding="utf-8"))["model_max_length"])
session = onnxruntime.InferenceSession(export / file, providers=["CPUExecutionProvider"])
columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
for text in sys.stdin.read().splitlines():
    tokens = tokenizer.encode(*text.split("\t"))  # two texts with a tab between are a pair
    feed = {each.name: np.array([getattr(tokens, columns[each.name])], np.int64) for each in session.get_inputs()}
    logits = session.run(["logits"], feed)[0][0].astype(np.float64)
    shares = np.exp(logits - logits.max())
    print(json.dumps(dict(zip(labels.values(), (shares / shares.sum()).tolist(), strict=True))))
