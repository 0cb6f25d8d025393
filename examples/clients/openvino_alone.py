"""An export with openvino and tokenizers alone: python openvino_alone.py EXPORT < texts.txt

Needs: pip install openvino tokenizers
"""

import json
import sys
from pathlib import Path

import numpy as np
import openvino
from tokenizers import Tokenizer

export = Path(sys.argv[1])
labels = json.loads((export / "config.json").read_text(encoding="utf-8"))["id2label"]
tokenizer = Tokenizer.from_file(str(export / "tokenizer.json"))
tokenizer.enable_truncation(json.loads((export / "tokenizer_config.json").read_text(encoding="utf-8"))["model_max_length"])
model = openvino.compile_model(export / "openvino/openvino_model_qint8_quantized.xml", "CPU")
columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
for text in sys.stdin.read().splitlines():
    tokens = tokenizer.encode(text)
    names = [each.get_any_name() for each in model.inputs]
    logits = model({name: np.array([getattr(tokens, columns[name])], np.int64) for name in names})["logits"][0]
    shares = np.exp(logits.astype(np.float64) - logits.max())
    print(json.dumps(dict(zip(labels.values(), (shares / shares.sum()).tolist(), strict=True))))
