"""An export as a CrossEncoder of sentence-transformers: python sentence_transformers_model.py EXPORT [FILE] < pairs.txt

Needs: pip install "sentence-transformers[onnx]". A line is two texts with a tab between; a CrossEncoder takes nothing else.
"""

import json
import sys

from sentence_transformers import CrossEncoder
from torch import nn

chosen = {"file_name": sys.argv[2]} if len(sys.argv) > 2 else {}
model = CrossEncoder(sys.argv[1], backend="onnx", model_kwargs=chosen)
labels = list(model.config.id2label.values())
for text in sys.stdin.read().splitlines():
    shares = model.predict([text.split("\t")], activation_fn=nn.Softmax(-1))[0]
    print(json.dumps(dict(zip(labels, map(float, shares), strict=True))))
