"""An export in optimum, whose file it finds itself: python optimum_pipeline.py EXPORT [model_quantized.onnx] < texts.txt

Needs: pip install "optimum[onnxruntime]"
"""

import json
import sys

from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline

chosen = {"file_name": sys.argv[2], "subfolder": "onnx"} if len(sys.argv) > 2 else {}
model = ORTModelForSequenceClassification.from_pretrained(sys.argv[1], **chosen)
classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(sys.argv[1]), top_k=None)
for text in sys.stdin.read().splitlines():
    print(json.dumps({each["label"]: each["score"] for each in classify([text], truncation=True)[0]}))
