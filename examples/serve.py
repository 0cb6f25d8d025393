"""An export behind HTTP: EXPORT=runs/reviews/export uvicorn serve:app; then POST /predict {"texts": ["arrived late"]}.

Needs fastapi, uvicorn, onnxruntime and tokenizers; neither torch nor mbert.
"""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel, Field
from tokenizers import Tokenizer

EXPORT = Path(os.environ.get("EXPORT", "export"))
LABELS = list(json.loads((EXPORT / "config.json").read_text(encoding="utf-8"))["id2label"].values())
MAX_LENGTH = json.loads((EXPORT / "tokenizer_config.json").read_text(encoding="utf-8"))["model_max_length"]
tokenizer = Tokenizer.from_file(str(EXPORT / "tokenizer.json"))
tokenizer.enable_truncation(MAX_LENGTH)
tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"), pad_token="[PAD]")
session = onnxruntime.InferenceSession(EXPORT / "onnx" / "model_quantized.onnx", providers=["CPUExecutionProvider"])
inputs = [item.name for item in session.get_inputs()]
app = FastAPI()


class Texts(BaseModel):
    texts: list[str] = Field(min_length=1, max_length=256)


@app.post("/predict")
def predict(body: Texts) -> list[dict[str, float]]:
    """Returns the probability of every label, a row for each text."""
    rows = tokenizer.encode_batch(body.texts)
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    feed = {name: np.array([getattr(row, columns[name]) for row in rows], dtype=np.int64) for name in inputs}
    logits = session.run(None, feed)[0]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return [dict(zip(LABELS, map(float, row / row.sum()), strict=True)) for row in shares]
