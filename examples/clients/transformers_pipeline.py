"""An export in a pipeline of transformers, from its safetensors: python transformers_pipeline.py EXPORT < texts.txt"""

import json
import sys

from transformers import pipeline

classify = pipeline("text-classification", model=sys.argv[1], top_k=None)
for text in sys.stdin.read().splitlines():
    print(json.dumps({each["label"]: each["score"] for each in classify([text], truncation=True)[0]}))
